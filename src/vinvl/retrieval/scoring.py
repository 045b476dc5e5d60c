"""Scores of images with captions: what is the same for many pairs is computed once, and little is padded."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vinvl.data.text import RaggedTokens
from vinvl.models.answering import VinVLForAnswering
from vinvl.models.config import SpecialTokens
from vinvl.retrieval.data import (
    CAPTION,
    MATCHED,
    MISMATCHED,
    PADDING,
    REGIONS,
    TAGS,
    attention_mask_of,
    segment_lengths,
)


class CaptionChunk(NamedTuple):
    """K captions of like length, on the device: only D lengths differ."""

    columns: Tensor  # (K,) int64: which captions of the fold they are
    input_ids: Tensor  # (K, L) int64: `[CLS] caption [SEP]`, padded to the longest
    length_index: Tensor  # (K,) int64: which of the lengths each caption has
    lengths: Tensor  # (D,) int64, special tokens included, ascending
    host_lengths: np.ndarray


def caption_chunks(
    tokens: RaggedTokens,
    captions: np.ndarray,
    *,
    max_rows: int,
    max_tokens: int,
    special: SpecialTokens,
    device: torch.device,
) -> list[CaptionChunk]:
    """The captions (C,) int64 of a fold, rows of `tokens`, by length, in chunks of `max_rows` at most."""
    kept, _ = segment_lengths(tokens.lengths()[captions], 0, max_tokens)  # (C,) with [CLS] and [SEP]
    chunks = []
    for columns in _cut_by_length(np.argsort(kept, kind="stable"), kept, max_rows):
        lengths, index = np.unique(kept[columns], return_inverse=True)
        input_ids = np.full((len(columns), int(lengths[-1])), special.pad_token_id, dtype=np.int64)
        for row, column in zip(input_ids, columns.tolist(), strict=True):
            length = int(kept[column])
            row[0], row[length - 1] = special.cls_token_id, special.sep_token_id
            row[1 : length - 1] = tokens[int(captions[column])][: length - 2]
        arrays = columns, input_ids, index.astype(np.int64), lengths
        places, rows, which, known = (torch.from_numpy(one).to(device) for one in arrays)
        chunks.append(CaptionChunk(places, rows, which, known, lengths))
    return chunks


def _cut_by_length(order: np.ndarray, lengths: np.ndarray, max_rows: int) -> Iterator[np.ndarray]:
    """Pieces of `order`; one that is half full ends where the length changes, so that most hold one length only."""
    start = 0
    while start < len(order):
        piece = order[start : start + max_rows]
        changes = np.flatnonzero(np.diff(lengths[piece])) + 1
        late = changes[changes >= max_rows // 2]
        if len(late) and len(np.unique(lengths[piece[: late[-1]]])) < len(np.unique(lengths[piece])):
            piece = piece[: late[-1]]
        yield piece
        start += len(piece)


class ImageSide(NamedTuple):
    """What is known of I images before they meet a caption."""

    tag_ids: Tensor  # (I, T) int64, padded
    regions: Sequence[Tensor]  # (R, H) of each image, embedded
    tag_counts: Tensor  # (I,) int64, on the device
    region_counts: Tensor
    host_tag_counts: np.ndarray
    host_region_counts: np.ndarray

    def part(self, images: slice) -> "ImageSide":
        return ImageSide(*(one[images] for one in self))  # type: ignore[arg-type]


class PairScorer:
    """Scores every image with every caption: the logit of "matched" less that of "mismatched".

    The score orders pairs as the softmax probability of "matched" does, and does not saturate when that is 1. A pair
    is laid out as caption, tags, regions, each part padded to the longest of those it is computed with; the tokens
    have the positions that they have in the text without padding, so the score is that of the single pair.

    From block to block nothing but the images goes to the device, and nothing comes back before the scores: the last
    captions that were scored stay there.
    """

    def __init__(
        self,
        model: VinVLForAnswering,
        special: SpecialTokens,
        max_tokens: int,
        max_rows: int,
        attention_type: str = "CLR",
    ) -> None:
        """
        Args:
            model: two classes, in eval mode.
            max_tokens: limit over caption and tags.
            max_rows: pairs in one forward pass.
            attention_type: see `attention_mask_of`.
        """
        self.model = model
        self.special = special
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.attention_type = attention_type
        self._captions: np.ndarray | None = None
        self._chunks: list[CaptionChunk] = []

    def score(
        self,
        tag_ids: Sequence[np.ndarray],
        region_features: Sequence[Tensor],
        tokens: RaggedTokens,
        captions: np.ndarray,
    ) -> Tensor:
        """Scores (I, C) float32 of I images with C captions, on the device of the region features.

        Args:
            tag_ids: (m,) int64 token ids of each image's tags.
            region_features: (R, D) float32 of each image; R may be 0.
            tokens: captions, without special tokens.
            captions: (C,) int64: which of them. The same array again means the same captions.
        """
        device = region_features[0].device
        if captions is not self._captions:
            self._captions, self._chunks = captions, caption_chunks(
                tokens, captions, max_rows=self.max_rows, max_tokens=self.max_tokens, special=self.special,
                device=device,
            )  # fmt: skip
        order = sorted(range(len(tag_ids)), key=lambda image: (len(region_features[image]), len(tag_ids[image])))
        side = self._image_side([tag_ids[image] for image in order], [region_features[image] for image in order])
        scores = torch.empty((len(order), len(captions)), dtype=torch.float32, device=device)
        for chunk in self._chunks:
            embedded = self.model.bert.embeddings(input_ids=chunk.input_ids)  # (K, L, H)
            step = max(1, self.max_rows // len(chunk.columns))
            for start in range(0, len(order), step):
                images = slice(start, start + step)
                scores[images, chunk.columns] = self._score_group(chunk, embedded, side.part(images))
        return scores[torch.from_numpy(np.argsort(order)).to(device)]

    def _image_side(self, tag_ids: Sequence[np.ndarray], region_features: Sequence[Tensor]) -> ImageSide:
        """Embeds the regions, of all images at once."""
        device = region_features[0].device
        tag_counts, region_counts = (np.array([len(one) for one in of]) for of in (tag_ids, region_features))
        padded = np.full((len(tag_ids), int(tag_counts.max())), self.special.pad_token_id, dtype=np.int64)
        for row, ids in zip(padded, tag_ids, strict=True):
            row[: len(ids)] = ids
        embedded = self.model.bert.embed_regions(torch.cat(list(region_features))).split(region_counts.tolist())
        tags, own_tags, own_regions = (torch.from_numpy(one).to(device) for one in (padded, tag_counts, region_counts))
        return ImageSide(tags, embedded, own_tags, own_regions, tag_counts, region_counts)

    def _score_group(self, chunk: CaptionChunk, captions: Tensor, side: ImageSide) -> Tensor:
        """(G, K) scores of a group of images with a chunk, whose captions (K, L, H) are embedded."""
        images, size = len(side.regions), len(chunk.columns)
        _, kept = segment_lengths(chunk.host_lengths - 2, side.host_tag_counts[:, None], self.max_tokens)  # (G, D)
        tags, tags_valid = self._embed_tags(chunk, side, int(kept.max()))  # (G, D, T, H) and (G, D, T)
        tags = tags[:, chunk.length_index] if len(chunk.host_lengths) > 1 else tags.expand(-1, size, -1, -1)
        regions = pad_sequence(side.regions, batch_first=True)  # type: ignore[arg-type]  # (G, R, H)
        parts = captions.expand(images, -1, -1, -1), tags, regions[:, None].expand(-1, size, -1, -1)
        hidden = torch.cat([part.to(captions.dtype) for part in parts], dim=2)  # (G, K, L + T + R, H)
        regions_alike = (side.host_region_counts == side.host_region_counts[0]).all()
        unpadded = len(chunk.host_lengths) == 1 and (kept == kept[0]).all() and regions_alike
        mask = None
        if not unpadded or self.attention_type != "CLR":
            mask = self._mask(chunk, tags_valid, side.region_counts, regions.shape[1])
        pooled = self.model.bert.pool_embedded(hidden.flatten(0, 1), mask)
        # Half precision would round many scores to the same number, and the order among them would be chance.
        with torch.autocast(pooled.device.type, enabled=False):
            head = self.model.classifier
            assert isinstance(head, nn.Linear)
            logits = nn.functional.linear(pooled.float(), head.weight.float(), head.bias.float())
        return (logits[:, MATCHED] - logits[:, MISMATCHED]).view(images, size)

    def _embed_tags(self, chunk: CaptionChunk, side: ImageSide, longest: int) -> tuple[Tensor, Tensor]:
        """Each image's tags after a caption of each of the D lengths, (G, D, T, H), and (G, D, T) which there are."""
        counts = side.tag_counts[:, None]  # (G, 1)
        words = torch.minimum(counts, self.max_tokens - chunk.lengths - 1)  # (G, D), -1 where there is no room
        words = torch.where(counts > 0, words, -1)[..., None]
        place = torch.arange(longest, device=words.device)
        tag_ids = nn.functional.pad(side.tag_ids, (0, max(0, longest - side.tag_ids.shape[1])))[:, None, :longest]
        ids = torch.where(place < words, tag_ids, self.special.pad_token_id)
        ids = torch.where(place == words, self.special.sep_token_id, ids)
        # Beyond the limit there is only padding, which needs no position of its own.
        positions = (chunk.lengths[:, None] + place).clamp(max=self.max_tokens - 1).expand(len(ids), -1, -1)
        flat = ids.flatten(0, 1)  # (G · D, T)
        embedded = self.model.bert.embeddings(
            input_ids=flat, token_type_ids=torch.ones_like(flat), position_ids=positions.flatten(0, 1)
        )
        return embedded.unflatten(0, ids.shape[:2]), place <= words

    def _mask(self, chunk: CaptionChunk, tags_valid: Tensor, region_counts: Tensor, most_regions: int) -> Tensor:
        """Who sees whom in each of the G · K pairs."""
        images, (size, longest) = len(region_counts), chunk.input_ids.shape
        place = torch.arange(max(longest, most_regions), device=region_counts.device)
        captions = place[:longest] < chunk.lengths[chunk.length_index, None]  # (K, L)
        regions = place[:most_regions] < region_counts[:, None]  # (G, R)
        parts = torch.cat(
            [
                torch.where(captions, CAPTION, PADDING).expand(images, -1, -1),
                torch.where(tags_valid, TAGS, PADDING)[:, chunk.length_index],
                torch.where(regions, REGIONS, PADDING)[:, None].expand(-1, size, -1),
            ],
            dim=2,
        )
        return attention_mask_of(parts.flatten(0, 1), self.attention_type)

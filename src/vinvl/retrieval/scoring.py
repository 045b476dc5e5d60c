"""Scores of images with captions: what is the same for many pairs is computed once, and little is padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vinvl.data.text import RaggedTokens
from vinvl.models.answering import VinVLForAnswering
from vinvl.models.config import SpecialTokens
from vinvl.retrieval.candidates import CAPTION, PADDING, REGIONS, TAGS, attention_mask_of, segment_lengths
from vinvl.retrieval.data import MATCHED, MISMATCHED


@dataclass(frozen=True, eq=False)
class CaptionChunk:
    """K captions of like length.

    Attributes:
        columns: (K,) int64: which captions of the fold they are.
        input_ids: (K, L) int64: `[CLS] caption [SEP]`, padded to the longest.
        valid: (K, L) bool: True where there is a token.
        lengths: (D,) int64: the different lengths, special tokens included, ascending; also in host memory.
        length_index: (K,) int64: which of them each caption has.
    """

    columns: Tensor
    input_ids: Tensor
    valid: Tensor
    lengths: Tensor
    host_lengths: np.ndarray
    length_index: Tensor

    def __len__(self) -> int:
        return len(self.columns)


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
    order = np.argsort(kept, kind="stable")
    chunks = []
    for columns in _cut_by_length(order, kept, max_rows):
        lengths, index = np.unique(kept[columns], return_inverse=True)
        input_ids = np.full((len(columns), int(lengths[-1])), special.pad_token_id, dtype=np.int64)
        for row, column in enumerate(columns.tolist()):
            length = int(kept[column])
            input_ids[row, 0], input_ids[row, length - 1] = special.cls_token_id, special.sep_token_id
            input_ids[row, 1 : length - 1] = tokens[int(captions[column])][: length - 2]
        valid = np.arange(int(lengths[-1])) < kept[columns][:, None]
        chunks.append(
            CaptionChunk(
                columns=torch.from_numpy(columns).to(device),
                input_ids=torch.from_numpy(input_ids).to(device),
                valid=torch.from_numpy(valid).to(device),
                lengths=torch.from_numpy(lengths).to(device),
                host_lengths=lengths,
                length_index=torch.from_numpy(index.astype(np.int64)).to(device),
            )
        )
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


@dataclass(frozen=True, eq=False)
class ImageSide:
    """What a block knows of its I images before it meets a caption, on the device and where needed on the host.

    Attributes:
        tag_ids: (I, T) int64, padded.
        tag_counts: (I,) int64; also in host memory.
        regions: (R, H) of each image, embedded.
        region_counts: (I,) int64; also in host memory.
    """

    tag_ids: Tensor
    tag_counts: Tensor
    host_tag_counts: np.ndarray
    regions: Sequence[Tensor]
    region_counts: Tensor
    host_region_counts: np.ndarray

    def part(self, images: slice) -> "ImageSide":
        """Some of the images."""
        return ImageSide(*(getattr(self, field.name)[images] for field in fields(self)))


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
        if captions is not self._captions:
            self._captions, self._chunks = captions, caption_chunks(
                tokens, captions, max_rows=self.max_rows, max_tokens=self.max_tokens, special=self.special,
                device=region_features[0].device,
            )  # fmt: skip
        order = sorted(range(len(tag_ids)), key=lambda image: (len(region_features[image]), len(tag_ids[image])))
        side = self._image_side([tag_ids[image] for image in order], [region_features[image] for image in order])
        device = side.tag_ids.device
        scores = torch.empty((len(order), len(captions)), dtype=torch.float32, device=device)
        for chunk in self._chunks:
            embedded = self.model.bert.embeddings(input_ids=chunk.input_ids)  # (K, L, H)
            step = max(1, self.max_rows // len(chunk))
            for start in range(0, len(order), step):
                images = slice(start, start + step)
                scores[images, chunk.columns] = self._score_group(chunk, embedded, side.part(images))
        return scores[torch.from_numpy(np.argsort(order)).to(device)]

    def _image_side(self, tag_ids: Sequence[np.ndarray], region_features: Sequence[Tensor]) -> ImageSide:
        """Embeds the regions, of all images at once."""
        region_counts = np.array([len(rows) for rows in region_features])
        tag_counts = np.array([len(ids) for ids in tag_ids])
        padded = np.full((len(tag_ids), int(tag_counts.max())), self.special.pad_token_id, dtype=np.int64)
        for row, ids in zip(padded, tag_ids, strict=True):
            row[: len(ids)] = ids
        device = region_features[0].device
        embedded = self.model.bert.embed_regions(torch.cat(list(region_features)))
        return ImageSide(
            torch.from_numpy(padded).to(device),
            torch.from_numpy(tag_counts).to(device),
            tag_counts,
            embedded.split(region_counts.tolist()),
            torch.from_numpy(region_counts).to(device),
            region_counts,
        )

    def _score_group(self, chunk: CaptionChunk, captions: Tensor, side: ImageSide) -> Tensor:
        """(G, K) scores of a group of images with a chunk, whose captions (K, L, H) are embedded."""
        images, size = len(side.regions), len(chunk)
        _, kept = segment_lengths(chunk.host_lengths - 2, side.host_tag_counts[:, None], self.max_tokens)  # (G, D)
        tags, tags_valid = self._embed_tags(chunk, side, int(kept.max()))  # (G, D, T, H) and (G, D, T)
        tags = tags[:, chunk.length_index] if len(chunk.host_lengths) > 1 else tags.expand(-1, size, -1, -1)
        padded = pad_sequence(side.regions, batch_first=True)  # type: ignore[arg-type]  # (G, R, H)
        hidden = torch.cat(
            [
                captions.expand(images, -1, -1, -1),
                tags.to(captions.dtype),
                padded[:, None].expand(-1, size, -1, -1).to(captions.dtype),
            ],
            dim=2,
        )
        regions_alike = (side.host_region_counts == side.host_region_counts[0]).all()
        unpadded = len(chunk.host_lengths) == 1 and (kept == kept[0]).all() and regions_alike
        mask = None
        if not unpadded or self.attention_type != "CLR":
            mask = self._mask(chunk, tags_valid, side.region_counts, padded.shape[1])
        pooled = self.model.bert.pool_embedded(hidden.flatten(0, 1), mask)
        # Half precision would round many scores to the same number, and the order among them would be chance.
        with torch.autocast(pooled.device.type, enabled=False):
            head = self.model.classifier
            assert isinstance(head, nn.Linear)
            logits = nn.functional.linear(pooled.float(), head.weight.float(), head.bias.float())
        return (logits[:, MATCHED] - logits[:, MISMATCHED]).view(images, size)

    def _embed_tags(self, chunk: CaptionChunk, side: ImageSide, longest: int) -> tuple[Tensor, Tensor]:
        """Each image's tags after a caption of each of the D lengths, (G, D, T, H), and (G, D, T) which there are."""
        room = self.max_tokens - chunk.lengths  # (D,)
        words = torch.minimum(side.tag_counts[:, None], room - 1)[..., None]  # (G, D, 1), -1 where there is no room
        words = torch.where(side.tag_counts[:, None, None] > 0, words, -1)
        place = torch.arange(longest, device=room.device)
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
        images, size = len(region_counts), len(chunk)
        within = torch.arange(most_regions, device=region_counts.device) < region_counts[:, None]  # (G, R)
        parts = torch.cat(
            [
                torch.where(chunk.valid, CAPTION, PADDING).expand(images, -1, -1),
                torch.where(tags_valid, TAGS, PADDING)[:, chunk.length_index],
                torch.where(within, REGIONS, PADDING)[:, None].expand(-1, size, -1),
            ],
            dim=2,
        )
        return attention_mask_of(parts.flatten(0, 1), self.attention_type)

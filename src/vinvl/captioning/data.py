"""Captioned images as items: a caption to hide words of and train on, or an image to write a caption for.

Shapes: B captions of at most C tokens, [CLS] and [SEP] counted; M captions of N images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import Dataset

from vinvl.captioning.files import CaptionRecords, checked_handling, read_caption_split, tell_skipped
from vinvl.captioning.published import read_published_split
from vinvl.captioning.scores import no_words
from vinvl.data.batch import Batch, Example, collate
from vinvl.data.inputs import PlacedImage, RegionText
from vinvl.data.module import RegionDataModule, checked_entry, plain
from vinvl.data.sampling import Draw
from vinvl.data.text import RaggedTokens
from vinvl.data.words import Commonest, regex_tokenize
from vinvl.run.errors import UserError

# Random numbers of many items at once, each item's own: a function of (seed, epoch, item) alone.
#
# SplitMix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR, SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform_numbers(seed: int, epochs: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    """(B, count) float64 from [0, 1): `count` numbers of each of the items (B,) in its epoch (B,).

    What an item gets depends on no other item, so batches may be cut in any way and made by any process.
    """
    state = _mixed(np.full(len(items), seed % 2**64, dtype=np.uint64) + STEP)
    for part in (epochs, items):
        state = _mixed(state + (part.astype(np.uint64) + np.uint64(1)) * STEP)
    counter = np.arange(1, count + 1, dtype=np.uint64) * STEP
    return (_mixed(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Every bit of each uint64 depends on all of it; overflow is meant."""
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST_FACTOR
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND_FACTOR
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


MASK_SHARE, RANDOM_SHARE = 0.8, 0.5  # of the chosen words 80 % become [MASK]; of the others half a random word


@dataclass(frozen=True)
class CaptionLimits:
    """Sizes of the published captioning input."""

    max_caption_tokens: int  # [CLS] and [SEP] counted; tags begin at this position (published `max_seq_a_length`)
    max_tokens: int  # caption places and tags with their [SEP] together
    mask_probability: float  # share of the caption's tokens that is hidden
    max_masked_tokens: int  # at most this many

    def caption(self, words: np.ndarray, cls_token_id: int, sep_token_id: int) -> np.ndarray:
        """(n,) int64 `[CLS] words [SEP]`, the words cut to fit."""
        kept = words[: self.max_caption_tokens - 2]
        return np.concatenate([[cls_token_id], kept, [sep_token_id]]).astype(np.int64)

    def tags(self, tags: np.ndarray, sep_token_id: int) -> np.ndarray:
        """(m,) int64 `tags [SEP]`, the tags cut to what the caption's places leave; nothing if there are no tags."""
        if len(tags) == 0:
            return np.zeros(0, dtype=np.int64)
        room = max(self.max_tokens - self.max_caption_tokens - 1, 0)
        return np.concatenate([tags[:room], [sep_token_id]]).astype(np.int64)

    def num_masked(self, caption_lengths: np.ndarray) -> np.ndarray:
        """(B,) int64: how many of the captions' tokens are hidden. Halves round to even."""
        wanted = np.rint(self.mask_probability * caption_lengths).astype(np.int64)
        return np.minimum(np.clip(wanted, 1, self.max_masked_tokens), caption_lengths - 1)


def choose_positions(limits: CaptionLimits, caption_lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(B, C) bool: the places of each caption that come first in its `order`, (B, C) numbers, as many as are hidden.

    Any place but [CLS]'s; the final [SEP] may be hidden too, so that the model learns to end.
    """
    place = np.arange(order.shape[1])
    allowed = (place > 0) & (place < caption_lengths[:, None])
    ranked = np.argsort(np.where(allowed, order, np.inf), axis=1, kind="stable")
    masked = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(masked, ranked, place < limits.num_masked(caption_lengths)[:, None], axis=1)
    return masked


@dataclass(frozen=True)
class Replacements:
    """What may stand in a hidden word's place: [MASK], the word itself, or a random one.

    The published code draws ids from 0 to vocab_size inclusive, and its tokenizer reads the last as [UNK].
    """

    mask_token_id: int
    unk_token_id: int
    vocab_size: int

    def of(self, tokens: np.ndarray, first: np.ndarray, second: np.ndarray, random_ids: np.ndarray) -> np.ndarray:
        """What replaces tokens, int64, by two draws from [0, 1) and a random id for each."""
        known = np.where(random_ids == self.vocab_size, self.unk_token_id, random_ids)
        others = np.where(second <= RANDOM_SHARE, known, tokens)
        return np.where(first <= MASK_SHARE, self.mask_token_id, others)


def hide_words(
    captions: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, limits: CaptionLimits, replacements: Replacements
) -> tuple[np.ndarray, np.ndarray]:
    """Captions (B, C) int64 with what replaces their hidden words, and where words are hidden, (B, C) bool.

    `numbers` (B, C, 4) float64 from [0, 1) say which places, and what replaces each; what is beyond a caption's length
    (B,) is ignored.
    """
    masked = choose_positions(limits, lengths, numbers[:, :, 0])
    first, second, third = numbers[masked][:, 1:].T
    random_ids = (third * (replacements.vocab_size + 1)).astype(np.int64)
    shown = captions.copy()
    shown[masked] = replacements.of(captions[masked], first, second, random_ids)
    return shown, masked


class CaptionedImageDataset(Dataset[Example]):
    """One split to write captions for: item i is the context of image i, its references in the record.

    Tags stand at the positions from `limits.max_caption_tokens` on, as if a caption had been padded up to there.
    """

    def __init__(self, records: CaptionRecords, images: np.ndarray, region_text: RegionText, limits: CaptionLimits):
        """`images` (N,) int64: where the records' images are in the store."""
        self.records, self.images = records, images
        self.region_text, self.limits = region_text, limits

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Example:
        return self.context(draw.index)

    def context(self, index: int) -> Example:
        """`tags [SEP]` with the regions of image `index`; without a caption."""
        image, records = int(self.images[index]), self.records
        record: dict[str, Any] = {
            "index": index,
            "image_id": records["image_id"][index],
            "store_index": image,
            "references": records.captions_of(index),
        }
        if "domain" in records:
            record["domain"] = records["domain"][index]
        example = caption_context(PlacedImage(self.region_text, image), self.limits, record)
        record["stored_as"] = example.regions.regions.image_id
        return example

    def lengths(self) -> np.ndarray:
        """(N,) int64: tags and regions of each image."""
        return self.region_text.image_lengths(self.images)

    def collate(self, items: Sequence[Example]) -> Batch:
        return collate(items, pad_token_id=self.region_text.special.pad_token_id)

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        references = item.record["references"]
        return [
            f"  image id  {item.record['image_id']}",
            *self.region_text.describe(item, item.record["store_index"], words(item.input_ids)),
            f"  captions  {references[0] if references else '(none)'}",
        ]


def caption_context(placed: PlacedImage, limits: CaptionLimits, record: dict[str, Any]) -> Example:
    """`tags [SEP]` of an image with its regions, at the positions from `limits.max_caption_tokens` on."""
    text = placed.region_text
    tags = limits.tags(text.tag_ids(placed.image), text.special.sep_token_id)
    return Example(
        input_ids=tags,
        token_type_ids=np.ones(len(tags), dtype=np.int64),
        regions=text.image_regions(placed.image),
        position_ids=limits.max_caption_tokens + np.arange(len(tags)),
        record=record,
    )


class CaptionDataset(Dataset[Example]):
    """One split to train on: item i is caption i; `collate` hides some of the words, others in each epoch."""

    def __init__(
        self, contexts: CaptionedImageDataset, caption_tokens: RaggedTokens, replacements: Replacements, seed: int
    ) -> None:
        """`caption_tokens`: of the M captions, image by image."""
        self.contexts, self.records = contexts, contexts.records
        self.caption_tokens, self.caption_image = caption_tokens, contexts.records.caption_image
        self.replacements, self.seed = replacements, seed

    def __len__(self) -> int:
        return len(self.caption_tokens)

    def __getitem__(self, draw: Draw) -> Example:
        context = self.contexts.context(int(self.caption_image[draw.index]))
        limits, special = self.contexts.limits, self.contexts.region_text.special
        caption = limits.caption(self.caption_tokens[draw.index], special.cls_token_id, special.sep_token_id)
        record = {**context.record, "caption_index": draw.index, "epoch": draw.epoch}
        return with_caption(context, caption, record)

    def lengths(self) -> np.ndarray:
        """(M,) int64: tokens and regions of each caption with its image, before truncation."""
        return self.caption_tokens.lengths() + self.contexts.lengths()[self.caption_image]

    def collate(self, items: Sequence[Example]) -> Batch:
        whole = self.contexts.collate(items)
        lengths = np.array([item.caption_length for item in items])
        captions = whole.input_ids[:, : lengths.max()].numpy()
        epochs, indices = (np.array([item.record[name] for item in items]) for name in ("epoch", "caption_index"))
        numbers = uniform_numbers(self.seed, epochs, indices, 4 * captions.shape[1]).reshape(*captions.shape, 4)
        shown, masked = hide_words(captions, lengths, numbers, self.contexts.limits, self.replacements)
        beyond = whole.input_ids[:, captions.shape[1] :]
        return replace(
            whole,
            input_ids=torch.cat([torch.from_numpy(shown), beyond], dim=1),
            labels=torch.from_numpy(captions[masked]),
            masked_positions=torch.cat([torch.from_numpy(masked), torch.zeros_like(beyond, dtype=torch.bool)], dim=1),
        )

    def show(self, item: Example, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        captions, batch = self.records.captions, self.collate([item])
        assert captions is not None and batch.labels is not None
        return [
            f"  image id  {item.record['image_id']}",
            f"  caption   {captions[item.record['caption_index']]}",
            *self.contexts.region_text.describe(item, item.record["store_index"], words(batch.input_ids[0].numpy())),
            f"  hidden    {' '.join(words(batch.labels.numpy()))}",
        ]


def with_caption(context: Example, caption: np.ndarray, record: dict[str, Any]) -> Example:
    """A context with a caption (c,) before its tags, at the positions 0, 1, 2 …"""
    assert context.position_ids is not None
    return replace(
        context,
        input_ids=np.concatenate([caption, context.input_ids]),
        token_type_ids=np.concatenate([np.zeros(len(caption), dtype=np.int64), context.token_type_ids]),
        position_ids=np.concatenate([np.arange(len(caption)), context.position_ids]),
        caption_length=len(caption),
        record=record,
    )


TRAINING_ITEMS = ("captions", "images")


@dataclass(kw_only=True, eq=False, repr=False)
class CaptioningDataModule(RegionDataModule):
    """Caption files, a RegionStore and a tokenizer → batches.

    A split is one of `{karpathy: FILE, splits: [train, restval]}`, `{coco: FILE}` (also NoCaps), `{jsonl: FILE}` and
    `{published: YAML}`, with `official: FILE` for NoCaps (`read_published_split`).

    Args:
        training_items: `captions` with hidden words for cross-entropy, or `images` for self-critical training.
        max_caption_tokens, mask_probability, max_masked_tokens: see `CaptionLimits`.
        on_missing_captions: `error` or `skip` images without captions and blank captions.
        the others: see `RegionDataModule`.
    """

    training_items: str = "captions"
    max_caption_tokens: int = 40
    mask_probability: float = 0.15
    max_masked_tokens: int = 3
    on_missing_captions: str = "error"
    max_tokens: int = 70
    max_regions: int = 50
    eval_batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_items not in TRAINING_ITEMS:
            choices = ", ".join(TRAINING_ITEMS)
            raise UserError(f"data.training_items is '{self.training_items}': choose one of {choices}.")
        self.caption_limits = CaptionLimits(
            self.max_caption_tokens, self.max_tokens, self.mask_probability, self.max_masked_tokens
        )

    def read_split(self, split: str) -> CaptionRecords:
        files = plain(self.split_files(split))
        if not isinstance(files, dict) or "published" not in files:
            return read_caption_split(files, split, self.on_missing_captions)
        named = checked_entry(files, f"data.splits.{split}", ("published",), ("official",))
        handling = checked_handling(self.on_missing_captions)
        records = read_published_split(named["published"], named.get("official"), handling)
        tell_skipped(records, split)
        return records

    def commonest_of(self, records: CaptionRecords) -> Commonest:
        """Under "" the commonest caption."""
        return {} if records.captions is None else {"": Counter(records.captions).most_common(1)[0][0]}

    def make_dataset(
        self, records: CaptionRecords, images: np.ndarray, stage: str
    ) -> CaptionDataset | CaptionedImageDataset:
        split = self.split_of[stage]
        match plain(self.split_files(split)):
            case {"published": str(file)} if split in self.own_stores and Path(file).suffix == ".yaml":
                self._tell_other_rows(records, images, split, file)
        contexts = CaptionedImageDataset(records, images, self.region_text, self.caption_limits)
        if stage != "train" or self.training_items == "images":
            return contexts
        assert records.captions is not None
        special = self.region_text.special
        return CaptionDataset(
            contexts,
            self.tokens_of(records.captions),
            Replacements(special.mask_token_id, special.unk_token_id, len(self.tokenizer)),
            self.seed,
        )

    def _tell_other_rows(self, records: CaptionRecords, images: np.ndarray, split: str, file: str) -> None:
        """Warns where the features of a split are of other images, or in another order: published code joins by row."""
        if len(left := np.setdiff1d(np.arange(len(self.store)), images)):
            rank_zero_warn(
                f"{self.store!r} has features of {len(left):,} images without a record in split '{split}' ({file}), "
                f"the first in row {left[0] + 1}, '{self.store.at(int(left[0])).image_id}': they are not read; if they "
                "should be, give the split's file with them."
            )
        if len(other := np.flatnonzero(np.diff(images) < 0)):
            first = int(other[0]) + 1
            rank_zero_warn(
                f"{self.store!r} has images in another order than split '{split}': {records.describe(first)} has the "
                f"features of row {images[first] + 1}. They are joined by id, so nothing need be done; the published "
                "code joins them by row."
            )

    def check_scorable(self, stage: str) -> None:
        dataset: Any = self.datasets[stage]
        records: CaptionRecords = dataset.records
        domains: list[str | None] = [None] * len(records)
        if stage != "train" and "domain" in records:  # each is scored by itself
            domains = list(records["domain"])
        for domain in dict.fromkeys(domains):
            images = [image for image, of in enumerate(domains) if of == domain]
            if not any(any(regex_tokenize(records.captions_of(image))) for image in images):
                raise no_words(records.captions_of(images[0])[0], domain)

"""Pre-training batches: triplets, matched and mismatched, with hidden tokens; all of a batch is made at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vinvl.data.batch import Batch
from vinvl.data.image_regions import gather_regions
from vinvl.data.pretraining_assembly import TokenRows, assemble_pairs
from vinvl.data.pretraining_masking import mask_tokens
from vinvl.data.pretraining_pairs import (
    ANSWER,
    NO_PAIR_LABEL,
    PairDraws,
    PairOptions,
    Triplets,
    matched_triplets,
    mismatch,
)
from vinvl.data.pretraining_rows import CorpusRows
from vinvl.data.sampling import Draw
from vinvl.errors import UserError
from vinvl.models.packing import PackedLayout

VARIANTS = ("oscar", "mmf", "matched")


class PretrainingDataset(Dataset[Draw]):
    """One split; what is random in a batch depends on (seed, epoch, first item of the batch) alone.

    An item is its draw, and `collate` makes the batch of the draws: a step over the batch costs what a step over one
    example would.

    Variants: "oscar" makes one triplet of a row, which may be mismatched, with hidden tokens. "mmf" makes 2B of B rows:
    first the matched ones with hidden tokens and no label, then those that may be mismatched, with labels and nothing
    hidden. "matched" makes matched ones with hidden tokens alone, for training without contrast.
    """

    def __init__(
        self,
        rows: CorpusRows,
        *,
        options: PairOptions,
        variant: str,
        mask_probability: float,
        vocab_size: int,
        seed: int,
        one_pass: bool,
    ) -> None:
        """
        Args:
            rows: the corpus.
            options: how triplets are mismatched.
            variant: see the class.
            mask_probability: share of the tokens that are hidden.
            vocab_size: random tokens are drawn from 0 … vocab_size - 1.
            seed: of all draws.
            one_pass: take every row once, as evaluation does, whatever passes the corpora are given.

        Raises:
            UserError: mode 2 without questions, or contrast over the rows of a single image.
        """
        if options.textb_sample_mode == ANSWER and options.texta_false_prob < 0.5 and not len(rows.answer_rows):
            raise UserError(
                "data.textb_sample_mode=2 takes wrong second texts from answers, and no corpus of the split has any: "
                "add one with questions, or choose mode 0 or 1."
            )
        if variant != "matched" and (rows.images == rows.images[0]).all():
            raise UserError(
                f"All {len(rows):,} rows of the split are of one image ({rows.mixture.describe(0)} is the first), so "
                "that none can be mismatched: add rows of other images, or pass data.variant=matched."
            )
        self.rows = rows
        self.options = options
        self.variant = variant
        self.mask_probability = mask_probability
        self.vocab_size = vocab_size
        self.seed = seed
        sizes = np.diff(rows.mixture.starts)
        passes = np.array([1.0 if one_pass else share.passes for share in rows.mixture.shares])
        # A corpus that is not empty gives an item at least.
        self._items = np.where(sizes > 0, np.maximum(np.rint(sizes * passes), 1), 0).astype(np.int64)
        self._item_starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self._items)])
        weights = np.array([share.loss_weight for share in rows.mixture.shares], dtype=np.float32)
        self._weights = None if (weights == 1).all() else weights

    @property
    def num_pair_classes(self) -> int:
        """Classes of the contrastive label."""
        return self.options.num_classes(self.rows.region_text.limits.use_tags)

    def __len__(self) -> int:
        return int(self._item_starts[-1])

    def __getitem__(self, draw: Draw) -> Draw:
        return draw

    def lengths(self) -> np.ndarray:
        """(items,) int16: tokens and regions of each item as it is in epoch 0; see `CorpusRows.lengths`."""
        lengths = self.rows.lengths()
        if np.array_equal(self._items, np.diff(self.rows.mixture.starts)):
            return lengths
        return lengths[self.row_of(np.arange(len(self)), 0)]

    def row_of(self, items: np.ndarray, epoch: int) -> np.ndarray:
        """(n,) int64: the row behind each item of an epoch; epochs go round a corpus where they left it."""
        number = np.searchsorted(self._item_starts, items, side="right") - 1
        starts = self.rows.mixture.starts
        turned = items - self._item_starts[number] + epoch * self._items[number]
        return np.asarray(starts[number] + turned % np.diff(starts)[number])

    def collate(self, items: Sequence[Draw]) -> Batch:
        """The batch of B draws of one epoch: B triplets, or 2B; see `Batch` for the fields, and the class."""
        epoch, first = items[0].epoch, items[0].index
        generator = np.random.default_rng((self.seed, epoch, first))
        rows = self.row_of(np.array([draw.index for draw in items], dtype=np.int64), epoch)
        triplets = self._triplets(rows, generator)
        tokens = self._tokens(triplets)
        maskable = (tokens.text & triplets.mask_first[:, None]) | (tokens.second_text & triplets.mask_second[:, None])
        input_ids, masked = mask_tokens(
            tokens.input_ids,
            maskable,
            generator.random(maskable.shape),
            generator.integers(0, self.vocab_size, maskable.shape),
            self.rows.region_text.special.mask_token_id,
            self.mask_probability,
        )
        parts = [self.rows.region_text.image_regions(int(image)) for image in self.rows.image_of(rows)]
        parts *= len(triplets.labels) // len(rows)
        regions = gather_regions(parts)
        attention_mask = _attention_mask(tokens, np.array([len(part) for part in parts]), regions.slots)
        contrast = bool((triplets.labels != NO_PAIR_LABEL).any())
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            token_type_ids=torch.from_numpy(tokens.token_type_ids),
            attention_mask=torch.from_numpy(attention_mask),
            regions=regions,
            labels=torch.from_numpy(tokens.input_ids[masked]),
            records=tuple({"index": row} for row in triplets.image_rows.tolist()),
            masked_positions=torch.from_numpy(masked),
            pair_labels=torch.from_numpy(triplets.labels) if contrast else None,
            loss_weights=self._loss_weights(triplets.image_rows),
            layout=PackedLayout.of_mask(attention_mask, input_ids.shape[1]),
            items=len(items),
        )

    def _triplets(self, rows: np.ndarray, generator: np.random.Generator) -> Triplets:
        if self.variant == "matched":
            return matched_triplets(rows, label=NO_PAIR_LABEL)
        answers = self.rows.answer_rows if self.options.textb_sample_mode == ANSWER else None
        answers = None if answers is None or len(answers) == 0 else answers
        draws = PairDraws.draw(len(rows), len(self.rows), answers, generator)
        mixed = mismatch(rows, draws, self.options, self.num_pair_classes, self.rows.image_of, self.rows.has_second)
        if self.variant == "oscar":
            return mixed
        return matched_triplets(rows, label=NO_PAIR_LABEL) + mixed.unmasked()

    def _tokens(self, triplets: Triplets) -> TokenRows:
        return assemble_pairs(
            self.rows.texts(triplets.first_rows, np.zeros_like(triplets.first_rows)),
            self.rows.texts(triplets.second_rows, triplets.second_sides),
            max_tokens=self.rows.region_text.limits.max_tokens,
            special=self.rows.region_text.special,
        )

    def _loss_weights(self, rows: np.ndarray) -> torch.Tensor | None:
        if self._weights is None:
            return None
        return torch.from_numpy(self._weights[self.rows.mixture.corpus_of(rows)])

    def show(self, item: Draw, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        batch = self.collate([item])
        lines = [f"  row       {self.rows.mixture.describe(batch.records[0]['index'])}"]
        for place in range(len(batch)):
            shown = words(batch.input_ids[place][batch.attention_mask[place, : batch.input_ids.shape[1]]].numpy())
            lines.append(f"  tokens    {' '.join(shown)}")
        assert batch.labels is not None
        lines.append(f"  hidden    {' '.join(words(batch.labels.numpy())) or '(none)'}")
        if batch.pair_labels is not None:
            lines.append(f"  label     {int(batch.pair_labels[-1])} (0 is matched)")
        lines.append(f"  regions   {batch.regions.slots} rows of {batch.region_features.shape[2]} numbers")
        return lines


def _attention_mask(tokens: TokenRows, num_regions: np.ndarray, most_regions: int) -> np.ndarray:
    """(B, L + R) bool: True where there is a token or a region."""
    text = np.arange(tokens.input_ids.shape[1]) < tokens.num_tokens[:, None]
    return np.concatenate([text, np.arange(most_regions) < num_regions[:, None]], axis=1)

"""Pre-training batches: triplets, matched and mismatched, with hidden tokens; all of a batch is made at once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import Dataset

from vinvl.data.batch import Batch, gather_regions
from vinvl.data.module import RegionDataArguments, RegionDataModule, checked_entry, plain
from vinvl.data.sampling import Draw
from vinvl.data.text import load_tokenizer
from vinvl.models.packing import PackedLayout
from vinvl.models.pretraining import NO_PAIR_LABEL
from vinvl.pretraining.corpus import Corpus, RowKind, ensure_index
from vinvl.pretraining.published import make_published_corpus
from vinvl.pretraining.triplets import (
    ANSWER,
    CorpusRows,
    CorpusShare,
    Mixture,
    PairDraws,
    PairOptions,
    Triplets,
    assemble_pairs,
    mask_tokens,
    mismatch,
)
from vinvl.run.errors import UserError

VARIANTS = ("oscar", "mmf", "matched")


class PretrainingDataset(Dataset[Draw]):
    """One split; random choices in a batch depend only on (seed, epoch, first item of the batch).

    An item is its draw, and `collate` makes the batch of the draws: a step over the batch costs what a step over one
    example would.

    Variants: "oscar" makes one triplet of a row, which may be mismatched, with hidden tokens. "mmf" makes 2B of B rows:
    first the matched ones with hidden tokens and no label, then those that may be mismatched, with labels and nothing
    hidden. "matched" makes only matched ones with hidden tokens, for training without contrast.
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
            options, variant: how triplets are mismatched, and see the class.
            mask_probability: share of the tokens that are hidden.
            vocab_size: random tokens are drawn from 0 … vocab_size - 1.
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
        self._item_starts = np.insert(np.cumsum(self._items), 0, 0)
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
        epoch, first, text = items[0].epoch, items[0].index, self.rows.region_text
        generator = np.random.default_rng((self.seed, epoch, first))
        rows = self.row_of(np.array([draw.index for draw in items], dtype=np.int64), epoch)
        triplets = self._triplets(rows, generator)
        tokens = assemble_pairs(
            self.rows.texts(triplets.first_rows, np.zeros_like(triplets.first_rows)),
            self.rows.texts(triplets.second_rows, triplets.second_sides),
            max_tokens=text.limits.max_tokens,
            special=text.special,
        )
        maskable = (tokens.text & triplets.mask_first[:, None]) | (tokens.second_text & triplets.mask_second[:, None])
        input_ids, masked = mask_tokens(
            tokens.input_ids,
            maskable,
            generator.random(maskable.shape),
            generator.integers(0, self.vocab_size, maskable.shape),
            text.special.mask_token_id,
            self.mask_probability,
        )
        parts = [text.image_regions(int(image)) for image in self.rows.image_of(rows)]
        parts *= len(triplets.labels) // len(rows)
        regions = gather_regions(parts)
        is_token = np.arange(input_ids.shape[1]) < tokens.num_tokens[:, None]
        is_region = np.arange(regions.slots) < regions.stored[:, 1:]
        attention_mask = np.concatenate([is_token, is_region], axis=1)
        weights = None if self._weights is None else self._weights[self.rows.mixture.corpus_of(triplets.image_rows)]
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
            loss_weights=None if weights is None else torch.from_numpy(weights),
            layout=PackedLayout.of_mask(attention_mask, input_ids.shape[1]),
            items=len(items),
        )

    def _triplets(self, rows: np.ndarray, generator: np.random.Generator) -> Triplets:
        if self.variant == "matched":
            return Triplets.matched(rows)
        wanted = self.options.textb_sample_mode == ANSWER and len(self.rows.answer_rows)
        answers = self.rows.answer_rows if wanted else None
        draws = PairDraws.draw(len(rows), len(self.rows), answers, generator)
        mixed = mismatch(rows, draws, self.options, self.num_pair_classes, self.rows.image_of, self.rows.has_second)
        if self.variant == "oscar":
            return mixed
        nothing = np.zeros_like(mixed.mask_first)
        return Triplets.matched(rows).followed_by(mixed._replace(mask_first=nothing, mask_second=nothing))

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


SHARES, SHARE = ("loss_weight", "passes"), "validation_share"


class PretrainingDataModule(RegionDataModule):
    """Corpus files, a RegionStore and a tokenizer → batches.

    A split is a corpus file (JSONL, see `corpus_row`), or a list of corpora, each a file or
    `{file: FILE, loss_weight: 1.0, passes: 1.0}` (see `CorpusShare`). A folder stands for the .jsonl files in it. Files
    are indexed beside themselves on first use.

    Args:
        variant: `oscar`, `mmf` or `matched`, see `PretrainingDataset`.
        textb_sample_mode, texta_false_prob, mask_loss_for_unmatched: see `PairOptions`.
        mask_probability: share of the tokens that are hidden.
        index_workers: processes that index a corpus file.
        corpus: `{from: YAML, to: FOLDER, validation_share: SHARE}`: the published corpus that the folder is made of
            where a split in use lies there, and it does not exist; see `make_published_corpus`.
        shared: see `RegionDataArguments`.
    """

    def __init__(
        self,
        *,
        variant: str,
        textb_sample_mode: int,
        texta_false_prob: float,
        mask_loss_for_unmatched: bool,
        mask_probability: float,
        index_workers: int,
        corpus: Mapping[str, Any] | None = None,
        **shared: Unpack[RegionDataArguments],
    ) -> None:
        super().__init__(**shared)
        if variant not in VARIANTS:
            raise UserError(f"data.variant is '{variant}': choose one of {', '.join(VARIANTS)}.")
        if not 0 <= mask_probability <= 1:
            raise UserError(f"data.mask_probability is {mask_probability}: give a share from 0 to 1.")
        if shared["max_tokens"] < 4:
            raise UserError(f"data.max_tokens is {shared['max_tokens']}: a pair of texts takes 5 tokens at least.")
        self.variant = variant
        self.pair_options = PairOptions(textb_sample_mode, texta_false_prob, mask_loss_for_unmatched)
        self.mask_probability = mask_probability
        self.index_workers = index_workers
        self._tags_given = False  # by a corpus
        self.corpus = None if corpus is None else checked_entry(corpus, "data.corpus", ("from", "to"), (SHARE,))

    def prepare_data(self) -> None:
        """Generates the demo corpus, converts the published one, and indexes files that have no current index."""
        super().prepare_data()
        tokenizer = load_tokenizer(self.tokenizer_name)
        used = sorted(set(self.split_of.values()) & set(self.splits))
        if self.corpus is not None:
            source, folder = Path(self.corpus["from"]).expanduser(), Path(self.corpus["to"])
            if any(folder in Path(file).parents for split in used for file, *_ in self.corpora_of(split)):
                make_published_corpus(source, folder, self.corpus.get(SHARE, 0.01), self.index_workers)
        for split in used:
            for file, *_ in self.corpora_of(split):
                ensure_index(file, tokenizer, self.index_workers)

    def read_split(self, split: str) -> Mixture:
        shares = []
        for file, loss_weight, passes in self.corpora_of(split):
            corpus = ensure_index(file, self.tokenizer, self.index_workers)
            self._check_tags(corpus)
            shares.append(CorpusShare(corpus, loss_weight, passes))
        return Mixture.of(shares)

    def places_of(self, records: Mixture) -> np.ndarray:
        """(N,) int32: half of what int64 would take of every rank's memory."""
        return records.positions_in(self.store)

    def make_dataset(self, records: Mixture, images: np.ndarray, stage: str) -> PretrainingDataset:
        return PretrainingDataset(
            CorpusRows(records, images, self.region_text),
            options=self.pair_options,
            variant=self.variant,
            mask_probability=self.mask_probability,
            vocab_size=len(self.tokenizer),
            seed=self.seed,
            one_pass=stage != "train",
        )

    @property
    def num_pair_classes(self) -> int:
        """Classes of the contrastive label."""
        return self.pair_options.num_classes(self.limits.use_tags)

    def warn_of_no_tags(self, sentence: str) -> None:
        if not self._tags_given:
            super().warn_of_no_tags(sentence)

    def _check_tags(self, corpus: Corpus) -> None:
        """Tags should be classes of the store, which all other tasks see; UserError if not one of them is."""
        self._tags_given |= bool(corpus.facts.tags)
        given, classes = corpus.facts.tags, {name.lower() for name in self.store.label_map.classes}
        untagged = corpus.facts.kinds.get(RowKind.STORE_TAGS.name.lower(), 0)
        if untagged and not classes and self.tags is None and self.limits.use_tags:
            raise UserError(
                f"{corpus.source} leaves the tags of {untagged:,} rows to the classes of the store, and {self.store!r} "
                "has none: convert the corpus without --store-tags, or pass data.tags=FILE, or data.use_tags=false."
            )
        unknown = [tag for tag in given if tag.lower() not in classes]
        if not unknown or not classes:
            return
        if len(unknown) == len(given):
            raise UserError(
                f"{corpus.source} has tags of another label set: none of its {len(given):,} tag names (such as "
                f"'{unknown[0]}') is a class of {self.store!r}; tag it with that store's classes or leave the tags out."
            )
        rank_zero_warn(
            f"{corpus.source}: {len(unknown):,} of its {len(given):,} tag names are no classes of {self.store!r}, "
            f"such as '{unknown[0]}'."
        )

    def corpora_of(self, split: str) -> list[tuple[str, float, float]]:
        """The corpora of a split: (file, loss_weight, passes); nothing but folders is opened.

        Raises:
            UserError: there is no such split, it names no corpus, or a weight or number of passes that means nothing.
        """
        files, place = plain(self.split_files(split)), f"data.splits.{split}"
        found: list[tuple[str, float, float]] = []
        for given in files if isinstance(files, list) else [files]:
            entry = checked_entry({"file": given} if isinstance(given, str) else given, place, ("file",), SHARES)
            weight, passes = (entry.get(key, 1.0) for key in SHARES)
            for key, number in zip(SHARES, (weight, passes), strict=True):
                if not isinstance(number, int | float):
                    raise UserError(f"{place} has the {key} {number!r}: give a number.")
            if not weight >= 0 or not passes > 0:
                raise UserError(
                    f"{place}: {entry['file']} has loss_weight {weight} and passes {passes}: give a weight from 0 and "
                    "more than 0 passes."
                )
            found += [(file, float(weight), float(passes)) for file in _files(entry["file"])]
        if not found:
            raise UserError(f"{place} names no corpus; give it a file.")
        return found


def _files(path: str) -> list[str]:
    """The corpus files of a folder, by name; a file is itself."""
    if not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for file in Path(path).glob("*.jsonl") if not file.is_dir())
    if not files:
        raise UserError(f"{path} is a folder without corpus files (.jsonl); check the path.")
    return files

"""Pre-training batches: triplets, matched and mismatched, with hidden tokens; all of a batch is made at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from vinvl.data.batch import Batch, gather_regions
from vinvl.data.module import RegionDataModule, checked_entry
from vinvl.data.sampling import Draw, training_loader
from vinvl.data.text import load_tokenizer
from vinvl.models.packing import PackedLayout
from vinvl.models.pretraining import NO_PAIR_LABEL
from vinvl.pretraining.corpus import Corpus, RowKind, ensure_index
from vinvl.pretraining.entries import CorpusEntry, corpus_entries
from vinvl.pretraining.published import make_published_corpus
from vinvl.pretraining.triplets import (
    ANSWER,
    MATCHED_ABOVE,
    CorpusRows,
    CorpusShare,
    Mixture,
    PairDraws,
    PairOptions,
    TextPool,
    Triplets,
    assemble_pairs,
    mask_tokens,
    mismatch,
)
from vinvl.pretraining.vivo import check_tag_words, tag_sets, tagged_rows
from vinvl.run.errors import UserError

VIVO = "vivo"  # tags alone, see `vinvl.pretraining.vivo`
WITHOUT_CONTRAST = ("matched", VIVO)
VARIANTS = ("oscar", "mmf", *WITHOUT_CONTRAST)


class PretrainingDataset(Dataset[Draw]):
    """One split; random choices in a batch depend only on (seed, epoch, first item of the batch).

    An item is its draw, and `collate` makes the batch of the draws: a step over the batch costs what a step over one
    example would.

    Variants: "oscar" makes one triplet of a row, which may be mismatched, with hidden tokens. "mmf" makes 2B of B rows:
    first the matched ones with hidden tokens and no label, then those that may be mismatched, with labels and nothing
    hidden. "matched" makes only matched ones with hidden tokens, for training without contrast. "vivo" makes of a row
    its tags alone, some of them hidden, see `vinvl.pretraining.vivo`.

    Wrong texts come from the pool of the row (`Mixture.pools`), by the pool's own mode if it has one.
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
        paired: bool = False,
        tag_position: int = 0,
        tags_as_words: bool = False,
        unk_token_id: int | None = None,
    ) -> None:
        """
        Args:
            options, variant: how triplets are mismatched, and see the class.
            mask_probability: share of the tokens that are hidden.
            vocab_size: random tokens are drawn from 0 … vocab_size - 1.
            one_pass: take every row once, as evaluation does, whatever passes the corpora are given.
            paired: losses are means over each pool's rows of a batch, not over all of its rows, and their sum is
                weighted: as published for a corpus and an extra one.
            tag_position, tags_as_words, unk_token_id: of the variant vivo, see `tag_sets`.

        Raises:
            UserError: mode 2 without questions, contrast over the rows of a single image, or pairs without a partner.
        """
        self.rows = rows
        self.paired = paired
        self.options = options
        self.variant = variant
        self.mask_probability = mask_probability
        self.vocab_size = vocab_size
        self.seed = seed
        self.tag_position, self.tags_as_words, self.unk_token_id = tag_position, tags_as_words, unk_token_id
        sizes = np.diff(rows.mixture.starts)
        passes = np.array([1.0 if one_pass else share.passes for share in rows.mixture.shares])
        # A corpus that is not empty gives an item at least.
        self._items = np.where(sizes > 0, np.maximum(np.rint(sizes * passes), 1), 0).astype(np.int64)
        self._item_starts = np.insert(np.cumsum(self._items), 0, 0)
        weights = np.array([share.loss_weight for share in rows.mixture.shares], dtype=np.float32)
        self._weights = None if (weights == 1).all() and not paired else weights
        self._pools = [self._pool(pool) for pool in rows.mixture.pools]

    def _pool(self, pool: TextPool) -> tuple[TextPool, PairOptions, np.ndarray | None]:
        """A pool with its options, and its questions (A,) where wrong second texts are answers; see the class."""
        mode, size, rows = pool.textb_sample_mode, pool.end - pool.start, self.rows
        options = self.options if mode is None else replace(self.options, textb_sample_mode=mode)
        alone = len(rows.mixture.pools) == 1
        file = rows.mixture.shares[pool.first_share].corpus.source
        if self.paired and (alone or not size):
            wrong = "data.splits names one" if alone else f"{file} has no rows with regions in the store"
            raise UserError(
                f"data.paired=true takes rows of two corpora or more, and {wrong}: add rows, or leave it out."
            )
        if not size or self.variant in WITHOUT_CONTRAST:
            return pool, options, None
        images, where = rows.images[pool.start : pool.end], "the split" if alone else f"{file}"
        if (images == images[0]).all():
            raise UserError(
                f"All {size:,} rows of {where} are of one image ({rows.mixture.describe(pool.start)} is the first), so "
                "that none can be mismatched: add rows of other images, or pass data.variant=matched."
            )
        if options.textb_sample_mode != ANSWER:
            return pool, options, None
        first, last = np.searchsorted(rows.answer_rows, [pool.start, pool.end])
        if first == last and options.texta_false_prob < MATCHED_ABOVE:
            raise UserError(
                f"textb_sample_mode=2 takes wrong second texts from answers, and {where} has none: add rows with "
                "questions, or choose mode 0 or 1."
            )
        answers = rows.answer_rows[first:last] if first < last else None
        return pool, options, answers

    @property
    def part_starts(self) -> list[int]:
        """The first item of each pool, and how many there are."""
        return [*(int(self._item_starts[pool.first_share]) for pool, *_ in self._pools), len(self)]

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

    def row_of(self, items: np.ndarray, epoch: int | np.ndarray) -> np.ndarray:
        """(n,) int64: the row behind each item of its epoch; epochs go round a corpus where they left it."""
        number = np.searchsorted(self._item_starts, items, side="right") - 1
        starts = self.rows.mixture.starts
        turned = items - self._item_starts[number] + epoch * self._items[number]
        return np.asarray(starts[number] + turned % np.diff(starts)[number])

    def collate(self, items: Sequence[Draw]) -> Batch:
        """The batch of B draws: B triplets, or 2B; see `Batch` for the fields, and the class."""
        epoch, first, text = items[0].epoch, items[0].index, self.rows.region_text
        generator = np.random.default_rng((self.seed, epoch, first))
        wanted = np.array([(draw.index, draw.epoch) for draw in items], dtype=np.int64)
        rows = self.row_of(wanted[:, 0], wanted[:, 1])
        if self.variant == VIVO:
            batch = tag_sets(
                rows,
                self.rows,
                generator,
                mask_probability=self.mask_probability,
                position=self.tag_position,
                as_words=self.tags_as_words,
                words=self.vocab_size,
                unk_token_id=self.unk_token_id,
            )
            return replace(batch, loss_weights=self._weights_of(rows))
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
        weights = self._row_weights(triplets, masked)
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

    def _row_weights(self, triplets: Triplets, masked: np.ndarray) -> np.ndarray | None:
        """(B,), or (B, 2) for the two losses, float32; `masked` (B, L) bool.

        Losses are divided by the hidden tokens, or labelled rows, of the whole batch. Paired, each pool is to have a
        mean of its own, so that its rows also count by the share that they are of these.
        """
        if self._weights is None:
            return None
        weights = self._weights[self.rows.mixture.corpus_of(triplets.image_rows)]
        if not self.paired:
            return weights
        pools = self.rows.mixture.pool_of(triplets.image_rows)
        counts = np.stack([masked.sum(axis=1), triplets.labels != NO_PAIR_LABEL], axis=1)  # (B, 2)
        of_pools = np.stack([np.bincount(pools, column, len(self._pools)) for column in counts.T], axis=1)
        factors = counts.sum(axis=0) / np.maximum(of_pools, 1)  # (pools, 2)
        return np.asarray(weights[:, None] * factors[pools], dtype=np.float32)

    def _mismatched(self, rows: np.ndarray, number: int, generator: np.random.Generator) -> Triplets:
        """Triplets of rows that are all of one pool."""
        pool, options, answers = self._pools[number]
        draws = PairDraws.draw(len(rows), pool.end - pool.start, answers, generator)
        draws = draws._replace(rows=draws.rows + pool.start)  # answers are rows of the mixture already
        return mismatch(rows, draws, options, self.num_pair_classes, self.rows.image_of, self.rows.has_second)

    def _weights_of(self, rows: np.ndarray) -> torch.Tensor | None:
        """(n,) float32; None where all are 1."""
        return None if self._weights is None else torch.from_numpy(self._weights[self.rows.mixture.corpus_of(rows)])

    def _triplets(self, rows: np.ndarray, generator: np.random.Generator) -> Triplets:
        if self.variant == "matched":
            return Triplets.matched(rows)
        pools = self.rows.mixture.pool_of(rows)
        order = np.argsort(pools, kind="stable")
        mixed = reduce(
            Triplets.followed_by,
            [self._mismatched(rows[pools == number], number, generator) for number in np.unique(pools).tolist()],
        ).at(np.argsort(order))
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


SHARE = "validation_share"


@dataclass(kw_only=True, eq=False, repr=False)
class PretrainingDataModule(RegionDataModule):
    """Corpus files, a RegionStore and a tokenizer → batches.

    A split is a corpus file (JSONL, see `corpus_row`), or a list of corpora, each a file or
    `{file: FILE, loss_weight: 1.0, passes: 1.0, textb_sample_mode: MODE}` (see `CorpusShare`), FILE being a list where
    several are one corpus. A folder stands for the .jsonl files in it. Files are indexed beside themselves on first
    use. A corpus with a mode of its own draws wrong texts from itself; those without draw from each other.

    Args:
        variant: `oscar`, `mmf`, `matched` or `vivo`, see `PretrainingDataset`.
        textb_sample_mode, texta_false_prob, mask_loss_for_unmatched: see `PairOptions`.
        mask_probability: share of the tokens that are hidden.
        index_workers: processes that index a corpus file.
        paired: every training batch has `batch_size` rows of each corpus of the list, which draw wrong texts from
            themselves, and the loss is the sum of each one's loss times its weight (published `extra_dataset_file`).
        tag_position: of the variant vivo, the position of the first tag.
        tags_as_words: of the variant vivo, hidden tags stand as a caption's hidden words, see `vinvl.pretraining.vivo`.
        corpus: `{from: YAML, to: FOLDER, validation_share: SHARE}`: the published corpus that the folder is made of
            where a split in use lies there, and it does not exist; see `make_published_corpus`.
        the others: see `RegionDataModule`.
    """

    variant: str = "oscar"
    textb_sample_mode: int = 1
    texta_false_prob: float = 0.25
    mask_loss_for_unmatched: bool = True
    mask_probability: float = 0.15
    index_workers: int = 4
    paired: bool = False
    tag_position: int = 0
    tags_as_words: bool = False
    corpus: Mapping[str, Any] | None = None
    max_tokens: int = 35
    max_regions: int = 50
    on_missing: str = "skip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise UserError(f"data.variant is '{self.variant}': choose one of {', '.join(VARIANTS)}.")
        if not 0 <= self.mask_probability <= 1:
            raise UserError(f"data.mask_probability is {self.mask_probability}: give a share from 0 to 1.")
        if self.max_tokens < 4:
            raise UserError(f"data.max_tokens is {self.max_tokens}: a pair of texts takes 5 tokens at least.")
        if self.paired and self.variant == VIVO:
            raise UserError(
                "data.paired=true sums the losses of corpora of texts; leave it out with data.variant=vivo."
            )
        if self.tag_position < 0:
            raise UserError(f"data.tag_position is {self.tag_position}: give the position of the first tag, from 0.")
        self.pair_options = PairOptions(self.textb_sample_mode, self.texta_false_prob, self.mask_loss_for_unmatched)
        self._tags_given = False  # by a corpus
        if self.corpus is not None:
            self.corpus = checked_entry(self.corpus, "data.corpus", ("from", "to"), (SHARE,))

    def prepare_data(self) -> None:
        """Generates the demo corpus, converts the published one, and indexes files that have no current index."""
        super().prepare_data()
        tokenizer = load_tokenizer(self.tokenizer_name)
        used = sorted(set(self.split_of.values()) & set(self.splits))
        if self.corpus is not None:
            source, folder = Path(self.corpus["from"]).expanduser(), Path(self.corpus["to"])
            if any(folder in Path(file).parents for split in used for file in self._files_of(split)):
                make_published_corpus(source, folder, self.corpus.get(SHARE, 0.01), self.index_workers)
        for split in used:
            for file in self._files_of(split):
                ensure_index(file, tokenizer, self.index_workers)

    def read_split(self, split: str) -> Mixture:
        shares = []
        for entry in self.corpora_of(split):
            for file in entry.files:
                corpus = ensure_index(file, self.tokenizer, self.index_workers)
                if self.variant == VIVO:
                    self._tags_given |= bool(corpus.facts.tags)
                    check_tag_words(corpus, self.tokenizer)
                else:
                    self._check_tags(corpus)
                shares.append(CorpusShare(corpus, *entry[1:]))
        return Mixture.of(shares)

    def places_of(self, records: Mixture) -> np.ndarray:
        """(N,) int32: half of what int64 would take of every rank's memory."""
        return records.positions_in(self.store)

    def make_dataset(self, records: Mixture, images: np.ndarray, stage: str) -> PretrainingDataset:
        rows = CorpusRows(records, images, self.region_text)
        return PretrainingDataset(
            tagged_rows(rows) if self.variant == VIVO else rows,
            options=self.pair_options,
            variant=self.variant,
            mask_probability=self.mask_probability,
            vocab_size=len(self.tokenizer),
            seed=self.seed,
            one_pass=stage != "train",
            paired=self.paired and stage == "train",
            tag_position=self.tag_position,
            tags_as_words=self.tags_as_words,
            unk_token_id=self.tokenizer.unk_token_id,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self.datasets["train"]
        assert isinstance(dataset, PretrainingDataset)
        part_starts = dataset.part_starts if self.paired else None
        return training_loader(self, dataset, self.finish("train"), part_starts=part_starts)

    @property
    def num_pair_classes(self) -> int:
        """Classes of the contrastive label."""
        return self.pair_options.num_classes(self.limits.use_tags)

    def warn_of_no_tags(self, sentence: str) -> None:
        if not self._tags_given:
            super().warn_of_no_tags(sentence)

    def _check_tags(self, corpus: Corpus) -> None:
        """Tags should be classes of the store, which all other tasks see; UserError if not one of them is."""
        if alone := corpus.facts.kinds.get(RowKind.TAGS_ALONE.name.lower(), 0):
            raise UserError(
                f"{corpus.source} has {alone:,} rows of tags without a text: pass data.variant=vivo, which learns from "
                "such, or give them texts."
            )
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
            f"such as '{unknown[0]}': if they are all to be, pass data.regions=STORE of the detector that named them."
        )

    def corpora_of(self, split: str) -> list[CorpusEntry]:
        """The corpora of a split. Raises UserError as `corpus_entries`, or if there is no such split."""
        return corpus_entries(self.split_files(split), f"data.splits.{split}", self.paired)

    def _files_of(self, split: str) -> list[str]:
        return [file for entry in self.corpora_of(split) for file in entry.files]

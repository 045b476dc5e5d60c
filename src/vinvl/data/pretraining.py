"""Oscar+ pre-training: corpora of (text, tags or answer, image) over a RegionStore → triplets with hidden tokens."""

from pathlib import Path
from typing import Any, Unpack

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.contracts import RegionDataArguments
from vinvl.data.corpus import Corpus, CorpusShare, Mixture, ensure_index
from vinvl.data.datamodule import RegionDataModule
from vinvl.data.pretraining_dataset import VARIANTS, PretrainingDataset
from vinvl.data.pretraining_pairs import PairOptions
from vinvl.data.pretraining_rows import CorpusRows
from vinvl.data.split_files import checked_entry, plain
from vinvl.data.text import load_tokenizer
from vinvl.errors import UserError

SHARES = ("loss_weight", "passes")


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
        self._rows_of: dict[str, tuple[Mixture, np.ndarray]] = {}

    def prepare_data(self) -> None:
        """Generates the demo corpus, and indexes corpus files that have no current index."""
        super().prepare_data()
        tokenizer = load_tokenizer(self.tokenizer_name)
        for split in sorted(set(self.split_of.values()) & set(self.splits)):
            for entry in self.corpora_of(split):
                ensure_index(entry["file"], tokenizer, self.index_workers)

    def read_split(self, split: str) -> Mixture:
        return Mixture.of(
            [
                CorpusShare(
                    ensure_index(entry["file"], self.tokenizer, self.index_workers),
                    float(entry.get("loss_weight", 1.0)),
                    float(entry.get("passes", 1.0)),
                )
                for entry in self.corpora_of(split)
            ]
        )

    def make_dataset(self, records: Mixture, images: np.ndarray, stage: str) -> PretrainingDataset:
        """`images` (N,) int32: half of what int64 would take of every rank's memory."""
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
        """Classes of the contrastive label, once `setup` has read a split."""
        dataset: Any = next(iter(self.datasets.values()))
        classes: int = dataset.num_pair_classes
        return classes

    def _dataset_of(self, stage: str) -> PretrainingDataset:
        split = self.split_of[stage]
        if split not in self._rows_of:  # read, and reported on, once for all stages
            mixture = self.read_split(split)
            self._rows_of[split] = self._rows_in_store(mixture)
            self.skipped[split] = len(mixture) - len(self._rows_of[split][0])
        return self.make_dataset(*self._rows_of[split], stage)

    def _rows_in_store(self, mixture: Mixture) -> tuple[Mixture, np.ndarray]:
        """The rows whose images are in the store, and where these lie there, (N,) int32."""
        for share in mixture.shares:
            self._check_tags(share.corpus)
        images = mixture.positions_in(self.store)
        present = images >= 0
        if present.all():
            return mixture, images
        self._report_missing(mixture, present)
        return mixture.select(present), images[present]

    def _report_missing(self, mixture: Mixture, present: np.ndarray) -> None:
        """Warns once of all rows whose image is not in the store, or refuses them; see `on_missing`."""
        first, missing = mixture.describe(int(np.argmin(present))), int((~present).sum())
        if self.on_missing != "skip" or not present.any():
            # One id alone: `image_ids` of the whole store as text would stay in memory.
            like = f"its ids are like '{self.store.at(0).image_id}'" if len(self.store) else "it is empty"
            remedy = "Extract the missing ones or pass data.on_missing=skip"
            raise UserError(
                f"{self.store!r} lacks the images of {missing:,} of {len(mixture):,} corpus rows, the first being "
                f"{first}; {like}. {remedy if present.any() else 'Is it the store of this corpus?'}"
                f"{'.' if present.any() else ''}"
            )
        rank_zero_warn(
            f"data.on_missing=skip: left out {missing:,} of {len(mixture):,} corpus rows whose images are not in "
            f"{self.store!r}, the first being {first}."
        )

    def _check_tags(self, corpus: Corpus) -> None:
        """Tags of a corpus should be the store's classes, which all other tasks see.

        Raises:
            UserError: not one of them is.
        """
        given, classes = corpus.manifest["tags"], {name.lower() for name in self.store.label_map.classes}
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

    def corpora_of(self, split: str) -> list[dict[str, Any]]:
        """The corpora of a split as mappings of file and SHARES, each of one file; nothing but folders is opened.

        Raises:
            UserError: there is no such split, or it names no corpus.
        """
        files, place = plain(self.split_files(split)), f"data.splits.{split}"
        entries = [
            {"file": entry} if isinstance(entry, str) else checked_entry(entry, place, ("file",), SHARES)
            for entry in (files if isinstance(files, list) else [files])
        ]
        if not entries:
            raise UserError(f"{place} names no corpus; give it a file.")
        for entry in entries:
            for key in SHARES:
                if not isinstance(entry.get(key, 1.0), int | float):
                    raise UserError(f"{place} has the {key} {entry[key]!r}: give a number.")
        return [{**entry, "file": file} for entry in entries for file in _files(entry["file"])]


def _files(path: str) -> list[str]:
    """The corpus files of a folder, by name; a file is itself."""
    if not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for file in Path(path).glob("*.jsonl") if not file.is_dir())
    if not files:
        raise UserError(f"{path} is a folder without corpus files (.jsonl); check the path.")
    return files

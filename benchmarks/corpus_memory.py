"""What a corpus of millions of rows costs each rank: seconds to the first batch, and memory.

Writes the index of a made-up corpus (captions of about 11 tokens with 20 tags, in 4 corpora) into a temporary folder
with the functions that index a corpus file, except that the token ids are random; then opens it as a rank does: looks
its images up in a store, of which nothing but ids and numbers of regions is real, and makes batches in a new process.

    python benchmarks/corpus_memory.py --rows 9000000 --images 1000000
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.data.tags import StoreTags, TagTokens
from vinvl.data.text import RaggedTokens
from vinvl.models.config import SpecialTokens
from vinvl.pretraining.corpus import FORMAT, Corpus, IndexFacts, Part, RowKind, write_index
from vinvl.pretraining.data import PretrainingDataset
from vinvl.pretraining.triplets import CorpusRows, CorpusShare, Mixture, PairOptions
from vinvl.regions import LabelMap, Regions

PART_ROWS = 100_000
VOCABULARY = 30_522
TEXT_TOKENS, TAG_TOKENS = 11, 26
REGIONS, FEATURES = 36, 2048
LABELS = LabelMap(("__background__", "dog"), ())


class StandInStore:
    """As a `RegionStore` of many images in one file, but all of them have the same regions."""

    def __init__(self, folder: Path) -> None:
        self.encoded_ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.feature_dim = FEATURES
        self.label_map = LABELS
        boxes = np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (REGIONS, 1))
        classes, none = np.ones(REGIONS, dtype=np.int32), np.zeros((REGIONS, 0), dtype=np.int32)
        features = np.ones((REGIONS, FEATURES), dtype=np.float16)
        self._regions = Regions("0", features, boxes, classes, boxes[:, 0], none, none.astype(np.float32), 10, 10)

    def __len__(self) -> int:
        return len(self.encoded_ids)

    @staticmethod
    def write(folder: Path, images: int) -> None:
        np.save(folder / "ids.npy", np.char.zfill(np.arange(images).astype("S12"), 12))

    @property
    def num_regions(self) -> np.ndarray:
        return np.full(len(self), REGIONS, dtype=np.int64)

    def at(self, index: int) -> Regions:
        return self._regions


def made_up_parts(rows: int, images: int, seed: int) -> Iterator[Part]:
    generator = np.random.default_rng(seed)
    for first in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - first)
        lengths = generator.poisson((TEXT_TOKENS, TAG_TOKENS), (count, 2)).clip(1).astype(np.uint16)
        ids, numbers = np.unique(generator.integers(0, images, count), return_inverse=True)
        yield Part(
            tokens=generator.integers(0, VOCABULARY, int(lengths.sum()), dtype=np.uint16),
            lengths=lengths,
            kinds=np.full(count, RowKind.GIVEN_TAGS, dtype=np.uint8),
            lines=np.arange(first + 1, first + count + 1, dtype=np.uint32),
            image_ids=np.array([f"{number:012d}" for number in ids.tolist()], dtype=np.bytes_),
            images=numbers.reshape(-1).astype(np.int32),
            sources=Counter({"made-up": count}),
            tags=Counter({"dog": count}),
        )


def write_corpora(folder: Path, rows: int, images: int, corpora: int) -> list[Path]:
    indices = [folder / f"corpus-{number}" for number in range(corpora)]
    for number, target in enumerate(indices):
        facts = IndexFacts(FORMAT, f"{target}.jsonl", 0, 0, "", "", VOCABULARY)
        write_index(made_up_parts(rows // corpora, images, number), target, facts)
    return indices


def memory() -> dict[str, int]:
    """Megabytes of this process: anonymous (its own) and of files (the page cache, which ranks share)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(sizes[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def act_as_rank(folder: Path, indices: Sequence[Path], options: argparse.Namespace) -> None:
    """What a rank does, with what it costs, printed."""
    importlib.import_module("vinvl.train")  # torch, Lightning and all else that a rank imports
    store: Any = StandInStore(folder)
    report("imports and the stand-in store", time.perf_counter())
    begin = time.perf_counter()
    mixture = Mixture.of([CorpusShare(Corpus(index)) for index in indices])
    positions = mixture.positions_in(store)
    if options.missing:  # images that the store lacks
        present = positions >= int(options.missing * options.images)
        mixture, positions = mixture.select(present), positions[present]
    tags = RaggedTokens(np.arange(2, dtype=np.int32), np.arange(3, dtype=np.int64))
    text = RegionText(
        store,
        StoreTags(TagTokens(LABELS.classes, tags, np.arange(len(LABELS.classes)) > 0), store),
        InputLimits(35, 50),
        SpecialTokens(1, 2, 0, 3, 4),
    )
    dataset = PretrainingDataset(
        CorpusRows(mixture, positions, text),
        options=PairOptions(1, 0.25, True),
        variant="oscar",
        mask_probability=0.15,
        vocab_size=VOCABULARY,
        seed=0,
        one_pass=False,
    )
    report(f"corpus of {len(mixture):,} rows opened and looked up", begin)
    begin = time.perf_counter()
    sampler = LengthBucketBatchSampler(dataset.lengths(), options.batch_size, seed=0, world_size=options.ranks)
    batches = iter(sampler)
    dataset.collate(next(batches))
    report("first batch", begin)
    begin = time.perf_counter()
    for _, draws in zip(range(options.batches), batches, strict=False):
        dataset.collate(draws)
    report(f"{options.batches:,} batches of {options.batch_size}", begin)


def report(what: str, begin: float) -> None:
    sizes = ", ".join(f"{name} {size:,} MB" for name, size in memory().items())
    print(f"{what:<50} {time.perf_counter() - begin:>7.2f} s   {sizes}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=9_000_000, help="of the corpus (default: 9000000)")
    parser.add_argument("--images", type=int, default=1_000_000, help="in the store (default: 1000000)")
    parser.add_argument("--corpora", type=int, default=4, help="files that the rows are in (default: 4)")
    parser.add_argument("--missing", type=float, default=0.0, help="share of images without regions (default: 0)")
    parser.add_argument("--ranks", type=int, default=8, help="of which one is measured (default: 8)")
    parser.add_argument("--batch-size", type=int, default=64, help="of a rank (default: 64)")
    parser.add_argument("--batches", type=int, default=1000, help="made before memory is read (default: 1000)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        begin = time.perf_counter()
        indices = write_corpora(Path(name), options.rows, options.images, options.corpora)
        size = sum(index.stat().st_size for index in indices)
        print(f"index of {options.rows:,} rows: {size / 1e6:,.0f} MB, written in {time.perf_counter() - begin:.1f} s")
        StandInStore.write(Path(name), options.images)
        rank = multiprocessing.get_context("spawn").Process(target=act_as_rank, args=(Path(name), indices, options))
        rank.start()
        rank.join()


if __name__ == "__main__":
    main()

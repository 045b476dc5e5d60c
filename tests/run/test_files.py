"""What is renamed into place: it is on the disk first, it is whole or not there, and nothing of a dead writer stays."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detector.samples import small_detector
from tests.pretraining.samples import TOKENIZER, write_lines, write_published
from tests.regions.samples import LABELS, make_regions, write
from vinvl.data import text as token_cache
from vinvl.demo import ensure_demo_world
from vinvl.detector.weights import save_detector
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.published import convert_published_corpus
from vinvl.regions import LabelMap, RegionStore
from vinvl.regions.caches import SharedCopies
from vinvl.regions.formats.export import write_oscar_tsv
from vinvl.regions.merging import merge_stores
from vinvl.regions.regions import StoreAttributes
from vinvl.regions.writer import ShardWriter, Unfinished, checked_image
from vinvl.retrieval.data import Block, Fold
from vinvl.retrieval.run import ScoreFiles
from vinvl.run.checkpoint import AtomicCheckpointIO
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, new_folder, remove_leftovers, work_folder, write_json, write_text_atomically

DETECTOR_NAMES = LabelMap(tuple(map(str, range(81))), tuple(map(str, range(41))))
IMAGES = [make_regions(str(number), 3) for number in range(4)]


def write_unfinished(target: Path) -> None:
    attributes = StoreAttributes(3, np.dtype("<f2"), 0, "X152-C4", LABELS)
    unfinished = Unfinished(target)
    unfinished.begin({"threshold": 0.2})
    shards = ShardWriter(unfinished.folder, 0, attributes)
    for image in IMAGES:
        shards.add(checked_image(image, attributes))
    shards.flush()
    unfinished.finish(attributes, [], [])


def write_scores(path: Path) -> None:
    fold = Fold(np.arange(2), np.arange(2), np.arange(2))
    scores = ScoreFiles(path.parent, "a" * 24, [fold], [Block(0, 0, 2)])
    scores.prepare({})
    scores.write(0, np.zeros((2, 2), np.float32))


def write_cache(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "LEAST_TEXTS", 1)
        token_cache.cached_tokens(TOKENIZER, ["a dog"], path.parent)


def write_features(path: Path) -> None:
    store = RegionStore(write(path.parent / "in.h5", IMAGES))
    with new_folder(path) as folder:
        write_oscar_tsv(store, folder)


def write_merged(path: Path) -> None:
    merge_stores([write(path.parent / "in.h5", IMAGES)], path)


def write_world(path: Path) -> None:
    sizes = {"num_train_images": 2, "num_val_images": 1, "num_test_images": 1, "questions_per_image": 2}
    for seed in (0, 1):  # the second takes the place of the first
        ensure_demo_world(path, workers=1, seed=seed, **sizes)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text_atomically(path, "text"),
    "results": lambda path: write_json(path, {"score": 1.0}),
    "checkpoint": lambda path: AtomicCheckpointIO().save_checkpoint({"step": 1}, path),
    "detector": lambda path: save_detector(path, small_detector(), DETECTOR_NAMES),
    "scores": write_scores,
    "token cache": write_cache,
    "features of others": write_features,
    "store": lambda path: write(path, IMAGES),
    "shards": lambda path: write(path, IMAGES, max_images_per_shard=2),
    "merged store": write_merged,
    "unfinished store": write_unfinished,
    "corpus index": lambda path: ensure_index(write_lines(path, [{"image_id": 1, "text": "a dog"}]), TOKENIZER),
    "published corpus": lambda path: convert_published_corpus(write_published(path.parent), path),
    "demo world": write_world,
    "copy in memory": lambda path: SharedCopies([write(path, IMAGES)], path.parent).release(),
}


class Recorder:
    """Watches files become durable: what was flushed, as it was then, and what got a name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.flushed: set[tuple[int, ...]] = set()
        self.named: list[Path] = []
        self.waiting: dict[int, Path] = {}  # folders whose new names are not flushed
        self._fsync, self._replace = os.fsync, os.replace
        patch.setattr(os, "fsync", self.fsync)
        for name in ("replace", "rename"):
            patch.setattr(os, name, self.replace)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.flushed.add(self.state(os.fstat(descriptor)))
        self.waiting.pop(os.fstat(descriptor).st_ino, None)

    def replace(self, old: Path, new: Path) -> None:
        in_work = new.parent.suffix == ".partial" and new.parent.name.startswith(".")  # gone with its writer
        if new.name != "replaced" and not in_work:
            for path in [old, *old.rglob("*")]:
                assert self.state(path.stat()) in self.flushed, f"{path} was not flushed before {new} got its name"
            self.named.append(new)
        self._replace(old, new)
        self.waiting[new.parent.stat().st_ino] = new.parent

    @staticmethod
    def state(status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@pytest.mark.parametrize("kind", WRITERS)
def test_what_gets_a_name_is_on_the_disk_first_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    recorder = Recorder(monkeypatch)
    WRITERS[kind](tmp_path / "out")
    assert recorder.named and not [folder for folder in recorder.waiting.values() if folder.exists()]


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=50), st.lists(st.binary(max_size=50), max_size=4), st.integers(0, 4), st.booleans())
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, pieces: list[bytes], fails_at: int, as_text: bool
) -> None:
    path = tmp_path_factory.mktemp("files") / "results [1].json"
    path.write_bytes(old)
    broken = fails_at < len(pieces)
    try:
        with atomic_write(path, "w" if as_text else "wb") as file:  # type: ignore[call-overload]
            for number, piece in enumerate(pieces):
                if number == fails_at:
                    raise (KeyboardInterrupt, ValueError, OSError)[number % 3]
                file.write(piece.decode("latin-1") if as_text else piece)
    except (KeyboardInterrupt, ValueError, UserError):
        assert broken
    new = b"".join(pieces)
    assert path.read_bytes() == (old if broken else new.decode("latin-1").encode() if as_text else new)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may have more than 100 KB: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_told_by_every_writer(tmp_path: Path) -> None:
    big = [make_regions("1", 40, feature_dim=2048)]
    small = [make_regions(str(number), 50, feature_dim=64) for number in range(15)]  # too big once in one file
    writers: dict[str, Callable[[], object]] = {
        "text": lambda: write_text_atomically(tmp_path / "out", "a" * 200_000),
        "checkpoint": lambda: AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(99_999)}, tmp_path / "out"),
        "detector": lambda: save_detector(tmp_path / "out", small_detector(), DETECTOR_NAMES),
        "store": lambda: write(tmp_path / "out", big, feature_dim=2048),
        "shards": lambda: write(tmp_path / "out", small, feature_dim=64, max_images_per_shard=99),
    }
    for name, write_it in writers.items():
        with pytest.raises(UserError, match=rf"{tmp_path}/out cannot be \w+ \(File too large\)"):
            write_it()
        assert list(tmp_path.iterdir()) == [], name


KILLED = """
import os, signal, sys
from pathlib import Path
from vinvl.run.files import atomic_write, work_folder
from vinvl.regions import LabelMap, RegionStoreWriter
target = Path(sys.argv[1])
with atomic_write(target) as file, work_folder(target) as folder:
    writer = RegionStoreWriter(target, feature_dim=3, detector="", label_map=LabelMap((), ()))
    (folder / "part").write_text("half")
    print(len(list(target.parent.iterdir())), flush=True)
    os.kill(os.getpid(), signal.SIGKILL if sys.argv[2] == "dies" else signal.SIGSTOP)
"""


def test_what_a_killed_writer_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    dead, alive = tmp_path / "out.h5", tmp_path / "other.h5"
    subprocess.run([sys.executable, "-c", KILLED, str(dead), "dies"], check=False, capture_output=True)
    assert len(list(tmp_path.iterdir())) == 3
    kept = [".out.h5.0123456.partial", ".out.h5x.01234567.partial", "out.h5.partial", ".out.h5.01234567.tmp"]
    for name in kept:  # none of ours
        (tmp_path / name).touch()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(alive), "lives"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        theirs = set(tmp_path.glob(".other.h5.*"))
        for path in (dead, alive):
            write_text_atomically(path, "whole")
        assert len(theirs) == 3 and theirs == set(tmp_path.glob(".other.h5.*"))
        assert {path.name for path in tmp_path.iterdir()} - {path.name for path in theirs} == {
            "out.h5",
            "other.h5",
            *kept,
        }
        writer.send_signal(signal.SIGKILL)
    with work_folder(alive) as folder:
        assert list(tmp_path.glob(".other.h5.*")) == [folder]
    remove_leftovers(tmp_path / "nowhere", ".+")

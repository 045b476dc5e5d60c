"""Generate a demo world into a folder, or find it there already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vinvl.data.demo.paths import SPLITS, DemoWorld, DemoWorldSizes, read_marker
from vinvl.data.demo.write import MAX_IMAGES_PER_SPLIT, write_world
from vinvl.errors import UserError, say
from vinvl.files import is_open_file, lock, put_in_place, work_folder

NUM_TRAIN_IMAGES = 3000
NUM_VAL_IMAGES = 300
NUM_TEST_IMAGES = 400
QUESTIONS_PER_IMAGE = 8


def generate_demo_world(
    folder: Path,
    *,
    seed: int = 0,
    num_train_images: int = NUM_TRAIN_IMAGES,
    num_val_images: int = NUM_VAL_IMAGES,
    num_test_images: int = NUM_TEST_IMAGES,
    questions_per_image: int = QUESTIONS_PER_IMAGE,
    workers: int = 2,
) -> DemoWorld:
    """Generate a demo world into `folder`, replacing a demo world that is there.

    The world appears at once and whole, or not at all: it is made in a temporary folder beside `folder` and renamed.
    The same seed and sizes give the same files whatever the number of `workers`.

    Args:
        folder: missing, empty, or an earlier demo world.
        seed: any integer from 0.
        num_train_images: 1 to 99,999 pictures, as for the other two splits; the splits share none.
        num_val_images: see `num_train_images`.
        num_test_images: see `num_train_images`.
        questions_per_image: how many questions a picture gets at most, 1 to 999.
        workers: processes that draw; 1 draws in this process.

    Raises:
        UserError: for a size out of range, or where `folder` holds files that are not of a demo world.
    """
    sizes = DemoWorldSizes(seed, num_train_images, num_val_images, num_test_images, questions_per_image)
    _check_sizes(sizes)
    folder = Path(folder).absolute()
    with _locked(folder):
        return _generate(folder, sizes, workers)


def ensure_demo_world(
    folder: Path,
    *,
    seed: int,
    num_train_images: int,
    num_val_images: int,
    num_test_images: int,
    questions_per_image: int,
    workers: int = 2,
) -> DemoWorld:
    """The demo world in `folder`: as it is if seed, sizes and version agree, generated otherwise.

    Safe to call from several processes at once: one generates, the others wait and use its result.
    Arguments and errors are those of `generate_demo_world`.
    """
    sizes = DemoWorldSizes(seed, num_train_images, num_val_images, num_test_images, questions_per_image)
    _check_sizes(sizes)
    folder = Path(folder).absolute()
    if read_marker(folder) == sizes.marker():
        return DemoWorld(folder)
    with _locked(folder):
        if read_marker(folder) == sizes.marker():
            return DemoWorld(folder)
        return _generate(folder, sizes, workers)


def _check_sizes(sizes: DemoWorldSizes) -> None:
    if sizes.seed < 0:
        raise UserError(f"The demo world's seed is {sizes.seed}; give an integer from 0.")
    for split in SPLITS:
        if not 1 <= sizes.images(split) <= MAX_IMAGES_PER_SPLIT:
            raise UserError(
                f"The demo world's num_{split}_images is {sizes.images(split)}; give 1 to {MAX_IMAGES_PER_SPLIT:,}."
            )
    if not 1 <= sizes.questions_per_image <= 999:
        raise UserError(f"The demo world's questions_per_image is {sizes.questions_per_image}; give 1 to 999.")


def _generate(folder: Path, sizes: DemoWorldSizes, workers: int) -> DemoWorld:
    """Make the world beside `folder` and move it there; the caller holds the lock."""
    _refuse_foreign_files(folder)
    counts = " + ".join(f"{sizes.images(split):,} {split}" for split in SPLITS)
    say(f"Generating the demo world ({counts} images, seed {sizes.seed}): {folder} …", error=True)
    with work_folder(folder) as work:
        fresh = work / "world"
        fresh.mkdir()
        write_world(DemoWorld(fresh), sizes, workers)
        _refuse_foreign_files(folder)  # again: files may have come while the world was being made
        put_in_place(fresh, folder, replaced=work / "replaced")
    return DemoWorld(folder)


def _refuse_foreign_files(folder: Path) -> None:
    """Raise UserError unless `folder` is missing, empty, or holds a demo world and nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, so no demo world can go there; choose another folder.")
    names = {entry.name for entry in folder.iterdir()}
    if names and read_marker(folder) is None:
        raise UserError(
            f"{folder} is not empty and holds no demo world (no valid demo_world.json), so nothing was written; "
            "choose another folder or empty this one."
        )
    foreign = sorted(names - DemoWorld(folder).top_level_names())
    if foreign:
        raise UserError(
            f"{folder} holds a demo world of another version, seed or size and also {foreign[0]!r}, which is not part "
            "of it; move that away or choose another folder."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock file beside `folder`; it is gone when nobody holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        lock(descriptor, wait=True)
        if is_open_file(path, descriptor):  # else the holder before us has removed it
            break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink()
        os.close(descriptor)

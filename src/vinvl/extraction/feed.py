"""Pictures → batches of pixels: read and resized in worker processes while the device computes."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor
from torch.utils.data import DataLoader

from vinvl.detector.config import DetectorConfig
from vinvl.detector.detector import padded_size, resized_pixels
from vinvl.extraction.given import GivenBoxes
from vinvl.pictures import Pictures, ReadingOptions, Unusable, name_of, picture_size, read_picture
from vinvl.run.errors import UserError
from vinvl.run.machine import workers_here
from vinvl.run.values import check_fields

WINDOW = 512  # pictures whose sizes are looked at together, to make batches of those that are alike
HEAD_READERS = 8  # threads: it is waiting for the disk, not work


@dataclass(frozen=True)
class FeedOptions:
    """How pictures become batches.

    Attributes:
        reading: how files become pixels.
        batch_size: pictures that go through the network together, at most.
        mixed_sizes: False puts together only pictures that are padded to the same size in any case, so that features do
            not depend on who is beside; True puts pictures of like shape together and pads them to the largest.
        workers: processes that read and resize; 0 does it in this process.
    """

    reading: ReadingOptions
    batch_size: Annotated[int, Meta(ge=1)] = 1
    mixed_sizes: bool = False
    workers: Annotated[int, Meta(ge=0)] = 2

    def __post_init__(self) -> None:
        check_fields(self, "")


@dataclass(frozen=True)
class PictureBatch:
    """Pictures that go through the network together, and those of them that turned out to be broken."""

    ids: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    pixels: tuple[Tensor, ...] = ()  # of each picture uint8 (height, width, 3), resized
    original_sizes: tuple[tuple[int, int], ...] = ()  # (width, height)
    unusable: tuple[Unusable, ...] = ()
    boxes: tuple[np.ndarray, ...] | None = None  # (n, 4) each, that are given; None where the detector is to find some

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PictureBatch:
        """On a device; Lightning does not ask for it, but pixels are pinned, and the host need not wait for them."""
        return replace(self, pixels=tuple(one.to(device, non_blocking=non_blocking) for one in self.pixels))

    def pin_memory(self) -> PictureBatch:
        return replace(self, pixels=tuple(one.pin_memory() for one in self.pixels))

    def single(self) -> Iterator[PictureBatch]:
        """Each picture as a batch of its own."""
        for i in range(len(self)):
            own = slice(i, i + 1)
            boxes = None if self.boxes is None else self.boxes[own]
            yield PictureBatch(self.ids[own], self.paths[own], self.pixels[own], self.original_sizes[own], (), boxes)


@dataclass(frozen=True, eq=False)
class PictureFeed:
    """The batches of this process's share of the pictures, in an order that depends only on the pictures.

    An empty one comes last, behind which there is nothing to wait for.

    Args:
        pictures: all of them.
        done: whether the picture of an id is in the store already.
        config: how pictures are resized and padded.
        options: how they are read and put together.
        given: boxes of all pictures; None lets the detector find them.
        rank, world_size: this process's number among those that share the pictures.
        pin_memory: of the pixels, for a GPU.
    """

    pictures: Pictures
    done: Callable[[str], bool]
    config: DetectorConfig
    options: FeedOptions
    given: GivenBoxes | None = None
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False

    def __iter__(self) -> Iterator[PictureBatch]:
        workers = workers_here(self.options.workers, "workers")
        loader: DataLoader[PictureBatch] = DataLoader(
            replace(self, done=bool),  # type: ignore[arg-type]  # workers ask for single batches alone
            sampler=self.batches(),
            batch_size=None,
            num_workers=workers,
            pin_memory=self.pin_memory,
            prefetch_factor=2 if workers else None,
            worker_init_fn=_begin_worker,
        )
        yield from loader
        yield PictureBatch()

    def __getitem__(self, indices: list[int]) -> PictureBatch:
        """The pictures of a batch, read and resized: what workers do."""
        found, unusable = [], []
        for index in indices:
            place = self.pictures.paths[index]
            path = name_of(place)
            try:
                image, image_id = read_picture(place, self.options.reading), self.pictures.ids[index]
                boxes = () if self.given is None else self.given.of(image_id, image.size)
            except UserError as error:
                unusable.append(Unusable(path, str(error)))
            else:
                found.append((image_id, path, resized_pixels(image, self.config), image.size, boxes))
        ids, paths, pixels, sizes, given = zip(*found, strict=True) if found else ((), (), (), (), ())
        return PictureBatch(ids, paths, pixels, sizes, tuple(unusable), None if self.given is None else given)

    def batches(self) -> Iterator[list[int]]:
        """Which pictures make each batch; one that cannot even be measured is a batch of its own.

        A picture is passed over if it is done; the batches of a window are otherwise the same whatever is done.
        """
        window = window_size(len(self.pictures), self.world_size)
        with ThreadPoolExecutor(HEAD_READERS) as readers:
            for number, start in enumerate(range(0, len(self.pictures), window)):
                indices = range(start, min(start + window, len(self.pictures)))
                mine = number % self.world_size == self.rank
                if mine and not all(self.done(self.pictures.ids[index]) for index in indices):
                    with warnings.catch_warnings():  # which threads cannot do each for itself
                        sizes = list(readers.map(self._padded_size, indices))
                    for batch in alike(indices, sizes, self.options.batch_size, self.options.mixed_sizes):
                        left = [index for index in batch if not self.done(self.pictures.ids[index])]
                        if left:
                            yield left

    def _padded_size(self, index: int) -> tuple[int, int] | None:
        try:
            return padded_size(*picture_size(self.pictures.paths[index], self.options.reading), self.config)
        except UserError:
            return None  # the worker that reads it says why


def window_size(pictures: int, world_size: int) -> int:
    """Pictures in a window: `WINDOW`, fewer if that would leave processes without work."""
    return max(1, min(WINDOW, -(-pictures // (4 * world_size)))) if world_size > 1 else WINDOW


def alike(
    indices: Sequence[int], sizes: Sequence[tuple[int, int] | None], batch_size: int, mixed_sizes: bool
) -> list[list[int]]:
    """Batches of pictures of one size, or with `mixed_sizes` of similar shape; those without a size are alone.

    Args:
        indices: N pictures.
        sizes: N padded sizes (width, height), None if a size is not known.
    """
    known = [(size, index) for index, size in zip(indices, sizes, strict=True) if size is not None]
    batches = [[index] for index, size in zip(indices, sizes, strict=True) if size is None]
    groups: dict[tuple[int, int] | None, list[int]] = {}  # by size, or all in one, by shape
    if mixed_sizes:
        known = sorted(known, key=lambda one: (one[0][0] / one[0][1], one))
    for size, index in known:
        groups.setdefault(None if mixed_sizes else size, []).append(index)
    for group in groups.values():
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return sorted(batches, key=min)


def _begin_worker(number: int) -> None:
    """Signals that ask for a stop are for the process that has the worker, which ends it in its own time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)

"""Pictures → batches of pixels: read and resized in worker processes while the device computes."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vinvl.detector.config import DetectorConfig
from vinvl.detector.detector import padded_size, resized_pixels
from vinvl.pictures import Pictures, ReadingOptions, Unusable, picture_size, read_picture
from vinvl.run.errors import UserError

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
    batch_size: int = 1
    mixed_sizes: bool = False
    workers: int = 2

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}.")


@dataclass(frozen=True)
class PictureBatch:
    """Pictures that go through the network together, and those of them that turned out to be broken."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    pixels: tuple[Tensor, ...]  # of each picture uint8 (height, width, 3), resized
    original_sizes: tuple[tuple[int, int], ...]  # (width, height)
    unusable: tuple[Unusable, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PictureBatch:
        return self._with(tuple(one.to(device, non_blocking=non_blocking) for one in self.pixels))

    def pin_memory(self) -> PictureBatch:
        return self._with(tuple(one.pin_memory() for one in self.pixels))

    def single(self) -> Iterator[PictureBatch]:
        """Each picture as a batch of its own."""
        for i in range(len(self)):
            own = slice(i, i + 1)
            yield PictureBatch(self.ids[own], self.paths[own], self.pixels[own], self.original_sizes[own], ())

    def _with(self, pixels: tuple[Tensor, ...]) -> PictureBatch:
        return PictureBatch(self.ids, self.paths, pixels, self.original_sizes, self.unusable)


class PictureFeed:
    """The batches of this process's share of the pictures, in an order that depends only on the pictures.

    Args:
        pictures: all of them.
        done: whether the picture of an id is in the store already.
        config: how pictures are resized and padded.
        options: how they are read and put together.
        rank, world_size: this process's number among those that share the pictures.
        pin_memory: of the pixels, for a GPU.
    """

    def __init__(
        self,
        pictures: Pictures,
        done: Callable[[str], bool],
        config: DetectorConfig,
        options: FeedOptions,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._pictures, self._done, self._config, self._options = pictures, done, config, options
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory

    def __iter__(self) -> Iterator[PictureBatch]:
        workers = self._options.workers
        loader: DataLoader[PictureBatch] = DataLoader(
            _PictureDataset(self._pictures, self._config, self._options.reading),
            sampler=_Batches(self),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin_memory,
            prefetch_factor=2 if workers else None,
            worker_init_fn=_begin_worker,
        )
        return iter(loader)

    def batches(self) -> Iterator[list[int]]:
        """Which pictures make each batch; one that cannot even be measured is a batch of its own.

        A picture is passed over if it is done; the batches of a window are otherwise the same whatever is done.
        """
        window = window_size(len(self._pictures), self._world_size)
        with ThreadPoolExecutor(HEAD_READERS) as readers:
            for number, start in enumerate(range(0, len(self._pictures), window)):
                indices = range(start, min(start + window, len(self._pictures)))
                mine = number % self._world_size == self._rank
                if mine and not all(self._done(self._pictures.ids[index]) for index in indices):
                    with warnings.catch_warnings():  # which threads cannot do each for itself
                        sizes = list(readers.map(self._padded_size, indices))
                    for batch in alike(indices, sizes, self._options.batch_size, self._options.mixed_sizes):
                        left = [index for index in batch if not self._done(self._pictures.ids[index])]
                        if left:
                            yield left

    def _padded_size(self, index: int) -> tuple[int, int] | None:
        try:
            return padded_size(*picture_size(self._pictures.paths[index], self._options.reading), self._config)
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
    if mixed_sizes:
        ordered = [index for _, index in sorted(known, key=lambda one: (one[0][0] / one[0][1], one[0], one[1]))]
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    else:
        groups: dict[tuple[int, int], list[int]] = {}
        for size, index in known:
            groups.setdefault(size, []).append(index)
        for group in groups.values():
            batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return sorted(batches, key=min)


class _Batches:
    """The sampler: `PictureFeed.batches` as often as it is asked for."""

    def __init__(self, feed: PictureFeed) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[list[int]]:
        return self._feed.batches()


class _PictureDataset(Dataset[PictureBatch]):
    """Lists of pictures as batches."""

    def __init__(self, pictures: Pictures, config: DetectorConfig, reading: ReadingOptions) -> None:
        self._pictures, self._config, self._reading = pictures, config, reading

    def __getitem__(self, indices: list[int]) -> PictureBatch:
        ids, paths, pixels, sizes, unusable = [], [], [], [], []
        for index in indices:
            path = self._pictures.paths[index]
            try:
                image = read_picture(path, self._reading)
            except UserError as error:
                unusable.append(Unusable(path, str(error)))
                continue
            ids.append(self._pictures.ids[index])
            paths.append(path)
            pixels.append(resized_pixels(image, self._config))
            sizes.append((image.width, image.height))
        return PictureBatch(tuple(ids), tuple(paths), tuple(pixels), tuple(sizes), tuple(unusable))


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    """Signals that ask for a stop are for the process that has the worker, which ends it in its own time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)

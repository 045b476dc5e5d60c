"""The run of an extraction: what is there, what is to be done, and the store at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from vinvl.detector.detector import DetectedRegions, Detector
from vinvl.detector.weights import OpenedDetector, open_detector, sha256_of_file
from vinvl.extraction.feed import FeedOptions, PictureBatch, PictureFeed
from vinvl.extraction.provenance import detector_text, feature_settings, provenance
from vinvl.extraction.settings import (
    Target,
    detector_config,
    feature_dtype,
    feed_options,
    picture_names,
    shard,
    target_path,
)
from vinvl.pictures import Pictures, Unusable, find_pictures
from vinvl.regions.layout import read_header
from vinvl.regions.regions import Regions, StoreAttributes, encoded_id
from vinvl.regions.store import RegionStore
from vinvl.regions.writer import ShardWriter, Unfinished, shard_files
from vinvl.run.errors import UserError, printable, say
from vinvl.run.files import atomic_write, failure_told
from vinvl.run.folders import process_rank
from vinvl.run.progress import Show, progress
from vinvl.run.signals import StopRequest

# The detector as Lightning runs it: devices, precision and processes are its Trainer's.


Detected = tuple[list[Regions], list[Unusable]]


class DetectionModule(pl.LightningModule):
    """Batches of pixels → regions in memory of the host, in the data types of a store.

    Args:
        detector: with its weights.
        feature_dtype: of the features, rounded on the device.
        make_feed: makes the batches of one process: `PictureFeed` but for rank, world_size and pin_memory.
    """

    def __init__(self, detector: Detector, feature_dtype: torch.dtype, make_feed: Callable[..., PictureFeed]) -> None:
        super().__init__()
        self.detector = detector.eval()
        self.feature_dtype = feature_dtype
        self.make_feed = make_feed

    def predict_dataloader(self) -> PictureFeed:
        trainer = self.trainer
        pin_memory = self.device.type == "cuda"
        return self.make_feed(rank=trainer.global_rank, world_size=trainer.world_size, pin_memory=pin_memory)

    @torch.no_grad()
    def predict_step(self, batch: PictureBatch, batch_idx: int = 0) -> Detected:
        """The regions of each picture, and the pictures that gave none because they are broken or do not fit."""
        unusable = list(batch.unusable)
        if len(batch) == 0:
            return [], unusable
        try:
            return self._detect(batch), unusable
        except torch.OutOfMemoryError:  # one after the other takes less; what does not fit then, never will
            regions = []
            for one in batch.single():
                try:
                    regions += self._detect(one)
                except torch.OutOfMemoryError:
                    unusable.append(
                        Unusable(one.paths[0], f"{one.paths[0]} does not fit into the memory of the device.")
                    )
            return regions, unusable

    def _detect(self, batch: PictureBatch) -> list[Regions]:
        found = self.detector.detect_pixels(list(batch.pixels), list(batch.original_sizes))
        return [store_regions(name, one, self.feature_dtype) for name, one in zip(batch.ids, found, strict=True)]


def store_regions(image_id: str, found: DetectedRegions, feature_dtype: torch.dtype) -> Regions:
    """The detector's regions as a store has them; attributes of no probability are attribute 0, none."""
    attributes = torch.where(found.attribute_scores > 0, found.attribute_labels, 0)
    return Regions(
        image_id=image_id,
        features=_array(found.features, feature_dtype),
        boxes=_array(found.boxes, torch.float32),
        classes=_array(found.labels, torch.int32),
        class_scores=_array(found.scores, torch.float32),
        attributes=_array(attributes, torch.int32),
        attribute_scores=_array(found.attribute_scores, torch.float32),
        width=found.image_size[0],
        height=found.image_size[1],
    )


def _array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    return tensor.to(dtype).cpu().numpy()


# What the devices find goes into shards of the store; what is broken is kept for the report.


LOOK_SECONDS = 2.0  # between two looks at how far other processes are


class Stopped(Exception):  # noqa: N818, it is no error
    """The process was asked to stop and did; what was done is in finished shards."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Stopped as asked to; what was done is kept, and the same command goes on with the rest.")
        self.exit_code = exit_code


class Recorder(Callback):
    """Adds every batch's regions to this process's shards; stops on SIGTERM, SIGUSR1 and Ctrl-C.

    Args:
        unfinished: the work on the store; it has begun when prediction starts.
        begin: called first, on rank 0 alone; the others wait for it.
        attributes: of the store.
        total: pictures in all.
        done: pictures that were in the store or its shards before.
        shard_seconds: see `ShardWriter`.

    Attributes:
        unusable: pictures of this process that could not be used.
    """

    def __init__(
        self,
        unfinished: Unfinished,
        begin: Callable[[], None],
        attributes: StoreAttributes,
        *,
        total: int,
        done: int,
        shard_seconds: float,
    ) -> None:
        self._unfinished, self._begin, self._attributes = unfinished, begin, attributes
        self._total, self._done, self._shard_seconds = total, done, shard_seconds
        self.unusable: list[Unusable] = []
        self._shards: ShardWriter | None = None
        self._added = 0
        self._request = StopRequest("these pictures")
        self._others: _Others | None = None
        self._stack = ExitStack()
        self._show: Show = lambda now, note="": None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._request.listen()
        if trainer.is_global_zero:
            self._begin()
        trainer.strategy.barrier()
        rank = trainer.global_rank
        self._stack.enter_context(self._unfinished.locked(rank))
        self._shards = ShardWriter(self._unfinished.folder, rank, self._attributes, seconds=self._shard_seconds)
        if trainer.is_global_zero:
            self._others = _Others(self._unfinished.folder, rank)
            self._show = self._stack.enter_context(progress("images", self._total, self._done))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PictureBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        found: Detected = outputs
        self.unusable.extend(found[1])
        paths = dict(zip(batch.ids, batch.paths, strict=True))
        for regions in found[0]:
            try:
                self._add(regions)
                self._added += 1
            except UserError as error:
                if error.__cause__ is not None:  # the disk, not the picture
                    raise
                self.unusable.append(Unusable(paths[regions.image_id], str(error)))
        if self._others is not None:
            now = self._done + self._added + len(self.unusable) + self._others.added()
            self._show(now, f", {len(self.unusable):,} broken" if self.unusable else "")
        if self._request.received is not None:
            raise Stopped(self._request.exit_code)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.finish()

    def finish(self) -> None:
        """Finish a shard of what waits."""
        shards, self._shards = self._shards, None
        with self._stack:
            if shards is not None:
                with self._disk():
                    shards.flush()

    def _add(self, regions: Regions) -> None:
        assert self._shards is not None
        arrays = self._shards.checked(regions)
        with self._disk():
            self._shards.add(encoded_id(regions.image_id), arrays)

    def _disk(self) -> AbstractContextManager[None]:
        return failure_told(
            self._unfinished.folder, "make room and give the same command again: what is finished is safe in it"
        )


class _Others:
    """How many images the other processes have finished since this one began."""

    def __init__(self, folder: Path, own: int) -> None:
        self._folder = folder
        self._known = dict.fromkeys(shard_files(folder), 0)
        self._own = f"{own:05d}-"
        self._looked = time.monotonic()

    def added(self) -> int:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            for path in shard_files(self._folder):
                if path not in self._known and not path.name.startswith(self._own):
                    self._known[path] = read_header(path).num_images
        return sum(self._known.values())


REASONS_SHOWN = 20  # of broken pictures; the file lists all


@dataclass(frozen=True)
class Extracted:
    """What came out: images in the store, those added by this run, and the pictures that could not be used."""

    path: Path
    images: int
    added: int
    unusable: tuple[Unusable, ...]


def extract(config: DictConfig) -> Extracted:
    """Composed configuration → a store of the pictures' regions at `config.output`.

    Raises:
        UserError: whatever a person has to change. What was done until then is kept, and the same command goes on.
    """
    path, feed = target_path(config), feed_options(config)
    dtype = feature_dtype(config)
    pictures = find_pictures(str(config.images), picture_names(config)).part(*shard(config))
    opened = open_detector(
        str(config.weights),
        None if config.labels is None else str(config.labels),
        partial(detector_config, config),
        compile=bool(config.compile),
    )
    settings = feature_settings(
        weights=opened.weights,
        weights_sha256=sha256_of_file(opened.weights),
        detector=opened.detector.config,
        label_map=opened.label_map,
        reading=feed.reading,
        names=picture_names(config),
        mixed_sizes=feed.mixed_sizes,
        feature_dtype=dtype,
        precision=str(config.trainer.precision),
    )
    target = Target(path, settings, overwrite=bool(config.overwrite))
    run = _Run(config, pictures, feed, opened, target, store_attributes(opened, dtype, settings))
    try:
        return run.finish(run.detect())
    except Stopped as stopped:
        if process_rank() == 0:
            say(stopped, error=True)
        sys.exit(stopped.exit_code)


def store_attributes(opened: OpenedDetector, dtype: str, settings: Mapping[str, Any]) -> StoreAttributes:
    """Those of a store of the detector's regions."""
    config = opened.detector.config
    return StoreAttributes(
        feature_dim=config.architecture.c5_channels,
        feature_dtype=np.dtype(dtype).newbyteorder("<"),
        num_attributes=min(config.attributes_per_box, config.architecture.num_attributes),
        detector=detector_text(settings),
        label_map=opened.label_map,
    )


@dataclass(frozen=True)
class _Run:
    """One process's part of an extraction; all hold the same."""

    config: DictConfig
    pictures: Pictures
    feed: FeedOptions
    opened: OpenedDetector
    target: Target
    attributes: StoreAttributes

    def detect(self) -> Detection:
        """Has all pictures looked at that were not before; their regions are in shards then."""
        done = self.target.done()
        before = sum(image_id in done for image_id in self.pictures.ids)
        missing = len(self.pictures) - before
        if process_rank() == 0:
            say(self.opened.report)
            say(f"{self.target.path}: {missing:,} of {len(self.pictures):,} pictures to do")
        if missing == 0:
            return Detection(process_rank() == 0, before, [])
        recorder = Recorder(
            self.target.unfinished,
            self.target.begin,
            self.attributes,
            total=len(self.pictures),
            done=before,
            shard_seconds=float(self.config.shard_seconds),
        )
        trainer: pl.Trainer = instantiate(
            self.config.trainer,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        feed = partial(PictureFeed, self.pictures, done.__contains__, self.opened.detector.config, self.feed)
        dtype = getattr(torch, self.attributes.feature_dtype.name)
        trainer.predict(DetectionModule(self.opened.detector, dtype, feed), return_predictions=False)
        return Detection(trainer.is_global_zero, before, gathered(recorder.unusable))

    def finish(self, detected: Detection) -> Extracted:
        """The shards become the store, on one process; what could not be used is written beside it."""
        unusable = tuple(sorted([*self.pictures.unusable, *detected.unusable], key=lambda one: one.path))
        added = len(self.pictures) - detected.before - len(detected.unusable)
        if detected.finishes:
            self._write(unusable)
            report(self.target.path, added, unusable)
        return Extracted(self.target.path, detected.before + added, added, unusable)

    def _write(self, unusable: Sequence[Unusable]) -> None:
        earlier = self.target.earlier
        if not self.target.unfinished.shards():
            self.target.unfinished.discard()
            if earlier is None:
                raise UserError(
                    f"None of the {len(unusable):,} pictures could be used, so {self.target.path} was not written; the "
                    f"first: {unusable[0].reason}"
                )
            return
        if earlier is not None:
            earlier.require_sound(contents=True)  # or its damage would get a checksum that says it is whole
        attributes = replace(self.attributes, provenance=provenance(self.target.settings))
        self.target.unfinished.finish(attributes, self.pictures.ids, earlier.sources if earlier else [])


@dataclass(frozen=True)
class Detection:
    """Whether this process is to finish the work, how many pictures were done before, and those that gave nothing."""

    finishes: bool
    before: int
    unusable: list[Unusable]


def gathered(unusable: list[Unusable]) -> list[Unusable]:
    """The unusable pictures of all processes."""
    if not torch.distributed.is_initialized():
        return unusable
    parts: list[list[Unusable]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, unusable)
    return [one for part in parts for one in part]


def report(path: Path, added: int, unusable: Sequence[Unusable]) -> None:
    """Tells what the store holds now and which pictures it lacks, and lists these beside it."""
    store = RegionStore(path)
    regions = int(store.num_regions.sum())
    say(f"{path}: {len(store):,} images with {regions:,} regions, {added:,} of them new")
    listing = path.with_name(f"{path.name}.unusable.txt")
    if not unusable:
        listing.unlink(missing_ok=True)
        return
    with atomic_write(listing) as file:
        file.writelines(f"{printable(one.path)}\t{printable(one.reason)}\n" for one in unusable)
    say(f"{len(unusable):,} pictures could not be used ({listing} lists them):")
    for one in unusable[:REASONS_SHOWN]:
        say(f"  {one.reason}" if one.path in one.reason else f"  {one.path}: {one.reason}")
    if len(unusable) > REASONS_SHOWN:
        say(f"  … and {len(unusable) - REASONS_SHOWN:,} more")

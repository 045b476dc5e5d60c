"""The run of an extraction: what is there, what is to be done, and the store at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from vinvl.detector.detector import DetectedRegions, Detector, HostCopy
from vinvl.detector.weights import open_detector, sha256_of_file
from vinvl.extraction.feed import FeedOptions, PictureBatch, PictureFeed
from vinvl.extraction.given import GivenBoxes, given_boxes
from vinvl.extraction.predictions import SavedPredictions
from vinvl.extraction.provenance import Target, detector_config, detector_text, feature_settings, provenance
from vinvl.pictures import PictureNames, Pictures, ReadingOptions, Unusable, find_pictures, told_of
from vinvl.regions.layout import FEATURE_DTYPES, read_header
from vinvl.regions.merging import shard_path
from vinvl.regions.regions import Regions, StoreAttributes
from vinvl.regions.store import RegionStore
from vinvl.regions.writer import ShardWriter, Unfinished, checked_image, shard_files
from vinvl.run.errors import UserError, printable, say
from vinvl.run.files import atomic_write, failure_told
from vinvl.run.folders import process_rank
from vinvl.run.overrides import section
from vinvl.run.precision import AUTO, HALF, WHOLE, choose
from vinvl.run.progress import Show, progress
from vinvl.run.signals import StopRequest

LOOK_SECONDS = 2.0  # between two looks at how far other processes are
REASONS_SHOWN = 20  # of broken pictures; the file lists all

Found = tuple[str, str, DetectedRegions]  # image id, path, regions in memory of the host


class DetectionModule(pl.LightningModule):
    """The detector as Lightning runs it: batches of pixels → regions in memory of the host.

    A GPU is asked for the next batch before the regions of the last one are read, so that it does not wait for the
    host: `predict_step` gives those of earlier batches, and all that are left at the empty batch behind the last one.

    Args:
        detector: with its weights.
        make_feed: makes the batches of one process: `PictureFeed` but for rank, world_size and pin_memory.
        every_class: whether a region's numbers for every class are wanted.
    """

    def __init__(self, detector: Detector, make_feed: Callable[..., PictureFeed], every_class: bool = False) -> None:
        super().__init__()
        self.detector = detector.eval()
        self.make_feed = make_feed
        self.every_class = every_class
        self._under_way: dict[Iterator[list[Found] | None], PictureBatch] = {}  # oldest first

    @property
    def ahead(self) -> bool:
        """Whether the device computes while the host does something else."""
        return self.device.type != "cpu"

    def predict_dataloader(self) -> PictureFeed:
        trainer = self.trainer
        pin_memory = self.device.type == "cuda"
        return self.make_feed(rank=trainer.global_rank, world_size=trainer.world_size, pin_memory=pin_memory)

    @torch.no_grad()
    def predict_step(self, batch: PictureBatch, batch_idx: int = 0) -> tuple[list[Found], list[Unusable]]:
        """Regions of pictures, and the pictures that gave none because they are broken or do not fit."""
        found, unusable, too_large = list[Found](), list(batch.unusable), list[PictureBatch]()
        if len(batch):
            self._under_way[self._detect(batch, self.ahead)] = batch
        finish = not self.ahead or len(batch) == 0
        while True:
            for steps in reversed(list(self._under_way)):  # the newest first: the device has work while others are read
                try:
                    ready = next(steps)
                except torch.OutOfMemoryError:
                    too_large.append(self._under_way[steps])
                    ready = []
                if ready is not None:
                    found += ready
                    del self._under_way[steps]
            finish = finish or bool(too_large)  # what is under way takes memory
            if not (finish and self._under_way):
                break
        for one in (single for large in too_large for single in large.single()):  # what does not fit now, never will
            try:
                (ready,) = self._detect(one, ahead=False)
                found += ready or []
            except torch.OutOfMemoryError:
                reason = f"{one.paths[0]} does not fit into the memory of the device."
                unusable.append(Unusable(one.paths[0], reason))
        return found, unusable

    def _detect(self, batch: PictureBatch, ahead: bool) -> Iterator[list[Found] | None]:
        """The regions of a batch; `ahead`: None before, whenever something else should be asked of the device."""
        detect = self.detector.detect_ahead if ahead else self._detect_at_once
        pixels, sizes = list(batch.pixels), list(batch.original_sizes)
        for detected in detect(pixels, sizes, batch.boxes, every_class=self.every_class):
            if detected is not None:
                copies = [one.on_host() for one in detected]
                arrived = HostCopy(detected[0].scores)
            if ahead:
                yield None
        arrived.read()
        yield list(zip(batch.ids, batch.paths, copies, strict=True))

    def _detect_at_once(self, *given: Any, every_class: bool) -> Iterator[list[DetectedRegions] | None]:
        yield self.detector.detect_pixels(*given, every_class=every_class)


def store_regions(image_id: str, found: DetectedRegions, feature_dtype: torch.dtype) -> Regions:
    """The detector's regions as a store has them; attributes of no probability are attribute 0, none."""
    attributes = torch.where(found.attribute_scores > 0, found.attribute_labels, 0)
    tensors = {
        "features": found.features.to(feature_dtype),
        "boxes": found.boxes.float(),
        "classes": found.labels.int(),
        "class_scores": found.scores.float(),
        "attributes": attributes.int(),
        "attribute_scores": found.attribute_scores.float(),
    }
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    return Regions(image_id, **arrays, width=found.image_size[0], height=found.image_size[1])


class Stopped(Exception):  # noqa: N818, it is no error
    """The process was asked to stop and did; what was done is in finished shards."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("Stopped as asked to; what was done is kept, and the same command goes on with the rest.")
        self.exit_code = exit_code


class Recorder(Callback):
    """Adds all regions to this process's shards, in a thread; stops on SIGTERM, SIGUSR1 and Ctrl-C.

    Args:
        target: the store; work on it begins with prediction, on rank 0, for which the others wait.
        attributes: of the store.
        total, done: pictures in all, and those that were in the store or its shards before.
        shard_seconds: see `ShardWriter`.
        predictions: as `DetectionModule`.

    Attributes:
        unusable: pictures of this process that could not be used.
    """

    def __init__(
        self,
        target: Target,
        attributes: StoreAttributes,
        *,
        total: int,
        done: int,
        shard_seconds: float,
        predictions: SavedPredictions | None = None,
    ) -> None:
        self._target, self._attributes, self._shard_seconds = target, attributes, shard_seconds
        self._total, self._done, self._added = total, done, 0
        self.unusable: list[Unusable] = []
        self._shards: ShardWriter | None = None
        self._predictions = predictions
        self._rows: BinaryIO | None = None
        self._others: Callable[[], int] | None = None
        self._thread = ThreadPoolExecutor(1, "regions")
        self._recording: Future[None] | None = None
        self._request, self._stack = StopRequest("these pictures"), ExitStack()
        self._show: Show = lambda now, note="": None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._request.listen()
        if trainer.is_global_zero:
            if self._predictions is not None:
                self._predictions.begin(anew=not self._target.goes_on)
            self._target.begin()
        trainer.strategy.barrier()
        rank, unfinished = trainer.global_rank, self._target.unfinished
        self._stack.enter_context(unfinished.locked(rank))
        if self._predictions is not None:
            self._rows = self._stack.enter_context(self._predictions.rows_of(rank))
        self._shards = ShardWriter(unfinished.folder, rank, self._attributes, seconds=self._shard_seconds)
        if trainer.is_global_zero:
            self._others = added_by_others(unfinished.folder)
            self._show = self._stack.enter_context(progress("images", self._total, self._done))

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PictureBatch, *numbers: int
    ) -> None:
        self._finish_recording()
        self._recording = self._thread.submit(self._record, *outputs)
        if self._others is not None:
            now = self._done + self._added + len(self.unusable) + self._others()
            self._show(now, f", {len(self.unusable):,} broken" if self.unusable else "")
        if self._request.received is not None:
            raise Stopped(self._request.exit_code)

    def _record(self, found: list[Found], unusable: list[Unusable]) -> None:
        self.unusable.extend(unusable)
        assert self._shards is not None
        for image_id, path, detected in found:
            regions = store_regions(image_id, detected, getattr(torch, self._attributes.feature_dtype.name))
            try:
                image = checked_image(regions, self._attributes)
            except UserError as error:
                self.unusable.append(Unusable(path, str(error)))
                continue
            row = b"" if self._predictions is None else self._predictions.row(regions, detected)
            with self._disk():
                if self._rows is not None:
                    self._rows.write(row)
                    self._rows.flush()
                self._shards.add(image)
            self._added += 1

    def _finish_recording(self) -> None:
        """Waits for the thread, and raises what it has raised."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.result()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finishes a shard of what waits."""
        with self._stack:
            self._finish_recording()
            shards, self._shards = self._shards, None
            if shards is not None:
                with self._disk():
                    shards.flush()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_predict_end(trainer, pl_module)

    def _disk(self) -> AbstractContextManager[None]:
        folder = self._target.unfinished.folder
        return failure_told(folder, "make room and give the same command again: what is finished is safe in it")


def added_by_others(folder: Path) -> Callable[[], int]:
    """How many images other processes than the first have finished since now, whenever it is called."""
    known, looked = dict.fromkeys(shard_files(folder), 0), time.monotonic()

    def added() -> int:
        nonlocal looked
        if time.monotonic() - looked >= LOOK_SECONDS:
            looked = time.monotonic()
            new = (path for path in shard_files(folder) if path not in known and not path.name.startswith("00000-"))
            known.update({path: read_header(path).num_images for path in new})
        return sum(known.values())

    return added


def extract(config: DictConfig) -> None:
    """Composed configuration → a store of the pictures' regions at `config.output`.

    Raises UserError for whatever a person has to change. What was done until then is kept; the same command goes on.
    """
    index, count = config.shard.index, config.shard.count
    if type(index) is not int or type(count) is not int or not 0 <= index < count <= 99_999:
        raise UserError(f"shard.index={index!r} shard.count={count!r}: give an index from 0 below the count.")
    if config.dtype not in FEATURE_DTYPES:
        raise UserError(f"dtype={config.dtype!r} is unknown: give {' or '.join(FEATURE_DTYPES)}.")
    if config.on_unmatched not in ("skip", "error"):
        raise UserError(f"on_unmatched={config.on_unmatched!r} is unknown: give skip or error.")
    reading, names = ReadingOptions(**section(config, "reading")), PictureNames(**section(config, "id"))
    feed = FeedOptions(reading, config.batch_size, bool(config.mixed_sizes), config.workers)
    pictures, given, told = find_pictures(str(config.images), names), None, ""
    boxes_file, saved_in = (
        None if one is None else Path(str(one)).expanduser() for one in (config.given_boxes, config.predictions)
    )
    if boxes_file is not None:
        pictures, given, told = given_boxes(boxes_file, pictures, names, config.on_unmatched)
        given.check_first(pictures, reading)
    pictures = pictures.part(index, count)
    labels = None if config.labels is None else str(config.labels)
    path = shard_path(Path(str(config.output)).expanduser(), index, count)
    config.trainer.precision = precision_of(config, path)
    opened = open_detector(str(config.weights), labels, partial(detector_config, config), compile=bool(config.compile))
    detector = opened.detector.config
    settings = feature_settings(
        opened,
        sha256_of_file(opened.weights),
        reading,
        names=names,
        mixed_sizes=feed.mixed_sizes,
        feature_dtype=config.dtype,
        precision=str(config.trainer.precision),
        given=boxes_file,
    )
    predictions = None
    if saved_in is not None:
        settings["predictions"] = fields = list(map(str, config.prediction_fields))
        predictions = SavedPredictions(shard_path(saved_in, index, count), tuple(fields), opened.label_map)
    target = Target(path, settings, overwrite=bool(config.overwrite), weights_from=opened.hub_name)
    attributes = StoreAttributes(
        feature_dim=detector.architecture.c5_channels,
        feature_dtype=np.dtype(config.dtype).newbyteorder("<"),
        num_attributes=min(detector.attributes_per_box, detector.architecture.num_attributes),
        detector=detector_text(settings),
        label_map=opened.label_map,
    )
    if process_rank() == 0:
        say(opened.report)
        if told:
            say(told)
    try:
        detect(config, pictures, given, feed, opened.detector, target, attributes, predictions)
    except Stopped as stopped:
        if process_rank() == 0:
            say(stopped, error=True)
        sys.exit(stopped.exit_code)


def precision_of(config: DictConfig, path: Path) -> str:
    """`trainer.precision`; where it is `auto`, and says so: what the store was begun with, else what is faster here."""
    trainer, given = config.trainer, str(config.trainer.precision)
    if given != AUTO:
        return given
    begun = Unfinished(path).settings()
    if begun is None and path.is_file() and not config.overwrite:
        begun = dict(RegionStore(path).provenance)
    if begun is not None and begun.get("precision") in (WHOLE, HALF):
        chosen, why = str(begun["precision"]), f"{path} was begun with it"
    else:
        alone = trainer.devices in (1, "auto") and trainer.num_nodes == 1
        processes = config.shard.count if alone else max(2, config.shard.count)
        chosen, why = choose(str(trainer.accelerator), processes=processes)
    if process_rank() == 0:
        say(f"trainer.precision={chosen}: {why}")
    return chosen


def detect(
    config: DictConfig,
    pictures: Pictures,
    given: GivenBoxes | None,
    feed: FeedOptions,
    detector: Detector,
    target: Target,
    attributes: StoreAttributes,
    predictions: SavedPredictions | None = None,
) -> None:
    """Has all pictures looked at, or their given boxes, that were not before; one process then makes the store."""
    done = target.done()
    if predictions is not None and not target.goes_on:
        if target.earlier is not None:
            save(predictions, target.earlier)
        elif not config.overwrite:
            predictions.refuse_to_replace()
    before = sum(image_id in done for image_id in pictures.ids)
    missing = len(pictures) - before
    finishes, unusable = process_rank() == 0, list(pictures.unusable)
    if finishes:
        say(f"{target.path}: {missing:,} of {len(pictures):,} pictures to do")
        if pictures.passed_over:
            say(told_of(pictures.passed_over))
    if missing:
        shard_seconds = float(config.shard_seconds)
        so_far = {"total": len(pictures), "done": before}
        recorder = Recorder(target, attributes, **so_far, shard_seconds=shard_seconds, predictions=predictions)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer: pl.Trainer = instantiate(config.trainer, callbacks=[recorder], **quiet)
        make_feed = partial(PictureFeed, pictures, done.__contains__, detector.config, feed, given)
        every_class = predictions is not None and predictions.every_class
        trainer.predict(DetectionModule(detector, make_feed, every_class), return_predictions=False)
        finishes = trainer.is_global_zero
        found = gathered(recorder.unusable)
        missing -= len(found)
        unusable += found
    if finishes:
        unusable.sort(key=lambda one: one.path)
        write(pictures, target, attributes, unusable)
        if predictions is not None:
            save(predictions, RegionStore(target.path))
        report(target.path, missing, unusable)


def gathered(unusable: list[Unusable]) -> list[Unusable]:
    """The unusable pictures of all processes."""
    if not torch.distributed.is_initialized():
        return unusable
    parts: list[list[Unusable]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, unusable)
    return [one for part in parts for one in part]


def write(pictures: Pictures, target: Target, attributes: StoreAttributes, unusable: Sequence[Unusable]) -> None:
    """The shards become the store, or part of the one that is there."""
    unfinished, earlier = target.unfinished, target.earlier
    if unfinished.shards():
        if earlier is not None:
            earlier.require_sound(contents=True)  # or its damage would get a checksum that says it is whole
        attributes = replace(attributes, provenance=provenance(target.settings, target.weights_from))
        unfinished.finish(attributes, pictures.ids, earlier.sources if earlier else [])
        return
    unfinished.discard()
    if earlier is None:
        raise UserError(
            f"None of the {len(unusable):,} pictures could be used, so {target.path} was not written; the first: "
            f"{unusable[0].reason}"
        )


def save(predictions: SavedPredictions, store: RegionStore) -> None:
    """The rows of a finished store become its TSV, if they are not that already."""
    if process_rank() == 0 and (predictions.folder.is_dir() or not predictions.path.is_file()):
        predictions.finish(store)


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

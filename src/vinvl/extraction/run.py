"""The run of an extraction: what is there, what is to be done, and the store at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.data.pictures import Pictures, Unusable, find_pictures
from vinvl.data.store import RegionStore
from vinvl.data.store.assembly import StoreAttributes
from vinvl.data.store.journal import finish_journal, read_journal
from vinvl.data.store.spool import RowShapes
from vinvl.detection import sha256_of_file
from vinvl.detection.opening import OpenedDetector, open_detector
from vinvl.errors import UserError, printable, say
from vinvl.extraction.feed import FeedOptions, PictureFeed
from vinvl.extraction.module import DetectionModule
from vinvl.extraction.options import (
    detector_config,
    feature_dtype,
    feed_options,
    picture_names,
    shard,
    target_path,
)
from vinvl.extraction.provenance import detector_text, feature_settings, provenance
from vinvl.extraction.recorder import Recorder, Stopped
from vinvl.extraction.target import Target
from vinvl.files import atomic_write
from vinvl.overrides import command_overrides
from vinvl.runs import process_rank

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
    overrides = command_overrides()
    opened = open_detector(
        str(config.weights),
        None if config.labels is None else str(config.labels),
        partial(detector_config, config.detector, overrides),
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
    shapes = row_shapes(opened, dtype)
    target = Target(path, settings, shapes, overwrite=bool(config.overwrite))
    run = _Run(config, pictures, feed, opened, target, shapes)
    try:
        return run.finish(run.detect())
    except Stopped as stopped:
        if process_rank() == 0:
            say(stopped, error=True)
        sys.exit(stopped.exit_code)


def row_shapes(opened: OpenedDetector, dtype: str) -> RowShapes:
    """Those of a store of the detector's regions."""
    config = opened.detector.config
    attributes = min(config.attributes_per_box, config.architecture.num_attributes)
    return RowShapes(config.architecture.c5_channels, np.dtype(dtype).newbyteorder("<"), attributes)


@dataclass(frozen=True)
class _Run:
    """One process's part of an extraction; all hold the same."""

    config: DictConfig
    pictures: Pictures
    feed: FeedOptions
    opened: OpenedDetector
    target: Target
    shapes: RowShapes

    def detect(self) -> Detection:
        """Has all pictures looked at that were not before; their regions are in the journal then."""
        done = self.target.done()
        before = sum(done(image_id) for image_id in self.pictures.ids)
        missing = len(self.pictures) - before
        if process_rank() == 0:
            say(self.opened.report)
            say(f"{self.target.path}: {missing:,} of {len(self.pictures):,} pictures to do")
        if missing == 0:
            return Detection(process_rank() == 0, before, [])
        recorder = Recorder(
            self.target.path,
            self.target.begin,
            self.shapes,
            self.opened.label_map,
            total=len(self.pictures),
            done=before,
            commit_seconds=float(self.config.commit_seconds),
        )
        trainer: pl.Trainer = instantiate(
            self.config.trainer,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        feed = partial(PictureFeed, self.pictures, done, self.opened.detector.config, self.feed)
        dtype = getattr(torch, self.shapes.feature_dtype.name)
        trainer.predict(DetectionModule(self.opened.detector, dtype, feed), return_predictions=False)
        return Detection(trainer.is_global_zero, before, gathered(recorder.unusable))

    def finish(self, detected: Detection) -> Extracted:
        """The journal becomes the store, on one process; what could not be used is written beside it."""
        unusable = tuple(sorted([*self.pictures.unusable, *detected.unusable], key=lambda one: one.path))
        added = len(self.pictures) - detected.before - len(detected.unusable)
        if detected.finishes:
            self._write(unusable)
            report(self.target.path, added, unusable)
        return Extracted(self.target.path, detected.before + added, added, unusable)

    def _write(self, unusable: Sequence[Unusable]) -> None:
        earlier = self.target.earlier
        if not read_journal(self.target.path, self.shapes):
            self.target.discard()
            if earlier is None:
                raise UserError(
                    f"None of the {len(unusable):,} pictures could be used, so {self.target.path} was not written; the "
                    f"first: {unusable[0].reason}"
                )
            return
        attributes = StoreAttributes(
            self.shapes,
            detector_text(self.target.settings),
            self.opened.label_map,
            json.dumps(provenance(self.target.settings)),
        )
        if earlier is not None:
            earlier.require_sound(contents=True)  # or its damage would get a checksum that says it is whole
        finish_journal(self.target.path, attributes, self.pictures.ids, earlier.sources if earlier else [])


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

"""Annotated pictures as a LightningDataModule: splits, label map, samplers, loaders and ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch
from msgspec import Meta
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from vinvl.data.module import STAGES_OF, example_text, split_entry
from vinvl.data.sampling import Draw, evaluation_loader, training_loader
from vinvl.detector.average_precision import TrueBoxes
from vinvl.detector.config import Count, DetectorConfig
from vinvl.detector.detector import resized_pixels, resized_size
from vinvl.detector.instances import InstanceOptions
from vinvl.detector.losses import Objects
from vinvl.detector.records import PictureRecords
from vinvl.detector.sampling import told_rows
from vinvl.detector.sets import SetEntry, check_size, look_at_some, read_sets, used_rows
from vinvl.detector.weights import read_label_map
from vinvl.pictures import ReadingOptions, name_of, read_picture
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError, say
from vinvl.run.values import check_fields, shown

OBJECTS_SHOWN = 8


@dataclass(frozen=True)
class DetectionExample:
    """One picture, resized."""

    pixels: Tensor  # (H, W, 3) uint8, red-green-blue
    objects: Objects  # those to learn from, in pixels of the network's input
    truth: TrueBoxes
    index: int  # of the picture in its split
    original_size: tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class DetectionBatch:
    """B pictures, in few tensors, for each costs a handle on its way out of a data worker."""

    padded: Tensor  # (B, H, W, 3) uint8, 0 at the bottom and right of smaller pictures
    joined: Objects  # of all pictures in turn
    counts: tuple[int, ...]  # (B,) objects of each picture
    sizes: tuple[tuple[int, int], ...]  # (B,) (height, width) of each picture, resized
    original_sizes: tuple[tuple[int, int], ...]  # (B,) (width, height)
    truths: tuple[TrueBoxes, ...]
    indices: tuple[int, ...]

    @classmethod
    def of(cls, examples: Sequence[DetectionExample]) -> "DetectionBatch":
        """Pads pictures to the largest of the batch, and attributes to the most."""
        sizes = [one.pixels.shape[:2] for one in examples]
        height, width = (max(side) for side in zip(*sizes, strict=True))
        most = max(one.objects.attributes.shape[1] for one in examples)
        rows = [pad(one.objects.attributes, (0, most - one.objects.attributes.shape[1])) for one in examples]
        boxes, labels = (torch.cat(list(part)) for part in zip(*(one.objects[:2] for one in examples), strict=True))
        sized = zip(examples, sizes, strict=True)
        return cls(
            padded=torch.stack([pad(one.pixels, (0, 0, 0, width - w, 0, height - h)) for one, (h, w) in sized]),
            joined=Objects(boxes, labels, torch.cat(rows)),
            counts=tuple(len(one.objects.labels) for one in examples),
            sizes=tuple((h, w) for h, w in sizes),
            original_sizes=tuple(one.original_size for one in examples),
            truths=tuple(one.truth for one in examples),
            indices=tuple(one.index for one in examples),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_items(self) -> int:
        """Pictures: what `data.batch_size` and epochs count."""
        return len(self)

    def pictures(self) -> list[Tensor]:
        """Each picture (h, w, 3) without the padding."""
        return [one[:height, :width] for one, (height, width) in zip(self.padded.unbind(), self.sizes, strict=True)]

    def objects(self) -> list[Objects]:
        """The objects to learn from of each picture."""
        parts = (tensor.split(list(self.counts)) for tensor in self.joined)
        return [Objects(*of_picture) for of_picture in zip(*parts, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DetectionBatch":
        """The batch with every tensor on `device`."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "DetectionBatch":
        """The batch in page-locked memory (called by the DataLoader)."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "DetectionBatch":
        return replace(self, padded=change(self.padded), joined=Objects(*map(change, self.joined)))


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random in a picture that is trained on. Raises UserError for a value out of range.

    Args:
        flip_probability: of left and right changing places.
        min_sizes: the shorter side becomes one of these, each as likely, instead of the detector's min_size.
        max_size: of the longer side, instead of the detector's max_size.
    """

    flip_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    min_sizes: tuple[Count, ...] = ()
    max_size: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data.")

    def check_for(self, config: DetectorConfig) -> None:
        """Raises UserError for a shorter side that would be the longer one."""
        shortest, longest = max(self.min_sizes, default=config.min_size), self.max_size or config.max_size
        if shortest > longest:
            raise UserError(
                f"data.min_sizes or detector.min_size has {shortest}, and the longer side at most {longest}."
            )


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """One split as examples: pictures read, resized and, for training, flipped."""

    records: PictureRecords
    config: DetectorConfig  # min_size and max_size are read
    labels: LabelMap
    augmentation: Augmentation | None  # None if nothing is left to chance
    seed: int  # of the augmentation
    reading: ReadingOptions = ReadingOptions()  # noqa: RUF009, it is immutable
    rows: np.ndarray | None = None  # (E,) int32, which picture each example of an epoch is; None: each picture is one
    by_orientation: bool = False  # whether that is what `lengths` tells

    collate = staticmethod(DetectionBatch.of)  # which runs in the data workers

    def __len__(self) -> int:
        return len(self.records if self.rows is None else self.rows)

    def lengths(self) -> np.ndarray:
        """(E,) int32, by which pictures of like shape come into one batch: from the tallest to the widest.

        By orientation, int8, as published: 0 of what is wider than high, 1 of all else.
        """
        if self.by_orientation:
            upright = (self.records.sizes[:, 1] >= self.records.sizes[:, 0]).astype(np.int8)
            return upright if self.rows is None else upright[self.rows]
        shortest, longest = self.config.min_size, self.config.max_size
        sizes, which = np.unique(self.records.sizes.view(np.int64), return_inverse=True)
        different = sizes.view(np.int32).reshape(-1, 2).tolist()
        resized = np.array([resized_size(width, height, shortest, longest) for width, height in different])
        lengths = (resized[:, 0] - resized[:, 1] + longest).astype(np.int32)[which.ravel()]
        return lengths if self.rows is None else lengths[self.rows]

    def __getitem__(self, draw: Draw) -> DetectionExample:
        """
        Raises:
            UserError: the picture cannot be read, or has not the size that the annotations say.
        """
        index = draw.index if self.rows is None else int(self.rows[draw.index])
        picture = read_picture(self.records.path(index), self.reading)
        check_size(self.records, index, picture.size)
        config, flipped = self._drawn(draw)
        pixels, truth = resized_pixels(picture, config), self.records.objects(index)
        kept = learnable(truth)
        boxes = network_boxes(truth.boxes[kept], picture.size, (pixels.shape[1], pixels.shape[0]))
        if flipped:
            pixels, boxes = pixels.flip(1), mirrored(boxes, pixels.shape[1])
        objects = Objects(boxes, torch.from_numpy(truth.labels[kept]), torch.from_numpy(truth.attributes[kept]))
        return DetectionExample(pixels, objects, truth, index, picture.size)

    def show(self, example: DetectionExample) -> list[str]:
        """Lines that show a person one example."""
        height, width = example.pixels.shape[:2]
        original = " × ".join(str(side) for side in example.original_size)
        lines = [f"  {name_of(self.records.path(example.index))}: {original}, resized to {width} × {height}"]
        truth = example.truth
        for box, label, attributes in islice(
            zip(truth.boxes, truth.labels, truth.attributes, strict=True), OBJECTS_SHOWN
        ):
            words = [self.labels.attributes[one] for one in attributes.tolist() if one > 0]
            corners = ", ".join(f"{side:.0f}" for side in box)
            lines.append(f"  {' '.join([*words, self.labels.classes[label]])} at {corners}")
        more = len(truth.labels) - OBJECTS_SHOWN
        return [*lines, f"  and {more} more"] if more > 0 else lines

    def _drawn(self, draw: Draw) -> tuple[DetectorConfig, bool]:
        """The settings to resize with, and whether the picture is flipped."""
        if self.augmentation is None:
            return self.config, False
        generator = draw.generator(self.seed)
        flipped = bool(generator.random() < self.augmentation.flip_probability)
        shortest, longest = self.config.min_size, self.augmentation.max_size or self.config.max_size
        if self.augmentation.min_sizes:
            shortest = int(generator.choice(self.augmentation.min_sizes))
        return replace(self.config, min_size=shortest, max_size=longest), flipped


def learnable(truth: TrueBoxes) -> np.ndarray:
    """Which objects can be learnt from, bool (n,): single ones of more than a pixel in both directions."""
    kept: np.ndarray = ~truth.crowd & (truth.boxes[:, 2:] - truth.boxes[:, :2] > 1).all(axis=1)
    return kept


def has_learnable(boxes: pa.ListArray, crowd: pa.ListArray) -> bool:
    """Whether one of the objects of some pictures can be learnt from; lists as in `vinvl.detector.records.SCHEMA`."""
    flat, alone = boxes.flatten().to_numpy().reshape(-1, 2, 2), ~crowd.flatten().to_numpy(zero_copy_only=False)
    return bool((alone & (flat[:, 1] - flat[:, 0] > 1).all(axis=1)).any())


def network_boxes(boxes: np.ndarray, size: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Float32 boxes (n, 4) of a resized picture; they count their last pixel in, as published, those given do not.

    `size`, `resized`: (width, height) of the picture before and after.
    """
    scale = np.array([resized[0] / size[0], resized[1] / size[1]] * 2)
    return torch.from_numpy((boxes - np.array([0, 0, 1, 1])) * scale).float()


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (n, 4), their last pixel counted in, of a picture whose left and right have changed places."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=1)


def is_orientation(group_by: str) -> bool:
    """Whether training batches are grouped so, and not by shape; UserError for anything else."""
    if group_by not in ("shape", "orientation"):
        raise UserError(f"data.group_by={shown(group_by)} is unknown: give shape or orientation.")
    return group_by == "orientation"


class DetectionDataModule(pl.LightningDataModule):
    """COCO-style annotations and their pictures → batches of pictures of like shape.

    Attributes:
        datasets: stage (train, val, test) → dataset, filled by `setup`.
        skipped: as in `RegionDataModule`; nothing is counted.
    """

    def __init__(
        self,
        *,
        splits: Mapping[str, Any],
        detector: DetectorConfig = DetectorConfig(),  # noqa: B008, it is immutable
        label_map: str | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "val",
        empty_pictures: Literal["keep", "skip"] = "skip",
        bad_boxes: Literal["refuse", "clip"] = "refuse",
        on_missing: Literal["error", "skip"] = "error",
        unknown_classes: Literal["refuse", "drop"] = "refuse",
        unknown_attributes: Literal["refuse", "drop"] = "refuse",
        group_by: Literal["shape", "orientation"] = "shape",
        flip_probability: float = 0.5,
        min_sizes: Sequence[int] | None = None,
        max_size: int | None = None,
        batch_size: int = 2,
        eval_batch_size: int = 4,
        num_workers: int = 4,
        pin_memory: bool = True,
        seed: int = 88,
        prepare: Callable[[], object] | None = None,
        reading: ReadingOptions = ReadingOptions(),  # noqa: B008, it is immutable
    ) -> None:
        """Raises UserError where an option is none of its choices.

        Args:
            splits: split name → `annotations`, a COCO instances file or one that `vinvl.convert` has written, and
                `pictures`, the folder or container of its file names; or a list of several such sets, which may have a
                `class_map` each and, in training, `linelist`, `copies`, `at_least`, `repeat_threshold`: see `SetEntry`.
            detector: how pictures are resized.
            label_map: a label-map file whose order of classes and attributes the detector gets; None: those of the
                training files, in turn.
            train_split, val_split, test_split: which of `splits` each stage reads.
            empty_pictures, bad_boxes, on_missing, unknown_classes, unknown_attributes, reading: see `InstanceOptions`.
            group_by: pictures of a training batch are of like "shape", or, as published, of one "orientation".
            flip_probability, min_sizes, max_size: see `Augmentation`; None for the detector's.
            batch_size, eval_batch_size: pictures, per device.
            num_workers, pin_memory, seed, prepare: see `RegionDataModule`.
        """
        super().__init__()
        self.splits = splits
        self.split_of = {"train": train_split, "val": val_split, "test": test_split}
        self.detector = detector
        self.label_map_file = label_map
        self.options = InstanceOptions(
            bad_boxes, on_missing, empty_pictures, unknown_classes, unknown_attributes, reading
        )
        self.by_orientation = is_orientation(group_by)
        self.augmentation = Augmentation(flip_probability, tuple(min_sizes or ()), max_size)
        self.augmentation.check_for(detector)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.pin_memory = num_workers, pin_memory and torch.cuda.is_available()
        self.seed, self.prepare = seed, prepare
        self.datasets: dict[str, DetectionDataset] = {}
        self.skipped: dict[str, int] = {}
        self._label_map: LabelMap | None = None
        self._labels_of: str | None = None

    def prepare_data(self) -> None:
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Reads the splits of a stage; what is read stays. The training split comes first, to say what there is, unless
        `use_labels` has said that.

        Raises:
            UserError: a file cannot be used, or a split has no objects to learn from or to find.
        """
        names = STAGES_OF.get(stage or "fit", ())
        for name in ("train", *names) if names and self._label_map is None else names:
            if name not in self.datasets:
                self.datasets[name] = self._dataset_of(name)

    def use_labels(self, labels: LabelMap, source: str) -> None:
        """Takes the classes and attributes of a `source`, a detector, in which those of the splits are looked up.

        Warns where `data.label_map` names others: the figures are of the detector's.
        """
        file = self.label_map_file
        given = read_label_map(file) if file is not None and Path(file).is_file() else labels
        if (given.classes[1:], given.attributes[1:]) != (labels.classes[1:], labels.attributes[1:]):
            rank_zero_warn(
                f"data.label_map={file} has other names than {source}, by whose own it is scored: leave it out."
            )
        self._label_map, self._labels_of = labels, source

    @property
    def label_map(self) -> LabelMap:
        """What classes and attributes stand for, once `setup` has read it."""
        assert self._label_map is not None, "setup() comes first"
        return self._label_map

    def train_dataloader(self) -> DataLoader[DetectionExample]:
        return training_loader(self, self.datasets["train"], apart=self.by_orientation)

    def val_dataloader(self) -> DataLoader[DetectionExample]:
        return evaluation_loader(self, self.datasets["val"])

    def test_dataloader(self) -> DataLoader[DetectionExample]:
        return evaluation_loader(self, self.datasets["test"])

    def example_text(self, stage: str, index: int = 0) -> str:
        return example_text(self.datasets[stage], self.split_of[stage], index)

    def _dataset_of(self, stage: str) -> DetectionDataset:
        split, training = self.split_of[stage], stage == "train"
        same_split = [name for name in ("val", "test") if name in self.datasets and self.split_of[name] == split]
        if same_split and not training:
            return self.datasets[same_split[0]]
        entries = SetEntry.all_of(split_entry(self.splits, split), f"data.splits.{split}")
        if self._label_map is None and self.label_map_file is not None:
            self._label_map = read_label_map(self.label_map_file)
        source = self._labels_of or self.label_map_file or f"data.splits.{self.split_of['train']}"
        records, self._label_map, reports = read_sets(entries, self._label_map, self.options, source)
        rows = used_rows(records, entries, self.options, training=training, seed=self.seed)
        turned = look_at_some(records, rows, self.options.reading)
        if training and not any(map(has_learnable, records.table["boxes"].chunks, records.table["crowd"].chunks)):
            raise UserError(f"{source} has no object of more than a pixel, so there is nothing to learn.")
        sources = [one.source for one in records.sets]
        rank_zero_only(say)(*reports, *turned, *told_rows(rows, records.starts, sources))
        augmentation, grouped = self.augmentation if training else None, training and self.by_orientation
        return DetectionDataset(
            records, self.detector, self.label_map, augmentation, self.seed, self.options.reading, rows, grouped
        )

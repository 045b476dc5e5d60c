"""Annotated pictures as a LightningDataModule: splits, label map, samplers, loaders and ranks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from vinvl.data.datamodule import STAGES_OF
from vinvl.data.detection.batch import DetectionExample
from vinvl.data.detection.coco_instances import InstanceOptions, read_instances
from vinvl.data.detection.dataset import Augmentation, DetectionDataset, learnable
from vinvl.data.detection.names import read_label_map_file
from vinvl.data.detection.records import PictureRecords
from vinvl.data.loaders import Loaders
from vinvl.data.pictures import ReadingOptions
from vinvl.data.sampling import Draw
from vinvl.data.split_files import checked_entry
from vinvl.data.store.labels import LabelMap
from vinvl.detection.config import DetectorConfig
from vinvl.errors import UserError, printable
from vinvl.metrics.detection_matching import TrueBoxes

KEEP, SKIP = "keep", "skip"


class DetectionDataModule(pl.LightningDataModule):
    """COCO-style annotations and their pictures → batches of pictures of like shape.

    Attributes:
        datasets: stage (train, val, test) → dataset, filled by `setup`.
        batches_seen: batches of this rank trained on so far; the task restores it when a run is resumed.
    """

    def __init__(
        self,
        *,
        splits: Mapping[str, Mapping[str, str]],
        detector: DetectorConfig,
        label_map: str | None,
        train_split: str,
        val_split: str,
        test_split: str,
        empty_pictures: str,
        bad_boxes: str,
        on_missing: str,
        flip_probability: float,
        min_sizes: Sequence[int] | None,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        prepare: Callable[[], object] | None,
        reading: ReadingOptions = ReadingOptions(),  # noqa: B008, it is immutable
    ) -> None:
        """
        Args:
            splits: split name → `annotations`, a COCO instances file, and `pictures`, the folder of its file names.
            detector: how pictures are resized.
            label_map: a label-map file whose order of classes and attributes the detector gets; None: the training
                file's own.
            train_split, val_split, test_split: which of `splits` each stage reads.
            empty_pictures: "keep" or "skip" pictures without objects in training.
            bad_boxes, on_missing: see `InstanceOptions`.
            flip_probability, min_sizes: see `Augmentation`; min_sizes None for the detector's.
            batch_size, eval_batch_size: pictures, per device.
            num_workers, pin_memory: of the loaders.
            seed: of the order of the batches and of the augmentation.
            prepare: called before anything is read; the demo makes its annotations here.
            reading: how picture files become pixels.

        Raises:
            UserError: an option is none of its choices.
        """
        super().__init__()
        if empty_pictures not in (KEEP, SKIP):
            raise UserError(f"data.empty_pictures={empty_pictures!r} is unknown: give {KEEP} or {SKIP}.")
        if not 0 <= flip_probability <= 1:
            raise UserError(f"data.flip_probability={flip_probability} must be between 0 and 1.")
        self.splits = splits
        self.split_of = {"train": train_split, "val": val_split, "test": test_split}
        self.detector = detector
        self.label_map_file = label_map
        self.empty_pictures = empty_pictures
        self.options = InstanceOptions(bad_boxes=bad_boxes, on_missing=on_missing, reading=reading)
        self.augmentation = Augmentation(flip_probability, tuple(min_sizes or ()))
        self.loaders = Loaders(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
        )
        self.seed = seed
        self.prepare = prepare
        self.datasets: dict[str, DetectionDataset] = {}
        self._label_map: LabelMap | None = None

    def prepare_data(self) -> None:
        """Makes what can be made."""
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Reads the splits of a stage; what is read stays. The training split comes first: it says what there is.

        Raises:
            UserError: a file cannot be used, or a split has no objects to learn from or to find.
        """
        for name in ("train", *STAGES_OF.get(stage or "fit", ())):
            if name not in self.datasets:
                self.datasets[name] = self._dataset_of(name)

    @property
    def label_map(self) -> LabelMap:
        """What classes and attributes stand for, once `setup` has read it."""
        assert self._label_map is not None, "setup() comes first"
        return self._label_map

    @property
    def batches_seen(self) -> int:
        return self.loaders.batches_seen

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        self.loaders.batches_seen = count

    def train_dataloader(self) -> DataLoader[DetectionExample]:
        """Shuffled batches of this rank, of pictures of like shape, from `batches_seen` on."""
        return self.loaders.training(self.datasets["train"], self.trainer)

    def val_dataloader(self) -> DataLoader[DetectionExample]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[DetectionExample]:
        return self._evaluation_loader("test")

    def example_text(self, stage: str, index: int = 0) -> str:
        """One example, for a person to read before a run starts."""
        dataset = self.datasets[stage]
        title = f"One example of '{self.split_of[stage]}' (of {len(dataset):,}):"
        return "\n".join(map(printable, [title, *dataset.show(dataset[Draw(0, index)])]))

    def split_files(self, split: str) -> dict[str, str]:
        """Where annotations and pictures of a split lie.

        Raises:
            UserError: there is no such split, or it does not say both.
        """
        if split not in self.splits:
            raise UserError(f"There is no split '{split}' in data.splits; it has {', '.join(sorted(self.splits))}.")
        return checked_entry(self.splits[split], f"data.splits.{split}", ("annotations", "pictures"))

    def _dataset_of(self, stage: str) -> DetectionDataset:
        files = self.split_files(self.split_of[stage])
        if self._label_map is None and self.label_map_file is not None:
            self._label_map = read_label_map_file(self.label_map_file)
        records, labels = read_instances(files["annotations"], files["pictures"], self._label_map, self.options)
        self._label_map = self._label_map or labels
        if stage == "train":
            records = self._to_learn_from(records)
        if not (~records.crowd).any():
            raise UserError(f"{records.source} has no annotated objects, so it can be neither trained on nor scored.")
        if stage == "train" and not learnable(TrueBoxes(records.boxes, records.labels, records.crowd)).any():
            raise UserError(f"{records.source} has no object of more than a pixel, so there is nothing to learn.")
        augmentation = self.augmentation if stage == "train" else None
        return DetectionDataset(records, self.detector, self.label_map, augmentation, self.seed, self.options.reading)

    def _to_learn_from(self, records: PictureRecords) -> PictureRecords:
        """Without the pictures that have no objects, if so asked."""
        if self.empty_pictures == KEEP:
            return records
        owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
        counts = np.bincount(owners[~records.crowd], minlength=len(records))
        return records if counts.all() else records.select(counts > 0)

    def _evaluation_loader(self, stage: str) -> DataLoader[DetectionExample]:
        """Every picture of a stage once over all ranks."""
        return self.loaders.evaluation(self.datasets[stage], self.trainer)

"""Annotated pictures for training a detector: COCO instances JSON, with attributes where there are any."""

from vinvl.data.detection.batch import DetectionBatch, DetectionExample, Truth
from vinvl.data.detection.coco_instances import InstanceOptions, read_instances
from vinvl.data.detection.datamodule import DetectionDataModule
from vinvl.data.detection.dataset import Augmentation, DetectionDataset
from vinvl.data.detection.records import PictureRecords

__all__ = [
    "Augmentation",
    "DetectionBatch",
    "DetectionDataModule",
    "DetectionDataset",
    "DetectionExample",
    "InstanceOptions",
    "PictureRecords",
    "Truth",
    "read_instances",
]

"""Training of the detector in plain torch: what its losses are, what it starts from, how batch norm is frozen."""

from vinvl.detection.training.batch_norm import freeze_batch_norm, train_batch_norm
from vinvl.detection.training.losses import DetectorLosses, detector_losses
from vinvl.detection.training.settings import TrainingSettings
from vinvl.detection.training.starting import StartingReport, freeze_stages, initialise, load_what_fits
from vinvl.detection.training.targets import Objects

__all__ = [
    "DetectorLosses",
    "Objects",
    "StartingReport",
    "TrainingSettings",
    "detector_losses",
    "freeze_batch_norm",
    "freeze_stages",
    "initialise",
    "load_what_fits",
    "train_batch_norm",
]

"""The detector that VinVL's region features come from, in plain PyTorch: pictures in, regions out.

It reads no other part of the package but the store's label map and the reading of weight files, and is of use without a
trainer.
"""

from vinvl.detector.config import Architecture, DetectorConfig, published_config
from vinvl.detector.detector import DetectedRegions, Detector, network_input, pad_batch
from vinvl.detector.weights import DetectorLoadingReport, load_detector, read_label_map, sha256_of_file

__all__ = [
    "Architecture",
    "DetectedRegions",
    "Detector",
    "DetectorConfig",
    "DetectorLoadingReport",
    "load_detector",
    "network_input",
    "pad_batch",
    "published_config",
    "read_label_map",
    "sha256_of_file",
]

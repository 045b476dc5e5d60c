"""The detector that VinVL's region features come from, in plain PyTorch: pictures in, regions out.

It reads no other part of the package but the store's label map and the reading of weight files, and is of use without a
trainer.
"""

from vinvl.detector.config import Architecture, DetectorConfig
from vinvl.detector.detector import DetectedRegions, Detector
from vinvl.detector.weights import load_detector

__all__ = ["Architecture", "DetectedRegions", "Detector", "DetectorConfig", "load_detector"]

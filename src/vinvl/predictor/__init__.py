"""Using a trained model on pictures: `vinvl.load`."""

from vinvl.extraction.provenance import OtherFeatures
from vinvl.predictor.loading import load
from vinvl.predictor.predictor import Predictor
from vinvl.predictor.skills import Answer, Caption, PictureRegions

__all__ = ["Answer", "Caption", "OtherFeatures", "PictureRegions", "Predictor", "load"]

"""Using a trained model on pictures: `vinvl.load`."""

from vinvl.predictor.predictor import Predictor, load
from vinvl.predictor.skills import Answer, Caption, PictureRegions
from vinvl.regions.store import OtherFeatures

__all__ = ["Answer", "Caption", "OtherFeatures", "PictureRegions", "Predictor", "load"]

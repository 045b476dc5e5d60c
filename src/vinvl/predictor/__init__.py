"""Using a trained model on pictures: `vinvl.load`."""

from vinvl.predictor.pictures import PictureRegions
from vinvl.predictor.predictor import Answer, Caption, Predictor, load
from vinvl.regions.store import OtherFeatures

__all__ = ["Answer", "Caption", "OtherFeatures", "PictureRegions", "Predictor", "load"]

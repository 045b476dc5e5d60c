"""Using a trained model on pictures: `vinvl.load`."""

from vinvl.predictor.pictures import PictureRegions
from vinvl.predictor.predictor import Answer, Caption, Predictor, load
from vinvl.predictor.why import Attended
from vinvl.regions.store import OtherFeatures

__all__ = ["Answer", "Attended", "Caption", "OtherFeatures", "PictureRegions", "Predictor", "load"]

"""Region features that others extracted, in their formats → a region store."""

from vinvl.data.features_in.command import run_conversion
from vinvl.data.features_in.convert import Conversion, ConversionOptions, convert_features
from vinvl.data.features_in.rows import ReadOptions

__all__ = ["Conversion", "ConversionOptions", "ReadOptions", "convert_features", "run_conversion"]

"""Region features on disk: the HDF5 layout, its writer and its reader. Nothing else knows the layout."""

from vinvl.regions.layout import FORMAT_NAME, FORMAT_VERSION
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.shard import BOX_TOLERANCE, INVERSION_TOLERANCE
from vinvl.regions.store import RegionStore
from vinvl.regions.writer import RegionStoreWriter

__all__ = [
    "BOX_TOLERANCE",
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "INVERSION_TOLERANCE",
    "LabelMap",
    "RegionStore",
    "RegionStoreWriter",
    "Regions",
]

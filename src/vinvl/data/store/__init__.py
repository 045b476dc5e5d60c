"""Region features on disk: the HDF5 layout, its writer and its reader. Nothing else knows the layout."""

from vinvl.data.store.labels import LabelMap
from vinvl.data.store.layout import FORMAT_NAME, FORMAT_VERSION
from vinvl.data.store.reader import RegionStore
from vinvl.data.store.regions import Regions
from vinvl.data.store.verify import BOX_TOLERANCE, INVERSION_TOLERANCE
from vinvl.data.store.writer import RegionStoreWriter

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

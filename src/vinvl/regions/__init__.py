"""Region features on disk: the HDF5 layout, its writer and its reader. Nothing else knows the layout."""

from typing import TYPE_CHECKING, Any

from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore

if TYPE_CHECKING:
    from vinvl.regions.writer import RegionStoreWriter

__all__ = ["LabelMap", "RegionStore", "RegionStoreWriter", "Regions"]


def __getattr__(name: str) -> Any:
    """The writer, which a training that only reads does not load."""
    if name != "RegionStoreWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vinvl.regions.writer import RegionStoreWriter

    return RegionStoreWriter

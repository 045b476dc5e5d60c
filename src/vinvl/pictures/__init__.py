"""Pictures in folders, lists, TSV files, zip archives and LMDBs: found, named, matched with a store, and read."""

from vinvl.pictures.containers import name_of
from vinvl.pictures.finding import PictureNames, Pictures, Unusable, find_pictures, look_for, told_of
from vinvl.pictures.matching import pictures_of, pictures_of_store
from vinvl.pictures.reading import (
    EXIF_APPLY,
    EXIF_IGNORE,
    PILLOWS_LIMIT,
    ReadingOptions,
    damage,
    picture_size,
    read_picture,
    rgb_picture,
)

__all__ = [
    "EXIF_APPLY",
    "EXIF_IGNORE",
    "PILLOWS_LIMIT",
    "PictureNames",
    "Pictures",
    "ReadingOptions",
    "Unusable",
    "damage",
    "find_pictures",
    "look_for",
    "name_of",
    "picture_size",
    "pictures_of",
    "pictures_of_store",
    "read_picture",
    "rgb_picture",
    "told_of",
]

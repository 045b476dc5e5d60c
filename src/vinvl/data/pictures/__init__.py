"""Picture files: finding them, naming them, and reading them whatever kind they are."""

from vinvl.data.pictures.finding import PictureNames, Pictures, Unusable, find_pictures
from vinvl.data.pictures.reading import ReadingOptions, picture_size, read_picture, rgb_picture

__all__ = [
    "PictureNames",
    "Pictures",
    "ReadingOptions",
    "Unusable",
    "find_pictures",
    "picture_size",
    "read_picture",
    "rgb_picture",
]

"""Pictures in whatever form they are given → their regions, looked up in a store or found by a detector."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vinvl.detector.config import DetectorConfig
from vinvl.detector.detector import padded_size, resized_pixels
from vinvl.detector.weights import OpenedDetector, find_weights, open_detector, sha256_of_file
from vinvl.extraction.feed import alike
from vinvl.extraction.provenance import trained_config, unlike_detector
from vinvl.extraction.run import store_regions
from vinvl.pictures import ReadingOptions, damage, name_of, picture_size, read_picture, rgb_picture
from vinvl.predictor.trained import TrainedModel
from vinvl.regions.regions import BOX_NUMBERS, LabelMap, Regions, RegionSource, is_number
from vinvl.regions.store import OtherFeatures, RegionStore
from vinvl.run.errors import UserError, printable

FLOAT32, BFLOAT16 = "float32", "bfloat16"
PICTURES_ON_GPU = 8  # through the detector at once; on a CPU one at a time is as fast
KEPT = 512  # pictures whose regions a call keeps: 200 MB at 100 regions of 2,048 halves
SHOWN, ATTRIBUTES_SHOWN = 20, 3  # regions, and attributes of one, when they are printed


@dataclass(frozen=True)
class Computing:
    """On what device and in what precision a model computes, and how much at a time.

    Attributes:
        dtype: float32, or bfloat16 for mixed precision: weights stay in float32.
        batch_size: examples in one forward pass.
        pictures: of one padded size through the detector at once.
    """

    device: torch.device
    dtype: str
    batch_size: int
    pictures: int

    @classmethod
    def of(cls, device: str | None, dtype: str, batch_size: int, pictures: int | None) -> Computing:
        """From what a person gives; device None is the GPU if there is one. Raises UserError for what cannot be."""
        if dtype not in (FLOAT32, BFLOAT16):
            raise UserError(f"dtype={dtype!r} is unknown: give {FLOAT32} or {BFLOAT16}.")
        try:
            found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"device={device!r} cannot be used ({reason}): give cpu or cuda.") from None
        pictures = (1 if found.type == "cpu" else PICTURES_ON_GPU) if pictures is None else pictures
        for name, value in (("batch_size", batch_size), ("detector_batch_size", pictures)):
            refuse_no_count(name, value)
        return cls(found, dtype, batch_size, pictures)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """No gradients, and mixed precision where it is wanted."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == BFLOAT16):
            yield


def refuse_no_count(name: str, value: object) -> None:
    """Raises UserError for an argument that is not a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise UserError(f"{name}={value!r} must be a whole number of at least 1.")


def pixels_of(image: Any) -> Any:
    """A tensor or array as the uint8 array (H, W, 3) or (H, W) that it means; anything else as it is.

    Colours may come first, as torch has them, and fractions run from 0 to 1. Raises UserError for other fractions.
    """
    if isinstance(image, Tensor):
        image = (image.detach().float() if image.is_floating_point() else image.detach()).cpu().numpy()
    if not isinstance(image, np.ndarray):
        return image
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.shape[2:] == (1,):
        image = image[:, :, 0]
    if not np.issubdtype(image.dtype, np.floating):
        return image
    if image.size and not (image.min() >= 0 and image.max() <= 1):
        raise UserError(
            f"An array of {image.dtype} from {image.min():g} to {image.max():g} is not a picture: give fractions from "
            "0 to 1, or uint8 from 0 to 255."
        )
    return np.rint(image * 255).astype(np.uint8)


def refuse_no_picture(image: object) -> None:
    """Raises UserError for what is neither a Pillow image nor an array of pixels, and for pictures without pixels."""
    pixels = True
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(
                f"An array of {image.dtype} {image.shape} is not a picture: give uint8 (height, width, 3), red, green "
                "and blue from 0 to 255, or (height, width)."
            )
        pixels, what = image.size > 0, f"An array of the shape {image.shape}"
    elif isinstance(image, Image.Image):
        pixels, what = image.width * image.height > 0, f"A picture of {image.width} × {image.height} pixels"
    else:
        ids = ", and there are no features that it could be the id of an image in" if is_number(image) else ""
        raise UserError(
            f"A {type(image).__name__} is not a picture{ids}: give a path, a Pillow image, a NumPy array or the id of "
            "an image in features."
        )
    if not pixels:
        raise UserError(f"{what} has nothing to see in it.")


def rgb_of(image: Image.Image | np.ndarray, reading: ReadingOptions, name: str) -> Image.Image:
    """A picture in memory in RGB. Raises UserError if it cannot be decoded, or has no colours to show."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    try:
        return rgb_picture(image, reading, name)
    except UserError:
        raise
    except Exception as error:  # Pillow decodes late, and a damaged file may make a decoder raise anything
        raise damage(name, error) from None


def key_of(image: object) -> Hashable:
    """Tells pictures apart while the caller holds them: text by its content, objects by which they are."""
    return str(image) if isinstance(image, str | os.PathLike) or is_number(image) else id(image)


@dataclass(frozen=True, eq=False)
class Taken:
    """A picture that was given.

    Attributes:
        key: the same for the same picture within one call.
        name: for messages and results.
        image: its position in the store, its place (`vinvl.pictures.containers`), or what is in memory, Pillow's or
            NumPy's, which stays as it is; its regions where they are known.
    """

    key: Hashable
    name: str
    image: int | str | Image.Image | np.ndarray | FoundRegions


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """What a detector has found in a picture, like a store of one image."""

    regions: Regions
    label_map: LabelMap
    feature_dim: int

    @property
    def num_regions(self) -> np.ndarray:
        return np.array([len(self.regions)], dtype=np.int64)

    def at(self, index: int) -> Regions:
        return self.regions

    def classes_at(self, index: int) -> np.ndarray:
        return self.regions.classes


Place = tuple[RegionSource, int]
"""Where the regions of a picture are: a store or what a detector has found, and the position there."""


@dataclass(frozen=True)
class Looking:
    """What regions come from, and how.

    Attributes:
        store: where image ids are looked up first; None for none.
        detector: on its device; None for none.
        reading: how files, and Pillow's images, become pixels.
        feature_dtype: that features are rounded to, as in the store that the model was trained on.
    """

    store: RegionStore | None
    detector: OpenedDetector | None
    reading: ReadingOptions
    computing: Computing
    feature_dtype: torch.dtype

    def finds_as(self, other: Looking) -> bool:
        """Whether both find the same regions in every picture: with one file of weights, used in one way."""
        if self.detector is None or other.detector is None:
            return False
        mine, theirs = (
            (one.weights, one.label_map, one.detector.config, looking.reading, looking.computing, looking.feature_dtype)
            for one, looking in ((self.detector, self), (other.detector, other))
        )
        return mine == theirs

    def take(self, image: Any) -> Taken:
        """A picture; if it is in memory it must not change during the call.

        Raises:
            UserError: it is not a `Picture`, none has that name, or there is no detector to look at it with.
        """
        if isinstance(image, PictureRegions):
            dim = image.regions.feature_layout[0]
            return Taken(id(image), image.name, FoundRegions(image.regions, image.label_map, dim))
        if self.store is not None and is_number(image):
            image = str(image)
        if isinstance(image, str) and self.store is not None and image in self.store:
            return Taken(("id", image), image, self.store.index_of(image))
        if isinstance(image, str | os.PathLike):
            place = image if isinstance(image, str) and "\0" in image else str(self._file(image))
            taken = Taken(place, name_of(place), place)
        else:
            pixels = pixels_of(image)
            refuse_no_picture(pixels)
            taken = Taken(id(image), str(getattr(image, "filename", "") or "the picture"), pixels)
        if self.detector is None:
            instead = "" if self.store is None else ", or give the id of an image in features"
            raise UserError(
                f"{taken.name} cannot be looked at without a detector: give its weights, such as vinvl_vg_x152c4.pth, "
                f"as detector (on the command line weights=FILE){instead}."
            )
        return taken

    def _file(self, image: str | os.PathLike[str]) -> Path:
        path = Path(image).expanduser()
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the pictures in it.")
        if path.is_file():
            return path
        if self.store is None or not isinstance(image, str):
            raise UserError(f"There is no picture {path}.")
        holds = f", whose ids are like {self.store.at(0).image_id!r}" if len(self.store) else ""
        raise UserError(f"{image!r} is neither an image of {self.store!r}{holds}, nor a picture file.")

    def places(self, pictures: Sequence[Taken], kept: dict[Hashable, FoundRegions]) -> list[Place]:
        """Where the regions of each picture are. Raises UserError for a broken picture.

        `kept` is what has been found in the call before; it gets what is found now, and keeps the last `KEPT`.
        """
        wanted = {one.key: one for one in pictures if not isinstance(one.image, int | FoundRegions)}
        new = [one for key, one in wanted.items() if key not in kept]
        kept |= {one.key: found for one, found in zip(new, self.regions(new), strict=True)}
        for key in wanted:
            kept[key] = kept.pop(key)
        places: list[Place] = []
        for one in pictures:
            if isinstance(one.image, int):
                assert self.store is not None
                places.append((self.store, one.image))
            elif isinstance(one.image, FoundRegions):
                places.append((one.image, 0))
            else:
                places.append((kept[one.key], 0))
        for key in list(kept)[:-KEPT]:
            del kept[key]
        return places

    def regions(self, pictures: Sequence[Taken]) -> list[FoundRegions]:
        """What the detector finds in pictures that are not from the store, in each as if it was alone.

        Raises UserError that names a broken picture.
        """
        if not pictures:
            return []
        assert self.detector is not None
        detector, config = self.detector.detector, self.detector.detector.config
        sizes: list[tuple[int, int]] = []  # (width, height) before they are resized
        ready: dict[int, Tensor] = {}  # uint8 (height, width, 3), resized: files are read when their turn comes
        for number, one in enumerate(pictures):
            if isinstance(one.image, str):
                sizes.append(picture_size(one.image, self.reading))
            else:
                assert not isinstance(one.image, int | FoundRegions)
                rgb = rgb_of(one.image, self.reading, one.name)
                sizes.append(rgb.size)
                ready[number] = resized_pixels(rgb, config)
        found: dict[int, FoundRegions] = {}
        padded = [padded_size(*size, config) for size in sizes]
        for batch in alike(range(len(pictures)), padded, self.computing.pictures, mixed_sizes=False):
            for number in batch:
                if isinstance(place := pictures[number].image, str):
                    ready[number] = resized_pixels(read_picture(place, self.reading), config)
            with self.computing.precision():
                seen = detector.detect_pixels([ready.pop(i) for i in batch], [sizes[i] for i in batch])
            for number, one_seen in zip(batch, seen, strict=True):
                regions = store_regions(pictures[number].name, one_seen, self.feature_dtype)
                found[number] = FoundRegions(regions, self.detector.label_map, config.architecture.c5_channels)
        return [found[number] for number in range(len(pictures))]


@dataclass(frozen=True, eq=False, repr=False)
class PictureRegions:
    """The R regions of a picture, by falling score.

    Attributes:
        name: of the picture: its path, or its image id in a store.
        regions: with boxes, features, scores and numbers of classes and attributes.
        label_map: what the numbers mean; may be without names.
    """

    name: str
    regions: Regions
    label_map: LabelMap

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels"""
        return self.regions.width, self.regions.height

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) float32: x1, y1, x2, y2 in pixels"""
        return self.regions.boxes

    @property
    def features(self) -> np.ndarray:
        """(R, D) in the data type of stores"""
        return self.regions.features

    @property
    def scores(self) -> np.ndarray:
        """(R,) float32, of the classes"""
        return self.regions.class_scores

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """R names"""
        return tuple(_name(self.label_map.classes, "class", index) for index in self.regions.classes.tolist())

    @property
    def tags(self) -> tuple[str, ...]:
        """R names: those of the classes, which a model reads as the picture's tags"""
        return self.classes

    @cached_property
    def attributes(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Of each region the names and scores of its attributes, surest first."""
        names, found = self.label_map.attributes, self.regions
        return tuple(
            tuple((_name(names, "attribute", index), score) for index, score in zip(row, scores, strict=True) if index)
            for row, scores in zip(found.attributes.tolist(), found.attribute_scores.tolist(), strict=True)
        )

    def __repr__(self) -> str:
        width, height = self.size
        return f"PictureRegions({self.name!r}: {len(self)} regions of {width} × {height} pixels)"

    def __str__(self) -> str:
        width, height = self.size
        lines = [f"{self.name}: {len(self)} regions of {width} × {height} pixels"]
        longest = max(map(len, self.classes[:SHOWN]), default=0)
        told = zip(self.classes[:SHOWN], self.scores, self.attributes, self.boxes, strict=False)
        for name, score, attributes, box in told:
            place = " ".join(f"{value:6.0f}" for value in box)
            described = ", ".join(f"{word} {share:.2f}" for word, share in attributes[:ATTRIBUTES_SHOWN])
            lines.append(f"  {score:.2f}  {name:<{longest}}  {place}  {described}".rstrip())
        if len(self) > SHOWN:
            lines.append(f"  … and {len(self) - SHOWN} more")
        return "\n".join(map(printable, lines))


Picture = str | int | os.PathLike[str] | Image.Image | np.ndarray | Tensor | PictureRegions
"""A path, the id of an image, which may be a number, a Pillow image of any mode, an array or tensor (H, W, 3),
(3, H, W) or (H, W), red, green and blue, uint8 or fractions from 0 to 1, or the regions that a model has found in a
picture before."""


def _name(names: tuple[str, ...], kind: str, index: int) -> str:
    return names[index] if names else f"{kind} {index}"


# What a model is asked with, held against what it was trained on.


Configure = Callable[[DetectorConfig | None], DetectorConfig]


def detector_for(
    trained: TrainedModel,
    weights: str | Path,
    labels: str | Path | None,
    config: DetectorConfig | Configure | None,
    reading: ReadingOptions,
) -> OpenedDetector:
    """The detector as the model's features want it. Warns where it makes others."""
    (path, hub_name), record, usage = find_weights(weights), trained.features, trained.usage
    sha256 = ""
    if "weights_sha256" in record.provenance:
        with suppress(OSError):  # of a file that cannot be read the detector's loading says why
            sha256 = sha256_of_file(path)

    def configure(own: DetectorConfig | None) -> DetectorConfig:
        known = trained_config(record, sha256, own) if sha256 else own
        if isinstance(config, DetectorConfig):
            return config
        return config(known) if config is not None else known or DetectorConfig()

    opened = open_detector(hub_name or path, labels, configure)
    _check_dimension(trained, opened.detector.config.architecture.c5_channels, f"The detector {path} makes")
    _warn(unlike_detector(record, opened, sha256, reading))
    if usage is not None and usage.use_tags and not opened.label_map.classes:
        raise UserError(
            f"{path} has no names of classes, and {trained.name} was trained with them as tags: pass labels=FILE, or "
            "inputs={'use_tags': False} to do without."
        )
    if usage is not None and usage.tags is not None:
        those = "those of a picture are the classes that the detector finds"
        _warn(f"{trained.name} was trained with tags from {usage.tags}; {those}.")
    return opened


def store_for(trained: TrainedModel, features: str | Path | Sequence[str | Path]) -> RegionStore:
    """The store of the image ids. Warns where its features are others than the model's."""
    store = RegionStore(features)
    store.require_sound()
    _check_dimension(trained, store.feature_dim, f"{store!r} holds")
    _warn(trained.features.unlike(store))
    usage = trained.usage
    if usage is not None and usage.use_tags and usage.tags_of_store is None and not store.label_map.classes:
        _warn(f"{store!r} has no names of classes, so its images have no tags, which {trained.name} is given.")
    elif usage is not None and usage.tags != usage.tags_of_store:
        _warn(f"{trained.name} was trained with tags from {usage.tags}; here they are the classes of {store!r}.")
    return store


def _check_dimension(trained: TrainedModel, found: int, what: str) -> None:
    wanted = trained.model.config.img_feature_dim - BOX_NUMBERS
    if found != wanted:
        raise UserError(
            f"{what} features of {found:,} numbers, and {trained.name} was trained on features of {wanted:,}: give "
            "those that it was trained on."
        )


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        warnings.warn(printable(sentence), OtherFeatures, stacklevel=4)  # where `load` is called

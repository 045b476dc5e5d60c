"""Features of any format that is known → one region store, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from vinvl.data.features_in.lines import Found
from vinvl.data.features_in.progress import progress_bar
from vinvl.data.features_in.rows import ReadOptions
from vinvl.data.features_in.sniff import find_features
from vinvl.data.features_in.source import SourceFiles, open_source
from vinvl.data.json_files import read_bytes
from vinvl.data.store import LabelMap, RegionStoreWriter
from vinvl.errors import UserError
from vinvl.files import refuse_existing, work_folder


@dataclass(frozen=True)
class ConversionOptions:
    """How features are converted.

    Attributes:
        read: what the files do not say about themselves.
        predictions: file of boxes, classes and attributes; None for the `predictions.tsv` beside a `features.tsv`.
        sizes: file of image widths and heights.
        labels: label map of the detector; None takes the names of the predictions in alphabetical order.
        detector: which detector made the features, with its settings, as the store will say.
        images_per_shard: makes a folder of shards; None makes one file.
        workers: processes that decode; None for one a core.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    predictions: Path | None = None
    sizes: Path | None = None
    labels: Path | None = None
    detector: str | None = None
    images_per_shard: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Conversion:
    """What was written, and how many bytes of features were read for it."""

    format: str
    images: int
    regions: int
    read_bytes: int


def convert_features(source: str | Path, target: str | Path, options: ConversionOptions) -> Conversion:
    """Writes a region store of other people's features, in memory that does not grow with them but for the image ids.

    Args:
        source: a TSV of Oscar, VinVL, bottom-up-attention or LXMERT, a `.pt` of tensors, or a folder of any of these,
            of MMF's npy files or of npz files.
        target: the file to make, or with `images_per_shard` the folder.
        options: what the files do not say.

    Raises:
        UserError: `target` exists or cannot be written; a file is missing, or a row of it wrong: the sentence names
            file and row. Nothing is left of `target` then.
    """
    target = Path(target)
    refuse_existing(target)
    found = find_features(Path(source))
    labels = None
    if options.labels is not None:
        labels = LabelMap.from_json(read_bytes(options.labels).decode("utf-8", "replace"), str(options.labels))
    workers = options.workers if options.workers is not None else os.cpu_count() or 1
    with work_folder(target) as scratch:
        files = SourceFiles(options.predictions, options.sizes, labels)
        opened = open_source(found, files, options.read, scratch, workers)
        leading = _until_regions(opened.images)
        if not leading:
            raise UserError(f"{source} holds no images.")
        first = leading[-1].regions
        feature_dim = first.features.shape[1] or options.read.feature_dim
        writer = RegionStoreWriter(
            target,
            feature_dim=feature_dim,
            detector=options.detector or f"not named; converted from {found.format.value}",
            label_map=opened.label_map,
            num_attributes=first.attributes.shape[1],
            feature_dtype=options.read.feature_dtype,
            max_images_per_shard=options.images_per_shard,
        )
        with writer:
            with progress_bar(opened.total_bytes) as show:
                images, regions = _write(chain(leading, opened.images), writer, feature_dim, show)
            refuse_existing(target)
    return Conversion(found.format.value, images, regions, opened.total_bytes)


def _until_regions(found: Iterator[Found]) -> list[Found]:
    """The images up to the first that has regions: base64 of no regions does not tell how long features are."""
    leading = []
    for image in found:
        leading.append(image)
        if len(image.regions):
            break
    return leading


def _write(
    found: Iterable[Found], writer: RegionStoreWriter, feature_dim: int, show: Callable[[int, int], None]
) -> tuple[int, int]:
    """(images, regions) that were added."""
    images = regions = 0
    for place, image, position in found:
        if not len(image):
            image = replace(image, features=image.features.reshape(0, feature_dim))
        elif image.features.shape[1] != feature_dim:
            raise UserError(
                f"{place}: image {image.image_id!r} has features of dimension {image.features.shape[1]}, those "
                f"before it have {feature_dim}; a store has one dimension."
            )
        try:
            writer.add(image)
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            raise UserError(f"{place}: {str(error).removeprefix(f'{writer.path}: ')}") from None
        images += 1
        regions += len(image)
        show(position, images)
    return images, regions

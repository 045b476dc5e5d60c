"""`predictions.tsv` beside a store: all that the detector says of regions, as the published TSV_SAVE_SUBSET saves it.

While the store is made, each process appends its rows to a file of its own in a folder beside the TSV, each before its
image is in a shard: a finished shard has all its rows there, however the process ended.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from vinvl.detector.detector import DetectedRegions
from vinvl.regions.formats.export import region_objects
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import PARTIAL_SUFFIX, atomic_write, failure_told
from vinvl.run.values import shown

FIELDS = ("rect", "class", "conf", "feature", "scores_all", "boxes_all", "attributes", "attr_scores")
OF_EVERY_CLASS = ("scores_all", "boxes_all")
Rows = dict[str, tuple[int, int, int]]  # image id → number of the file, first byte, byte behind the last


@dataclass(frozen=True)
class SavedPredictions:
    """A TSV of a row an image, in the order of a store, with its `.lineidx`.

    A row is the image id and {"image_w", "image_h", "objects": [{"rect", "bbox_id", "class", "conf", "attributes",
    "attr_scores", "feature", "scores_all", "boxes_all"}]}. The last three are base64 of float32: D numbers, the
    probabilities of C classes, background first, and their boxes (where boxes are given one), pixels of the picture.

    Raises UserError for fields that are none, or class names that nobody knows.
    """

    path: Path
    fields: tuple[str, ...]
    labels: LabelMap

    def __post_init__(self) -> None:
        if not self.fields or not set(self.fields) <= set(FIELDS):
            given = shown(next((name for name in self.fields if name not in FIELDS), list(self.fields)))
            raise UserError(f"prediction_fields holds {given}: give some of {', '.join(FIELDS)}.")
        if "class" in self.fields and not self.labels.classes:
            raise UserError(
                "predictions have the names of classes: give labels=FILE, or prediction_fields without class."
            )

    @property
    def every_class(self) -> bool:
        """Whether a region's numbers for every class are wanted."""
        return not set(self.fields).isdisjoint(OF_EVERY_CLASS)

    @property
    def folder(self) -> Path:
        """Of the rows, while the store is made."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)

    def row(self, regions: Regions, found: DetectedRegions) -> bytes:
        """The row of an image, with its end. Raises UserError for an id that no TSV can hold."""
        if not regions.image_id.isprintable():
            raise UserError(f"image {regions.image_id!r} has an id that no TSV can hold.")
        objects = region_objects(regions, self.labels)
        arrays = {"feature": found.features, "scores_all": found.class_probabilities, "boxes_all": found.class_boxes}
        columns = {
            name: _base64(tensor) for name, tensor in arrays.items() if tensor is not None and name in self.fields
        }
        for number, entry in enumerate(objects):
            entry |= {"bbox_id": number} | {name: column[number] for name, column in columns.items()}
        kept = {"bbox_id", *self.fields}
        objects = [{name: value for name, value in entry.items() if name in kept} for entry in objects]
        content = {"image_w": regions.width, "image_h": regions.height, "objects": objects}
        return f"{regions.image_id}\t{json.dumps(content)}\n".encode()

    def refuse_to_replace(self) -> None:
        """Raises UserError if there is a file that is not of a store that is gone on with."""
        if self.path.exists():
            raise UserError(f"predictions={self.path} exists: give another name, or overwrite=true to replace it.")

    def begin(self, anew: bool) -> None:
        """Makes the folder of the rows; `anew`: without those that are there."""
        if anew:
            shutil.rmtree(self.folder, ignore_errors=True)
        with failure_told(self.path, "check folder, permissions and room"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def rows_of(self, process: int) -> BinaryIO:
        """The file to append a process's rows to, without a last one that was not finished."""
        file = (self.folder / f"{process:05d}.tsv").open("a+b")
        end = 0
        file.seek(0)
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)
        return file

    def finish(self, store: RegionStore) -> None:
        """Makes the TSV of the rows, and of those of an earlier one, and removes the folder.

        Raises UserError if an image of the store has no row; nothing is changed then.
        """
        sources = [path for path in (self.path, *sorted(self.folder.glob("*.tsv"))) if path.is_file()]
        rows: Rows = {}
        for number, path in enumerate(sources):
            rows |= {image_id: (number, start, stop) for image_id, start, stop in _rows_in(path)}
        starts = [0]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in sources]
            target = stack.enter_context(atomic_write(self.path, "wb"))
            for image_id in store.image_ids:
                if image_id not in rows:
                    remedy = "give overwrite=true to make both anew"
                    raise UserError(f"{self.path} lacks image {shown(str(image_id))} of {store!r}: {remedy}.")
                number, start, stop = rows[image_id]
                files[number].seek(start)
                target.write(files[number].read(stop - start))
                starts.append(starts[-1] + stop - start)
        with atomic_write(self.path.with_suffix(".lineidx")) as index:
            index.writelines(f"{start}\n" for start in starts[:-1])
        shutil.rmtree(self.folder, ignore_errors=True)


def _rows_in(path: Path) -> Iterator[tuple[str, int, int]]:
    """Image id, first byte and the byte behind the last of each finished row."""
    stop = 0
    with path.open("rb") as file:
        for line in file:
            start, stop = stop, stop + len(line)
            if line.endswith(b"\n"):
                yield line.partition(b"\t")[0].decode("utf-8", "replace"), start, stop


def _base64(tensor: Tensor) -> list[str]:
    """Of each row of a tensor (n, …)."""
    array = np.ascontiguousarray(tensor.float().cpu().numpy(), dtype="<f4")
    return [base64.b64encode(row.tobytes()).decode() for row in array]

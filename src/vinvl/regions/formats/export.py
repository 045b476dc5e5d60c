"""A store → files as Oscar and VinVL read them, or MMF."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError


def write_mmf_npy(store: RegionStore, folder: Path) -> None:
    """Writes an image after the other into a folder that is there and empty; "val/42" becomes `val/42.npy`.

    ID.npy       (R, D) float32
    ID_info.npy  {"bbox" (R, 4) in pixels, "num_boxes", "objects" (R,), "cls_prob" (R,), "image_width", "image_height",
                 and of a store with attributes "attributes" and "attribute_scores" (R, K)}; classes as in the store,
                 0 is the background ("class_offset" 0 tells the way back so)

    Raises:
        UserError: an image id cannot be a path below the folder, or two would be one file.
    """
    for number in range(len(store)):
        regions = store.at(number)
        path = folder / f"{_safe(regions.image_id, regions.source)}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UserError(f"{regions.source}: image {regions.image_id!r} would be written over another: {path.name}.")
        info: Any = {
            "bbox": np.array(regions.boxes),
            "num_boxes": len(regions),
            "objects": np.array(regions.classes),
            "class_offset": 0,
            "cls_prob": np.array(regions.class_scores),
            "image_width": regions.width,
            "image_height": regions.height,
        }
        if store.num_attributes:
            info |= {"attributes": np.array(regions.attributes), "attribute_scores": np.array(regions.attribute_scores)}
        np.save(path, regions.features.astype(np.float32))
        np.save(path.with_name(f"{path.stem}_info.npy"), info)


def _safe(image_id: str, source: str) -> str:
    parts = PurePosixPath(image_id).parts
    unfit = image_id.startswith("/") or ".." in parts or "\\" in image_id or not image_id.isprintable()
    if unfit or image_id.endswith("_info"):
        raise UserError(f"{source}: image {image_id!r} has an id that is no name of a file below the folder.")
    return image_id


class _IndexedTsv:
    """A TSV with its `.lineidx`, which lists the byte where each line begins."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._rows: IO[bytes] = stack.enter_context(path.open("wb"))
        self._index: IO[bytes] = stack.enter_context(path.with_suffix(".lineidx").open("wb"))
        self._position = 0

    def write(self, *columns: bytes) -> None:
        row = b"\t".join(columns) + b"\n"
        self._index.write(b"%d\n" % self._position)
        self._position += self._rows.write(row)


def write_oscar_tsv(store: RegionStore, folder: Path) -> None:
    """Writes an image after the other into a folder that is there and empty.

    features.tsv      id, R, base64 of float32 (R, D + 6): features and geometry, as Oscar+ pre-training reads them
    predictions.tsv   id, {"image_w", "image_h", "objects": [{"class", "conf", "rect", "attributes", "attr_scores"}]};
                      only of a store that knows the names of its classes
    hw.tsv            id, [{"height", "width"}]
    imageid2idx.json  {id: row}

    Raises:
        UserError: an image id holds a tab or an end of line.
    """
    with ExitStack() as stack:
        features = _IndexedTsv(folder / "features.tsv", stack)
        sizes = _IndexedTsv(folder / "hw.tsv", stack)
        predictions = _IndexedTsv(folder / "predictions.tsv", stack) if store.label_map.classes else None
        rows = stack.enter_context((folder / "imageid2idx.json").open("w", encoding="utf-8"))
        rows.write("{")
        for number in range(len(store)):
            regions = store.at(number)
            image_id = regions.image_id.encode()
            if not regions.image_id.isprintable():
                raise UserError(f"{regions.source}: image {regions.image_id!r} has an id that no TSV can hold.")
            rows.write(f"{', ' if number else ''}{json.dumps(regions.image_id)}: {number}")
            content = np.ascontiguousarray(regions.rows(), dtype="<f4").tobytes()
            features.write(image_id, b"%d" % len(regions), base64.b64encode(content))
            size = [{"height": regions.height, "width": regions.width}]
            sizes.write(image_id, json.dumps(size).encode())
            if predictions:
                predictions.write(image_id, json.dumps(_objects(regions, store.label_map)).encode())
        rows.write("}\n")


def _objects(regions: Regions, labels: LabelMap) -> dict[str, Any]:
    objects = []
    for region in range(len(regions)):
        entry = {
            "class": labels.classes[regions.classes[region]],
            "conf": float(regions.class_scores[region]),
            "rect": regions.boxes[region].tolist(),
        }
        numbers = regions.attributes[region]
        if len(numbers) and labels.attributes:
            present = numbers > 0
            entry["attributes"] = [labels.attributes[number] for number in numbers[present]]
            entry["attr_scores"] = regions.attribute_scores[region][present].tolist()
        objects.append(entry)
    return {"image_w": regions.width, "image_h": regions.height, "objects": objects}

"""A store → files as Oscar and VinVL read them, or MMF, or meshed-memory. Each writer returns what it left out."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np

from vinvl.regions.formats.classes import USUAL_NAMES
from vinvl.regions.formats.source import LABEL_MAP
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import new_folder


def write_mmf_npy(store: RegionStore, folder: Path) -> str:
    """Writes an image after the other into a folder that is there and empty; "val/42" becomes `val/42.npy`.

    ID.npy       (R, D) float32
    ID_info.npy  {"bbox" (R, 4) in pixels, "num_boxes", "objects" (R,), "cls_prob" (R,), "image_width", "image_height",
                 and of a store with attributes "attributes" and "attribute_scores" (R, K)}; classes as in the store,
                 0 is the background ("class_offset" 0 tells the way back so)
    label_map.json  the names of classes and attributes, if the store has them

    Raises:
        UserError: an image id cannot be a path below the folder, or two would be one file.
    """
    for number in range(len(store)):
        regions = store.at(number)
        image_id, named = regions.image_id, f"{regions.source}: image {regions.image_id!r}"
        unfit = image_id.startswith("/") or ".." in PurePosixPath(image_id).parts or "\\" in image_id
        if unfit or not image_id.isprintable() or image_id.endswith("_info"):
            raise UserError(f"{named} has an id that is no name of a file below the folder.")
        path = folder / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise UserError(f"{named} would be written over another: {path.name}.")
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
    _write_names(store, folder)
    return ""


def _write_names(store: RegionStore, folder: Path) -> None:
    if store.label_map.classes:
        (folder / LABEL_MAP).write_text(store.label_map.to_json() + "\n", encoding="utf-8")


def write_m2_hdf5(store: RegionStore, folder: Path) -> str:
    """Writes `detections.hdf5` into a folder that is there and empty; arrays of float32.

    ID_features  (R, D)
    ID_boxes     (R, 4) in pixels
    ID_cls_prob  (R, C) zeros but for the score of each region's class; C counts the background, which is first. Only if
                 the store knows the names of its classes, or has the 1,601 numbers of Visual Genome's detectors
    ID_size      (1, 2) height and width, as DLCT has it; meshed-memory reads the others alone
    label_map.json as `write_mmf_npy`

    Raises:
        UserError: an image id cannot be a name in HDF5.
    """
    columns, without, ids = len(store.label_map.classes) or USUAL_NAMES["class"], 0, 0
    attributes = " Attributes have no place in it." if store.num_attributes else ""
    with h5py.File(folder / "detections.hdf5", "w") as file:
        for number in range(len(store)):
            regions = store.at(number)
            image_id, classes, scores = regions.image_id, regions.classes, regions.class_scores
            if not image_id.isprintable() or "/" in image_id or image_id == ".":
                raise UserError(f"{regions.source}: image {image_id!r} has an id that is no name in HDF5.")
            ids += not image_id.isdecimal()
            file[f"{image_id}_features"] = regions.features.astype(np.float32)
            file[f"{image_id}_boxes"] = regions.boxes
            file[f"{image_id}_size"] = np.array([[regions.height, regions.width]])
            if np.all(scores > 0) and classes.max(initial=0) < columns:
                table = np.zeros((len(regions), columns), dtype=np.float32)
                table[np.arange(len(regions)), classes] = scores
                file.create_dataset(f"{image_id}_cls_prob", data=table, compression="gzip" if table.size else None)
            else:
                without += 1
    _write_names(store, folder)
    told = f" {without:,} images have no cls_prob: a class without a score has no place in it." if without else ""
    names = f" {ids:,} ids are no numbers, as meshed-memory wants them." if ids else ""
    return f"{told}{attributes}{names}".strip()


def write_oscar_tsv(store: RegionStore, folder: Path) -> str:
    """Writes an image after the other into a folder that is there and empty; a `.lineidx` beside each TSV.

    features.tsv      id, R, base64 of float32 (R, D + 6): features and geometry, as Oscar+ pre-training reads them
    predictions.tsv   id, {"image_w", "image_h", "objects": [{"class", "conf", "rect", "attributes", "attr_scores"}]};
                      only of a store that knows the names of its classes
    hw.tsv            id, [{"height", "width"}]
    imageid2idx.json  {id: row}

    Raises:
        UserError: an image id holds a tab or an end of line.
    """
    with ExitStack() as stack:
        names = ["features", "hw", *(["predictions"] if store.label_map.classes else [])]
        files = {
            name: [stack.enter_context((folder / f"{name}.{end}").open("wb")) for end in ("tsv", "lineidx")]
            for name in names
        }
        rows = stack.enter_context((folder / "imageid2idx.json").open("w", encoding="utf-8"))
        rows.write("{")
        for number in range(len(store)):
            regions = store.at(number)
            if not regions.image_id.isprintable():
                raise UserError(f"{regions.source}: image {regions.image_id!r} has an id that no TSV can hold.")
            rows.write(f"{', ' if number else ''}{json.dumps(regions.image_id)}: {number}")
            content = base64.b64encode(np.ascontiguousarray(regions.rows(), dtype="<f4").tobytes())
            columns = {
                "features": b"%d\t%s" % (len(regions), content),
                "hw": json.dumps([{"height": regions.height, "width": regions.width}]).encode(),
            }
            if "predictions" in files:
                columns["predictions"] = json.dumps(_predictions(regions, store.label_map)).encode()
            for name, (tsv, index) in files.items():
                index.write(b"%d\n" % tsv.tell())
                tsv.write(b"%s\t%s\n" % (regions.image_id.encode(), columns[name]))
        rows.write("}\n")
    without = "predictions" not in names and any(store.classes_at(number).any() for number in range(len(store)))
    return "Classes are left out: their numbers have no names, which predictions.tsv needs." if without else ""


def _predictions(regions: Regions, labels: LabelMap) -> dict[str, Any]:
    return {"image_w": regions.width, "image_h": regions.height, "objects": region_objects(regions, labels)}


def region_objects(regions: Regions, labels: LabelMap) -> list[dict[str, Any]]:
    """Of each region "class", "conf", "rect", "attributes", "attr_scores"; what has no names is left out."""
    objects = []
    for region in range(len(regions)):
        entry: dict[str, Any] = {"class": labels.classes[regions.classes[region]]} if labels.classes else {}
        entry |= {"conf": float(regions.class_scores[region]), "rect": regions.boxes[region].tolist()}
        numbers = regions.attributes[region]
        if len(numbers) and labels.attributes:
            present = numbers > 0
            entry["attributes"] = [labels.attributes[number] for number in numbers[present]]
            entry["attr_scores"] = regions.attribute_scores[region][present].tolist()
        objects.append(entry)
    return objects


STORE_FORMATS = {"oscar_tsv": write_oscar_tsv, "mmf_npy": write_mmf_npy, "m2_hdf5": write_m2_hdf5}


def export_store(source: Path, target: Path, form: str) -> list[str]:
    """Writes a store into a new folder as one of `STORE_FORMATS`; what there is to say. Raises UserError."""
    store = RegionStore(source)
    store.require_sound()
    with new_folder(target) as folder:
        left_out = STORE_FORMATS[form](store, folder)
    return [f"{target}: the features of {source} as {form}", *([left_out] if left_out else [])]

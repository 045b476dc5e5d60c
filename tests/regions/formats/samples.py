"""Made-up images in the formats of other people's features, written as those people's programs write them."""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import lmdb
import msgspec
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from vinvl.convert import convert
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory

DIM = 8
CLASSES = ("cat", "dog", "tree")
COLOURS = ("black", "red")


@dataclass(frozen=True)
class Sample:
    """One image as a detector saw it; names by index into CLASSES and COLOURS."""

    image_id: str
    features: np.ndarray  # (R, DIM) float32, halves without loss
    boxes: np.ndarray  # (R, 4) float32, whole pixels
    classes: np.ndarray
    scores: np.ndarray
    colours: np.ndarray
    width: int
    height: int

    @property
    def geometry(self) -> np.ndarray:
        edge = np.array([self.width, self.height] * 2, dtype=np.float32)
        shares = self.boxes / edge
        return np.concatenate([shares, shares[:, 2:] - shares[:, :2]], axis=1).astype(np.float32)

    @property
    def rows(self) -> np.ndarray:
        """(R, DIM + 6)"""
        return np.concatenate([self.features, self.geometry], axis=1)


def samples(count: int = 5, seed: int = 0) -> list[Sample]:
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        regions = 2 + number % 3
        width, height = 640 - number, 480 + number
        corners = random.integers(0, [width - 1, height - 1], size=(regions, 2))
        sides = random.integers(1, [width, height] - corners + 1)
        sides = np.maximum(sides, 1)
        boxes = np.concatenate([corners, np.minimum(corners + sides, [width, height])], axis=1).astype(np.float32)
        boxes[0] = [0, 0, width, height]
        images.append(
            Sample(
                image_id=str(100 + 7 * number),
                features=random.standard_normal((regions, DIM)).astype(np.float16).astype(np.float32),
                boxes=boxes,
                classes=random.integers(0, len(CLASSES), regions),
                scores=random.random(regions, dtype=np.float32),
                colours=random.integers(0, len(COLOURS), regions),
                width=width,
                height=height,
            )
        )
    return images


def encoded(array: np.ndarray, dtype: str = "<f4") -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()


def oscar_line(image: Sample, dialect: str = "columns", rows: np.ndarray | None = None) -> str:
    rows = image.rows if rows is None else rows
    if dialect == "columns":
        return f"{image.image_id}\t{len(rows)}\t{encoded(rows)}\n"
    return f"{image.image_id}\t{json.dumps({'num_boxes': len(rows), 'features': encoded(rows)})}\n"


def objects_of(image: Sample, with_features: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "class": CLASSES[image.classes[region]],
            "conf": float(image.scores[region]),
            "rect": image.boxes[region].tolist(),
            "attributes": [COLOURS[image.colours[region]], COLOURS[1 - image.colours[region]]][: 1 + region % 2],
            "attr_scores": [0.75, 0.25][: 1 + region % 2],
            **({"feature": encoded(image.features[region])} if with_features else {}),
        }
        for region in range(len(image.features))
    ]


def prediction_line(image: Sample, with_size: bool = True, with_features: bool = False) -> str:
    size = {"image_w": image.width, "image_h": image.height} if with_size else {}
    return f"{image.image_id}\t{json.dumps({**size, 'objects': objects_of(image, with_features)})}\n"


def bottom_up_line(image: Sample) -> str:
    head = f"{image.image_id}\t{image.width}\t{image.height}\t{len(image.boxes)}"
    return f"{head}\t{encoded(image.boxes)}\t{encoded(image.features)}\n"


def lxmert_line(image: Sample) -> str:
    columns = [
        image.image_id,
        str(image.height),
        str(image.width),
        encoded(image.classes, "<i8"),
        encoded(image.scores),
        encoded(image.colours, "<i8"),
        encoded(image.scores / 2),
        str(len(image.boxes)),
        encoded(image.boxes),
        encoded(image.features),
    ]
    return "\t".join(columns) + "\n"


def write_lines(path: Path, lines: Sequence[str], *, lineidx: bool = False) -> Path:
    """A TSV, with the index that lies beside published ones."""
    path.write_text("".join(lines))
    if lineidx:
        begins = np.cumsum([0, *(len(line.encode()) for line in lines)])[:-1]
        path.with_suffix(".lineidx").write_text("".join(f"{begin}\n" for begin in begins))
    return path


def published_folder(folder: Path, images: Sequence[Sample], dialect: str = "columns", sizes: bool = True) -> Path:
    """`features.tsv`, `.lineidx`, `imageid2idx.json` and `predictions.tsv` (of another order) with its index."""
    folder.mkdir(parents=True)
    write_lines(folder / "features.tsv", [oscar_line(image, dialect) for image in images], lineidx=True)
    ids = {image.image_id: number for number, image in enumerate(images)}
    (folder / "imageid2idx.json").write_text(json.dumps(ids))
    predictions = [prediction_line(image, with_size=sizes) for image in reversed(images)]
    write_lines(folder / "predictions.tsv", predictions, lineidx=True)
    return folder


def write_npy_folder(folder: Path, images: Sequence[Sample]) -> Path:
    """As MMF's scripts save features: an array and a pickled dict for each image."""
    for image in images:
        path = folder / f"{image.image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image.features)
        info: Any = {
            "bbox": image.boxes,
            "num_boxes": len(image.boxes),
            "objects": image.classes,
            "cls_prob": image.scores,
            "image_width": np.int64(image.width),
            "image_height": image.height,
        }
        np.save(path.with_name(f"{path.stem}_info.npy"), info)
    return folder


def write_npz_folder(folder: Path, images: Sequence[Sample], **more: Any) -> Path:
    """As bottom-up-attention's scripts save features."""
    folder.mkdir()
    for image in images:
        size = {"image_w": image.width, "image_h": image.height, "num_bbox": len(image.boxes)}
        np.savez_compressed(folder / f"{image.image_id}.npz", x=image.features, bbox=image.boxes, **size, **more)
    return folder


def record(i: Sample) -> dict[str, Any]:
    size = {"image_width": i.width, "image_height": i.height, "num_boxes": len(i.boxes)}
    return {"features": i.features, "bbox": i.boxes, "objects": i.classes, **size}


def write_records(folder: Path, records: dict[str, Any], keys: Sequence[str] | None = None) -> Path:
    """An LMDB of these records, with a list of these keys; none with an empty one."""
    with lmdb.open(str(folder), map_size=2**24, lock=False) as database, database.begin(write=True) as transaction:
        for name, value in records.items():
            transaction.put(name.encode(), value if isinstance(value, bytes) else pickle.dumps(value))
        if keys is None or keys:
            transaction.put(b"keys", pickle.dumps([name.encode() for name in (records if keys is None else keys)]))
    return folder


def write_lmdb(path: Path, images: Sequence[Sample]) -> Path:
    return write_records(path, {image.image_id: record(image) for image in images})


def write_tensors(path: Path, images: Sequence[Sample]) -> Path:
    file = path.with_suffix(".pt")
    torch.save({image.image_id: torch.from_numpy(image.rows) for image in images}, file)
    return file


def labels_of(images: Sequence[Sample], key: type = str) -> dict[Any, Any]:
    """What a label pickle holds."""
    return {
        key(image.image_id): {
            "class": [CLASSES[number] for number in image.classes],
            "boxes": image.boxes,
            "conf": list(image.scores),
            "image_w": image.width,
            "image_h": image.height,
        }
        for image in images
    }


def tsv(line: Callable[[Sample], str]) -> Callable[[Path, Sequence[Sample]], Path]:
    """What writes a TSV of such lines, with its index."""
    return lambda path, images: write_lines(path.with_suffix(".tsv"), [line(image) for image in images], lineidx=True)


def renamed(image: Sample, image_id: str) -> Sample:
    return replace(image, image_id=image_id)


def composed(*overrides: str) -> DictConfig:
    """The door's configuration as its command line makes it."""
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        return compose("convert", overrides=[*overrides, "paths.output_dir=."])


@functools.cache
def _defaults() -> DictConfig:
    return composed("from=IN", "to=OUT", f"features.dim={DIM}")


def run(source: Path, to: Path, *settings: str) -> RegionStore:
    """The door with settings of the section `features`; the store that it wrote."""
    config = copy.deepcopy(_defaults())
    config["from"], config.to = str(source), str(to)
    for name, value in (setting.split("=", 1) for setting in settings):
        OmegaConf.update(config, f"features.{name}", yaml.safe_load(value))
    return RegionStore(convert(config))


def refused(source: Path, folder: Path, *options: str) -> str:
    """The sentence; the folder is as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as raised:
        run(source, folder / "out.h5", *options)
    assert sorted(folder.rglob("*")) == before, (sorted(folder.rglob("*")), str(raised.value))
    sentence = str(raised.value)
    assert "\n" not in sentence, sentence
    return sentence


def npz_with_tables(path: Path, images: Sequence[Sample]) -> Path:
    """As bottom-up-attention's scripts save features, with scores of all classes."""
    path.mkdir()
    for i in images:
        table = np.zeros((len(i.classes), len(CLASSES)))
        table[np.arange(len(i.classes)), i.classes] = i.scores
        named = {"objects": i.classes, "cls_prob": table, "attrs_id": i.colours, "attrs_conf": i.scores}
        np.savez(path / f"{i.image_id}.npz", x=i.features, bbox=i.boxes, image_w=i.width, image_h=i.height, **named)
    return path


def score_table(image: Sample, columns: int = len(CLASSES) + 1) -> np.ndarray:
    """(R, C) with the background first, as a softmax has it: all columns have something."""
    table = np.full((len(image.classes), columns), 1e-4, dtype=np.float32)
    table[np.arange(len(image.classes)), image.classes + 1] = image.scores
    return table


def write_m2(path: Path, images: Sequence[Sample], **more: Any) -> Path:
    """As meshed-memory-transformer's `coco_detections.hdf5`."""
    file = path.with_suffix(".hdf5")
    with h5py.File(file, "w") as out:
        for i in images:
            arrays = {"features": i.features, "boxes": i.boxes, "cls_prob": score_table(i)}
            for name, array in arrays.items():
                out.create_dataset(f"{i.image_id}_{name}", data=array, **more)
    write_sizes(path, images)
    return file


def write_sizes(path: Path, images: Sequence[Sample]) -> None:
    path.with_name("sizes.json").write_text(json.dumps({i.image_id: [i.width, i.height] for i in images}))


def padded(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """(N, rows, …), filled up with zeros."""
    return np.stack([np.pad(array, ((0, rows - len(array)), (0, 0))) for array in arrays])


def write_gqa(folder: Path, images: Sequence[Sample], parts: int = 2, **more: Any) -> Path:
    """As GQA's object features: numbered files and one JSON."""
    folder.mkdir()
    info = {}
    for part in range(parts):
        own = images[part * len(images) // parts : (part + 1) * len(images) // parts]
        with h5py.File(folder / f"gqa_objects_{part}.h5", "w") as out:
            out.create_dataset("features", data=padded([i.features for i in own], 6), **more)
            out.create_dataset("bboxes", data=padded([i.boxes for i in own], 6), **more)
        for row, i in enumerate(own):
            place = {"file": part, "idx": row, "objectsNum": len(i.boxes)}
            info[i.image_id] = {"width": i.width, "height": i.height, **place}
    (folder / "gqa_objects_info.json").write_text(json.dumps(info))
    return folder


def write_bottom_up_hdf5(path: Path, images: Sequence[Sample], adaptive: bool = False, **more: Any) -> Path:
    """As bottom-up-attention-vqa's `train36.hdf5` with its pickle, or as `train.hdf5` of the adaptive features."""
    file = path.with_name("train36.hdf5")
    rows = {"image_features": "features", "image_bb": "boxes", "spatial_features": "geometry"}
    join = np.concatenate if adaptive else lambda arrays: padded(arrays, 4)
    with h5py.File(file, "w") as out:
        for name, own in rows.items():
            out.create_dataset(name, data=join([getattr(i, own) for i in images]), **more)
        if adaptive:
            ends = np.cumsum([len(i.boxes) for i in images])
            spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)
            out.create_dataset("pos_boxes", data=spans.astype(np.int32))
    index = {int(image.image_id): row for row, image in enumerate(images)}
    path.with_name("train36_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol=2))
    write_sizes(path, images)
    return file


def vinvl_info(image: Sample) -> dict[str, Any]:
    """What MMF's extract_features_vinvl.py says of an image; 0 is the background, and no attribute."""
    return {
        "box_features": image.features,
        "labels": image.classes + 1,
        "scores": image.scores,
        "attr_labels": np.stack([image.colours + 1, np.zeros_like(image.colours)], axis=1),
        "attr_scores": np.stack([image.scores, np.zeros_like(image.scores)], axis=1),
        "bbox": image.geometry,
        "image_width": image.width,
        "image_height": image.height,
    }


def write_vinvl_npy(folder: Path, images: Sequence[Sample]) -> Path:
    folder.mkdir(exist_ok=True)
    for image in images:
        info: Any = vinvl_info(image)
        np.save(folder / f"{image.image_id}.npy", image.rows)
        np.save(folder / f"{image.image_id}_info.npy", info)
    return folder


def uniter_fields(image: Sample) -> dict[str, np.ndarray]:
    """What UNITER's extraction saves of an image; its confidences are a column."""
    table = np.full((len(image.classes), len(CLASSES) + 1), 0.01)
    table[:, 0] = 0.9
    table[np.arange(len(image.classes)), image.classes + 1] = 0.5
    fields = {
        "norm_bb": image.geometry,
        "features": image.features,
        "conf": image.scores[:, None],
        "soft_labels": table,
    }
    return {name: array.astype(np.float16) for name, array in fields.items()}


def npz_bytes(fields: dict[str, np.ndarray], compress: bool) -> bytes:
    with io.BytesIO() as file:
        (np.savez_compressed if compress else np.savez)(file, **fields, allow_pickle=True)  # an array more, in effect
        return file.getvalue()


def packed(fields: dict[str, np.ndarray]) -> bytes:
    """As msgpack does with msgpack-numpy."""
    return msgspec.msgpack.encode(
        {
            name: {b"nd": True, b"type": one.dtype.str, b"kind": b"", b"shape": one.shape, b"data": one.tobytes()}
            for name, one in fields.items()
        }
    )


def write_uniter_npz(folder: Path, images: Sequence[Sample]) -> Path:
    folder.mkdir(exist_ok=True)
    for image in images:
        (folder / f"{image.image_id}.npz").write_bytes(npz_bytes(uniter_fields(image), compress=True))
    return folder


def write_uniter_lmdb(folder: Path, images: Sequence[Sample]) -> Path:
    compress = folder.name.endswith("_compressed")
    values = {
        f"{image.image_id}.npz": npz_bytes(fields, True) if compress else packed(fields)
        for image in images
        for fields in [uniter_fields(image)]
    }
    return write_records(folder, values | {"__keys__": json.dumps(list(values)).encode()}, [])


FORMATS: dict[str, Callable[[Path, Sequence[Sample]], Path]] = {
    "bottom-up": tsv(bottom_up_line),
    "LXMERT": tsv(lxmert_line),
    "predictions": tsv(lambda image: prediction_line(image, with_features=True)),
    "columns": lambda path, images: published_folder(path, images, "columns"),
    "JSON": lambda path, images: published_folder(path, images, "json"),
    "JSON, sizes from boxes": lambda path, images: published_folder(path, images, "json", sizes=False),
    "npy": write_npy_folder,
    "npz": npz_with_tables,
    "MMF VinVL": write_vinvl_npy,
    "tensors": write_tensors,
    "LMDB": write_lmdb,
    "meshed-memory": write_m2,
    "GQA objects": write_gqa,
    "bottom-up HDF5": write_bottom_up_hdf5,
    "adaptive HDF5": lambda path, images: write_bottom_up_hdf5(path, images, adaptive=True),
}

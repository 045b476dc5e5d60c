"""Four data sets for a detector in the demo world's style, each in the files that the real one is downloaded as.

They stand for VinVL's four (Zhang et al. 2021, section 2.1): other pictures, other names, other classes, and of many
classes some sets have next to nothing. A class is a colour and a shape.

    visual_genome/       objects.json, attributes.json, image_data.json and VG_100K/: all 16 classes, most of them rare;
                         the only one with attributes. In visual_genome_val/ and visual_genome_test/ they are alike
    coco/                things and stuff JSON: eight classes, all of them common, some called otherwise
    objects365/          COCO-like JSON: eight common classes, of which four are new, and eight rare ones
    open_images/         CSV files, boxes as shares: all 16 classes by other words, most of them rare
    vocabulary/          Visual Genome's own label map, and which words mean the same
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.demo.scene import COLOURS, SHAPES, SIZE_RADII, TEXTURES, Kind, Scene, SceneObject, render_scene, sample_scene
from vinvl.run.errors import UserError
from vinvl.run.files import put_in_place, read_json, work_folder

VERSION = 1  # raise it whenever the same sizes would give other files
MARKER = "demo_detection_sets.json"
VG_KINDS: list[Kind] = [(shape, colour) for colour in COLOURS for shape in SHAPES]  # the commonest first
FALL = 1.5  # a class of rank r has weight 1 / r^FALL, as words and the classes of Visual Genome do
RARE = VG_KINDS[8:]  # which the training pictures of Visual Genome have some ten or twenty of
COCO_KINDS = [*VG_KINDS[:4], *RARE[:4]]
NEW_KINDS: list[Kind] = [(shape, "purple") for shape in SHAPES]
OTHER_WORDS = {"circle": "disc", "square": "box", "triangle": "wedge", "star": "asterisk"}


@dataclass(frozen=True)
class SetSizes:
    """Numbers of pictures; `seed` from 0."""

    visual_genome: int = 500
    visual_genome_val: int = 100
    visual_genome_test: int = 400
    coco: int = 600
    objects365: int = 800
    open_images: int = 800
    seed: int = 0


def class_name(kind: Kind) -> str:
    """What Visual Genome's label map calls a kind: red circle."""
    return f"{kind[1]} {kind[0]}"


def other_name(kind: Kind) -> str:
    """What others call it: red disc."""
    return f"{kind[1]} {OTHER_WORDS[kind[0]]}"


def ensure_detection_sets(folder: Path, sizes: SetSizes) -> None:
    """Makes the sets in `folder`, whole or not at all; as it is if it has them already.

    Raises UserError where the folder holds something else.
    """
    marker = {"version": VERSION, **asdict(sizes)}
    there = read_json(folder / MARKER) if (folder / MARKER).is_file() else None
    if there == marker:
        return
    if there is None and folder.exists():
        raise UserError(
            f"{folder} exists and holds no demo sets for detectors: choose another folder or empty this one."
        )
    with work_folder(folder) as work:
        made = work / "sets"
        made.mkdir()
        _write_sets(made, sizes)
        _write_json(made / MARKER, marker)
        put_in_place(made, folder, replaced=work / "replaced")


def _write_sets(folder: Path, sizes: SetSizes) -> None:
    vg = falling(VG_KINDS)
    others = dict.fromkeys([*COCO_KINDS[:4], *NEW_KINDS], 1.0)
    few = {kind: 0.02 for kind in RARE}
    for number, (name, kinds, count, write) in enumerate(
        (
            ("visual_genome", vg, sizes.visual_genome, _visual_genome),
            ("visual_genome_val", dict.fromkeys(VG_KINDS, 1.0), sizes.visual_genome_val, _visual_genome),
            ("visual_genome_test", dict.fromkeys(VG_KINDS, 1.0), sizes.visual_genome_test, _visual_genome),
            ("coco", dict.fromkeys(COCO_KINDS, 1.0), sizes.coco, _coco),
            ("objects365", others | few, sizes.objects365, _objects365),
            ("open_images", vg, sizes.open_images, _open_images),
        )
    ):
        first = (number + 1) * 10_000
        rng = [np.random.default_rng([sizes.seed, first + index]) for index in range(count)]
        write(folder / name, [sample_scene(first + index, rng[index], kinds) for index in range(count)])
    _vocabulary(folder / "vocabulary")


def falling(kinds: Sequence[Kind]) -> dict[Kind, float]:
    """Weights that fall with the rank."""
    return {kind: 1 / rank**FALL for rank, kind in enumerate(kinds, start=1)}


def _vocabulary(folder: Path) -> None:
    """Visual Genome's label map with the keys of VinVL's, and lines of words that mean the same, the name first."""
    folder.mkdir()
    labels = {name: index for index, name in enumerate(map(class_name, VG_KINDS), start=1)}
    attributes = {name: index for index, name in enumerate((*TEXTURES, *SIZE_RADII), start=1)}
    content: dict[str, Any] = {}
    for kind, numbers in (("label", labels), ("attribute", attributes)):
        content[f"{kind}_to_idx"] = numbers
        content[f"idx_to_{kind}"] = {str(index): name for name, index in numbers.items()}
    _write_json(folder / "VG-SGG-dicts.json", content)
    lines = [f"{class_name(kind)},{other_name(kind)}\n" for kind in VG_KINDS]
    (folder / "object_alias.txt").write_text("".join(lines), encoding="utf-8")


def _save_pictures(folder: Path, scenes: Sequence[Scene]) -> None:
    folder.mkdir(parents=True)
    for scene in scenes:
        render_scene(scene).save(folder / f"{scene.image_id}.jpg", quality=95)


def _sides(thing: SceneObject) -> list[float]:
    """x, y, width, height."""
    x1, y1, x2, y2 = thing.box
    return [round(side, 2) for side in (x1, y1, x2 - x1, y2 - y1)]


def _things(scenes: Sequence[Scene]) -> Iterator[tuple[int, Scene, SceneObject]]:
    """Each object of all scenes with its number, from 1."""
    pairs = ((scene, thing) for scene in scenes for thing in scene.objects)
    return ((number, scene, thing) for number, (scene, thing) in enumerate(pairs, start=1))


def _visual_genome(folder: Path, scenes: Sequence[Scene]) -> None:
    _save_pictures(folder / "VG_100K", scenes)
    objects: dict[int, list[dict[str, Any]]] = {scene.image_id: [] for scene in scenes}
    attributes: dict[int, list[dict[str, Any]]] = {scene.image_id: [] for scene in scenes}
    for number, scene, thing in _things(scenes):
        x, y, width, height = map(round, _sides(thing))  # its files have whole pixels
        one: dict[str, Any] = {"object_id": number, "x": x, "y": y, "w": width, "h": height}
        one["names"] = [class_name((thing.shape, thing.colour))]
        objects[scene.image_id].append({**one, "synsets": []})
        attributes[scene.image_id].append({**one, "attributes": [thing.texture, thing.size]})
    _write_json(folder / "objects.json", [{"image_id": key, "objects": found} for key, found in objects.items()])
    _write_json(folder / "attributes.json", [{"image_id": key, "attributes": all_} for key, all_ in attributes.items()])
    data = [
        {
            "image_id": scene.image_id,
            "width": scene.width,
            "height": scene.height,
            "url": f"https://example.org/rak248/VG_100K/{scene.image_id}.jpg",
        }
        for scene in scenes
    ]
    _write_json(folder / "image_data.json", data)


def _instances(scenes: Sequence[Scene], names: Mapping[Kind, str]) -> dict[str, Any]:
    """A COCO instances file of the objects that have a name in it."""
    ids = {kind: index for index, kind in enumerate(names, start=1)}
    annotations = [
        {"id": number, "image_id": scene.image_id, "category_id": ids[kind], "bbox": _sides(thing), "iscrowd": 0}
        for number, scene, thing in _things(scenes)
        if (kind := (thing.shape, thing.colour)) in ids
    ]
    size = ("width", "height")
    images = [
        {"id": scene.image_id, "file_name": f"{scene.image_id}.jpg", **{side: getattr(scene, side) for side in size}}
        for scene in scenes
    ]
    categories = [{"id": index, "name": names[kind]} for kind, index in ids.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def _coco(folder: Path, scenes: Sequence[Scene]) -> None:
    """Things and stuff, in two files of the same pictures."""
    _save_pictures(folder / "train2017", scenes)
    things, stuff = COCO_KINDS[:6], COCO_KINDS[6:]
    _write_json(folder / "instances_train2017.json", _instances(scenes, {kind: class_name(kind) for kind in things}))
    named = _instances(scenes, {kind: other_name(kind) for kind in stuff})
    for category in named["categories"]:
        category["id"] += 91
    for annotation in named["annotations"]:
        annotation["category_id"] += 91
        annotation["id"] += 1_000_000
    _write_json(folder / "stuff_train2017.json", named)


def _objects365(folder: Path, scenes: Sequence[Scene]) -> None:
    _save_pictures(folder / "train", scenes)
    kinds = [*COCO_KINDS[:4], *NEW_KINDS, *RARE]
    _write_json(
        folder / "objects365_train.json", _instances(scenes, {kind: class_name(kind).title() for kind in kinds})
    )


BOX_COLUMNS = (
    "ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax",
    "IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside",
)  # fmt: skip


def _open_images(folder: Path, scenes: Sequence[Scene]) -> None:
    _save_pictures(folder / "train", scenes)
    words = {kind: f"/m/0{number:04d}" for number, kind in enumerate(VG_KINDS)}
    _write_csv(
        folder / "class-descriptions-boxable.csv",
        [[word, other_name(kind).capitalize()] for kind, word in words.items()],
    )
    rows = []
    for _, scene, thing in _things(scenes):
        x, y, width, height = _sides(thing)
        across, down = ((near / side, (near + own) / side) for near, own, side in
                        ((x, width, scene.width), (y, height, scene.height)))  # fmt: skip
        shares = [f"{share:.6f}" for share in (*across, *down)]
        rows.append([f"{scene.image_id}", "xclick", words[thing.shape, thing.colour], 1, *shares, 0, 0, 0, 0, 0])
    _write_csv(folder / "train-annotations-bbox.csv", [BOX_COLUMNS, *rows])
    columns = ["ImageID", "Subset", "OriginalURL", "Rotation"]
    listed = [[f"{scene.image_id}", "train", f"https://example.org/{scene.image_id}.jpg", 0] for scene in scenes]
    _write_csv(folder / "train-images-boxable-with-rotation.csv", [columns, *listed])


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)

"""Generate a demo world, its detection annotations or its corpus into a folder, or find them there already."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from vinvl.demo.files import (
    SPLITS,
    DemoWorld,
    DemoWorldSizes,
    SizeOptions,
    read_marker,
    write_world,
)
from vinvl.demo.scene import ATTRIBUTES, CLASSES
from vinvl.demo.task_files import image_file_name
from vinvl.run.errors import UserError, say
from vinvl.run.files import is_open_file, lock, put_in_place, read_json, work_folder, write_text_atomically


def ensure_demo_world(folder: Path, *, workers: int = 2, **options: Unpack[SizeOptions]) -> DemoWorld:
    """The demo world in `folder`: as it is if seed, sizes and version agree, generated otherwise.

    It appears at once and whole, or not at all, in the place of another demo world. Safe to call from several processes
    at once: one generates, the others wait and use its result. The same seed and sizes give the same files whatever the
    number of `workers`.

    Args:
        folder: missing, empty, or an earlier demo world.
        workers: processes that draw; 1 draws in this process.
        options: see `DemoWorldSizes`.

    Raises:
        UserError: for a size out of range, or where `folder` holds files that are not of a demo world.
    """
    sizes = DemoWorldSizes(**options)
    folder = Path(folder).absolute()
    if read_marker(folder) == sizes.marker():
        return DemoWorld(folder)
    with _locked(folder):
        return DemoWorld(folder) if read_marker(folder) == sizes.marker() else _generate(folder, sizes, workers)


def _generate(folder: Path, sizes: DemoWorldSizes, workers: int) -> DemoWorld:
    """Make the world beside `folder` and move it there; the caller holds the lock."""
    _refuse_foreign_files(folder)
    counts = " + ".join(f"{sizes.images(split):,} {split}" for split in SPLITS)
    say(f"Generating the demo world ({counts} images, seed {sizes.seed}): {folder} …", error=True)
    with work_folder(folder) as work:
        fresh = work / "world"
        fresh.mkdir()
        write_world(DemoWorld(fresh), sizes, workers)
        _refuse_foreign_files(folder)  # again: files may have come while the world was being made
        put_in_place(fresh, folder, replaced=work / "replaced")
    return DemoWorld(folder)


def _refuse_foreign_files(folder: Path) -> None:
    """Raise UserError unless `folder` is missing, empty, or holds a demo world and nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, so no demo world can go there; choose another folder.")
    names = {entry.name for entry in folder.iterdir()}
    if names and read_marker(folder) is None:
        raise UserError(
            f"{folder} is not empty and holds no demo world (no valid demo_world.json), so nothing was written; "
            "choose another folder or empty this one."
        )
    foreign = sorted(names - DemoWorld(folder).top_level_names())
    if foreign:
        raise UserError(
            f"{folder} holds a demo world of another version, seed or size and also {foreign[0]!r}, which is not part "
            "of it; move that away or choose another folder."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock file beside `folder`; it is gone when nobody holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        lock(descriptor, wait=True)
        if is_open_file(path, descriptor):  # else the holder before us has removed it
            break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink()
        os.close(descriptor)


# The demo world as a pre-training corpus: captions, descriptions of objects, questions with their true answers.


def ensure_demo_corpus(folder: Path, **sizes: Unpack[SizeOptions]) -> DemoWorld:
    """The demo world of these sizes with its pre-training corpus; both are made if they are missing.

    The corpus is in the world's folder and goes with it when another world is made there. Arguments and errors are
    those of `ensure_demo_world`.
    """
    world = ensure_demo_world(folder, **sizes)
    for split in SPLITS:
        path = world.pretraining_corpus(split)
        if not path.exists():
            lines = (json.dumps(row) + "\n" for row in corpus_rows(world, split))
            write_text_atomically(path, "".join(lines))
    return world


def corpus_rows(world: DemoWorld, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split: captions and descriptions without tags, for those of the store are meant; then questions.

    Descriptions say all of one object, as Visual Genome's do of a region: from these a small model learns quickest.
    """
    for annotation in read_json(world.captions(split))["annotations"]:
        yield {"image_id": annotation["image_id"], "text": annotation["caption"], "source": "captions"}
    for scene in read_json(world.scenes(split))["scenes"]:
        for thing in scene["objects"]:
            text = f"a {thing['size']} {thing['texture']} {thing['colour']} {thing['shape']}"
            yield {"image_id": scene["image_id"], "text": text, "source": "descriptions"}
    # The true answers: those of the VQA annotations are as people give them, some of them wrong.
    for question in read_json(world.gqa(split)).values():
        yield {
            "image_id": question["imageId"],
            "text": question["question"],
            "answer": question["answer"],
            "source": "questions",
        }


# The demo world as pictures with annotated objects: COCO instances JSON with colours and textures as attributes.


def ensure_demo_instances(folder: Path, **sizes: Unpack[SizeOptions]) -> DemoWorld:
    """The demo world of these sizes with its annotated objects; both are made if they are missing.

    The annotations are in the world's folder and go with it when another world is made there. Arguments and errors are
    those of `ensure_demo_world`.
    """
    world = ensure_demo_world(folder, **sizes)
    for split in SPLITS:
        if not world.instances(split).exists():
            content = instances(read_json(world.scenes(split))["scenes"])
            write_text_atomically(world.instances(split), json.dumps(content))
    return world


def instances(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """What a COCO instances file says of scenes, which are in the layout of the demo world's scene files.

    A box is the square around the object's circle, as in the demo's region stores, also where the object is smaller or
    is behind another one.
    """
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        for thing in scene["objects"]:
            side = 2 * thing["radius"]
            corner = (thing["x"] - thing["radius"], thing["y"] - thing["radius"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene["image_id"],
                    "category_id": CLASSES.index(thing["shape"]),
                    "bbox": [round(value, 2) for value in (*corner, side, side)],
                    "area": round(side * side, 2),
                    "iscrowd": 0,
                    "attributes": [thing["colour"], thing["texture"]],
                }
            )
    return {
        "info": {"description": "Generated demo world."},
        "images": [
            {
                "id": scene["image_id"],
                "file_name": image_file_name(scene["image_id"]),
                "width": scene["width"],
                "height": scene["height"],
            }
            for scene in scenes
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES) if index > 0],
        "attributes": [{"id": index, "name": name} for index, name in enumerate(ATTRIBUTES) if index > 0],
        "annotations": annotations,
    }

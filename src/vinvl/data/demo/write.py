"""The files of a demo world, in the forms of VQA v2, COCO captions and the RegionStore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from vinvl.data.demo.detection import ATTRIBUTES, CLASSES, NUM_ATTRIBUTES
from vinvl.data.demo.features import FEATURE_DIM
from vinvl.data.demo.generate import IMAGES_PER_PIECE, Piece, PieceJob, image_file_name, make_piece, question_id
from vinvl.data.demo.paths import SPLITS, DemoWorld, DemoWorldSizes
from vinvl.data.demo.tokenizer import write_tokenizer
from vinvl.data.store import LabelMap, Regions, RegionStoreWriter

DETECTOR = "vinvl demo detector"
FIRST_IMAGE_IDS = {"train": 100_001, "val": 200_001, "test": 300_001}
MAX_IMAGES_PER_SPLIT = 99_999  # so that the ranges of image ids stay apart
INFO = {
    "description": "Generated demo world in the format of VQA v2.0.",
    "url": "",
    "version": "2.0",
    "year": 2026,
    "contributor": "vinvl",
    "date_created": "2026-01-01 00:00:00",
}
LICENSE = {"url": "https://opensource.org/license/mit", "name": "MIT License"}


def write_world(world: DemoWorld, sizes: DemoWorldSizes, workers: int) -> None:
    """Make a world in the existing empty folder `world.folder`; the marker is written last."""
    world.images.mkdir()
    texts: list[str] = []
    with ExitStack() as stack:
        pool = None
        if workers > 1:
            # Spawned, not forked: the caller may hold threads and locks of torch or HDF5.
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
        for split in SPLITS:
            jobs = _jobs(split, sizes, world.images)
            pieces = pool.map(make_piece, jobs) if pool else map(make_piece, jobs)
            texts_of_split = _write_split(world, split, pieces)
            if split == "train":
                texts = texts_of_split
    write_tokenizer(texts, world.tokenizer)
    _write_json(world.marker, sizes.marker())


def _jobs(split: str, sizes: DemoWorldSizes, image_folder: Path) -> list[PieceJob]:
    first = FIRST_IMAGE_IDS[split]
    ids = range(first, first + sizes.images(split))
    return [
        PieceJob(sizes.seed, tuple(ids[start : start + IMAGES_PER_PIECE]), sizes.questions_per_image, image_folder)
        for start in range(0, len(ids), IMAGES_PER_PIECE)
    ]


def _write_split(world: DemoWorld, split: str, pieces: Iterator[Piece]) -> list[str]:
    """Write all files of a split as its pieces come in; returns its questions, tags and captions as text."""
    label_map = LabelMap(classes=CLASSES, attributes=ATTRIBUTES)
    questions: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    scenes: list[dict[str, object]] = []
    images: list[dict[str, object]] = []
    captions: list[dict[str, object]] = []
    texts: list[str] = []
    with RegionStoreWriter(
        world.store(split),
        feature_dim=FEATURE_DIM,
        detector=DETECTOR,
        label_map=label_map,
        num_attributes=NUM_ATTRIBUTES,
    ) as store:
        for piece in pieces:
            for regions in _regions(piece):
                store.add(regions)
                texts.append(" ".join(CLASSES[index] for index in regions.classes))
            for question in piece.questions:
                questions.append(
                    {"image_id": question.image_id, "question": question.text, "question_id": question_id(question)}
                )
            annotations.extend(piece.annotations)
            for scene, sentences in zip(piece.scenes, piece.captions, strict=True):
                scenes.append(asdict(scene))
                name = image_file_name(scene.image_id)
                images.append({"id": scene.image_id, "file_name": name, "width": scene.width, "height": scene.height})
                for sentence in sentences:
                    captions.append({"image_id": scene.image_id, "id": len(captions) + 1, "caption": sentence})
    header = {"info": INFO, "data_type": "mscoco", "data_subtype": f"{split}2014", "license": LICENSE}
    _write_json(world.questions(split), {**header, "task_type": "Open-Ended", "questions": questions})
    _write_json(world.annotations(split), {**header, "annotations": annotations})
    licenses = [{**LICENSE, "id": 1}]
    _write_json(world.captions(split), {"info": INFO, "images": images, "licenses": licenses, "annotations": captions})
    _write_json(world.scenes(split), {"scenes": scenes})
    texts.extend(str(question["question"]) for question in questions)
    texts.extend(str(caption["caption"]) for caption in captions)
    return texts


def _regions(piece: Piece) -> Iterator[Regions]:
    for scene, found, features in zip(piece.scenes, piece.detections, piece.features, strict=True):
        yield Regions(
            image_id=str(scene.image_id),
            features=features,
            boxes=found.boxes,
            classes=found.classes,
            class_scores=found.class_scores,
            attributes=found.attributes,
            attribute_scores=found.attribute_scores,
            width=scene.width,
            height=scene.height,
        )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")

"""The files of a demo world, in the forms of VQA v2, GQA, NLVR2, COCO and NoCaps captions and the RegionStore."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from vinvl.demo import questions as answers
from vinvl.demo import scene as detection
from vinvl.demo.questions import Question
from vinvl.demo.scene import ATTRIBUTES, CLASSES, FEATURE_DIM, NUM_ATTRIBUTES, Scene
from vinvl.demo.sentences import Statement, gqa_records, state, without_answers
from vinvl.demo.task_files import (
    IMAGES_PER_PIECE,
    NOCAPS_STREAM,
    STATEMENT_STREAM,
    CaptionedImage,
    Piece,
    PieceJob,
    image_file_name,
    karpathy_layout,
    make_piece,
    nlvr2_records,
    nocaps_layout,
    question_id,
    without_novel,
)
from vinvl.demo.tokenizer import write_tokenizer
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.writer import RegionStoreWriter
from vinvl.run.errors import UserError
from vinvl.run.lines import Pool

# Where the files of a demo world lie and how its marker tells one world from another.


MARKER = "demo_world.json"
GENERATOR = "vinvl demo world"
VERSION = 6  # raise it whenever the same seed would give other files
# No part of the world, but made from it on the first training: answer vocabularies, the pre-training corpus, and the
# annotations for a detector.
MADE_LATER = frozenset({"answers.json", "gqa_answers.json", "pretraining", "detection"})
SPLITS = ("train", "val", "test")
NLVR2_SPLITS = {"train": "train", "val": "dev", "test": "test1"}  # the datasets' own names of the splits
GQA_SPLITS = {"train": "train", "val": "val", "test": "testdev"}
MAX_IMAGES_PER_SPLIT = 99_999  # so that the ranges of image ids stay apart


class SizeOptions(TypedDict):
    """The fields of `DemoWorldSizes`, as keyword arguments."""

    seed: int
    num_train_images: int
    num_val_images: int
    num_test_images: int
    questions_per_image: int


@dataclass(frozen=True)
class DemoWorldSizes:
    """Everything that decides what a demo world holds.

    Args:
        seed: any integer from 0.
        num_train_images, num_val_images, num_test_images: 1 to 99,999 pictures; the splits share none.
        questions_per_image: how many questions a picture gets at most, 1 to 999.

    Raises:
        UserError: for one that is out of range.
    """

    seed: int
    num_train_images: int
    num_val_images: int
    num_test_images: int
    questions_per_image: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"The demo world's seed is {self.seed}; give an integer from 0.")
        most = dict.fromkeys((f"num_{split}_images" for split in SPLITS), MAX_IMAGES_PER_SPLIT)
        for name, largest in (most | {"questions_per_image": 999}).items():
            if not 1 <= getattr(self, name) <= largest:
                raise UserError(f"The demo world's {name} is {getattr(self, name)}; give 1 to {largest:,}.")

    def images(self, split: str) -> int:
        """Number of pictures of a split."""
        return int(getattr(self, f"num_{split}_images"))

    def marker(self) -> dict[str, object]:
        """The content of the marker file."""
        return {
            "generator": GENERATOR,
            "version": VERSION,
            **vars(self),
            "rates": {
                "missed_objects": detection.MISSED_RATE,
                "wrong_classes_and_attributes": detection.WRONG_RATE,
                "spurious_regions_per_image": detection.SPURIOUS_RATE,
                "box_jitter": detection.BOX_JITTER,
                "answers_in_other_words": answers.VARIANT_RATE,
                "wrong_answers": answers.WRONG_RATE,
            },
        }


class DemoWorld:
    """The files of a demo world; splits are train, val and test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gqa_submission = folder / "gqa_submission_questions.json"  # GQA's testdev without its answers
        self.karpathy = folder / "dataset_demo.json"  # captions of all splits in the layout of dataset_coco.json
        self.nocaps_train = folder / "nocaps_train.json"  # the same of training pictures without the held-out shape
        self.nocaps_val = folder / "nocaps_val.json"  # COCO captions JSON of the pictures of val, with NoCaps' domains
        self.images = folder / "images"  # PNG pictures
        self.tokenizer = folder / "tokenizer"  # a folder that transformers reads
        self.marker = folder / MARKER  # written last: a folder without it is not a demo world

    def questions(self, split: str) -> Path:
        """Official VQA v2 question JSON."""
        return self.folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json"

    def annotations(self, split: str) -> Path:
        """Official VQA v2 annotation JSON."""
        return self.folder / f"v2_mscoco_{split}2014_annotations.json"

    def store(self, split: str) -> Path:
        """RegionStore file."""
        return self.folder / f"{split}.h5"

    def captions(self, split: str) -> Path:
        """COCO captions JSON."""
        return self.folder / f"captions_{split}.json"

    def scenes(self, split: str) -> Path:
        """What the pictures truly show, for checks; no model reads it."""
        return self.folder / f"scenes_{split}.json"

    def nlvr2(self, split: str) -> Path:
        """NLVR2 JSON Lines: val is NLVR2's dev, test its test1."""
        return self.folder / f"nlvr2_{NLVR2_SPLITS[split]}.json"

    def gqa(self, split: str) -> Path:
        """GQA question JSON with answers: test is GQA's testdev."""
        return self.folder / f"gqa_{GQA_SPLITS[split]}_balanced_questions.json"

    def pretraining_corpus(self, split: str) -> Path:
        """JSONL of captions and of questions with their true answers; made on the first pre-training."""
        return self.folder / "pretraining" / f"{split}.jsonl"

    def instances(self, split: str) -> Path:
        """COCO instances JSON with attributes; made on the first training of a detector."""
        return self.folder / "detection" / f"instances_{split}.json"

    def top_level_names(self) -> set[str]:
        """Names of all files and folders that may be in the folder of a demo world."""
        files = (self.questions, self.annotations, self.store, self.captions, self.scenes, self.nlvr2, self.gqa)
        names = {file(split).name for file in files for split in SPLITS}
        names |= {path.name for path in (self.gqa_submission, self.karpathy, self.nocaps_train, self.nocaps_val)}
        return names | {self.images.name, self.tokenizer.name, MARKER} | MADE_LATER


def read_marker(folder: Path) -> dict[str, object] | None:
    """The marker of a folder, or None if the folder bears no marker of ours."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("generator") == GENERATOR else None


DETECTOR = "vinvl demo detector"
FIRST_IMAGE_IDS = {"train": 100_001, "val": 200_001, "test": 300_001}
INFO = {
    "description": "Generated demo world in the format of VQA v2.0.",
    "url": "",
    "version": "2.0",
    "year": 2026,
    "contributor": "vinvl",
    "date_created": "2026-01-01 00:00:00",
}
LICENSE = {"url": "https://opensource.org/license/mit", "name": "MIT License"}


@dataclass
class _SplitContent:
    """What later files need of a split that is written."""

    scenes: list[Scene]
    images: list[CaptionedImage]
    texts: list[str]  # for the tokenizer: questions, tags and captions
    later_texts: list[str]  # for the tokenizer's last words: statements, questions of GQA only, and answers


def write_world(world: DemoWorld, sizes: DemoWorldSizes, workers: int) -> None:
    """Make a world in the existing empty folder `world.folder`; the marker is written last."""
    world.images.mkdir()
    contents: dict[str, _SplitContent] = {}
    with ExitStack() as stack:
        pool = None
        if workers > 1:
            # Spawned, not forked: the caller may hold threads and locks of torch or HDF5.
            pool = stack.enter_context(Pool(workers))
        for split in SPLITS:
            jobs = _jobs(split, sizes, world.images)
            pieces = pool.map(make_piece, jobs) if pool else map(make_piece, jobs)
            contents[split] = _write_split(world, split, pieces, sizes.seed)
    _write_caption_splits(world, contents, sizes.seed)
    write_tokenizer(contents["train"].texts, contents["train"].later_texts, world.tokenizer)
    _write_json(world.marker, sizes.marker())


def _jobs(split: str, sizes: DemoWorldSizes, image_folder: Path) -> list[PieceJob]:
    first = FIRST_IMAGE_IDS[split]
    ids = range(first, first + sizes.images(split))
    return [
        PieceJob(sizes.seed, tuple(ids[start : start + IMAGES_PER_PIECE]), sizes.questions_per_image, image_folder)
        for start in range(0, len(ids), IMAGES_PER_PIECE)
    ]


def _write_split(world: DemoWorld, split: str, pieces: Iterator[Piece], seed: int) -> _SplitContent:
    """Write the files of a split; regions go to the store as the pieces come in."""
    content = _SplitContent([], [], [], [])
    questions: list[Question] = []
    gqa_only: list[Question] = []
    annotations: list[dict[str, object]] = []
    with RegionStoreWriter(
        world.store(split),
        feature_dim=FEATURE_DIM,
        detector=DETECTOR,
        label_map=LabelMap(classes=CLASSES, attributes=ATTRIBUTES),
        num_attributes=NUM_ATTRIBUTES,
    ) as store:
        for piece in pieces:
            for regions in _regions(piece):
                store.add(regions)
                content.texts.append(" ".join(CLASSES[index] for index in regions.classes))
            questions.extend(piece.questions)
            gqa_only.extend(piece.gqa_only)
            annotations.extend(piece.annotations)
            for scene, captions in zip(piece.scenes, piece.captions, strict=True):
                content.scenes.append(scene)
                content.images.append(CaptionedImage(scene.image_id, split, tuple(captions)))
    _write_vqa(world, split, questions, annotations)
    _write_captions(world, split, content)
    _write_json(world.scenes(split), {"scenes": [asdict(scene) for scene in content.scenes]})
    _write_gqa(world, split, [*questions, *gqa_only])
    statements = _write_nlvr2(world, split, content.scenes, seed)
    content.texts.extend(question.text for question in questions)
    content.texts.extend(caption for image in content.images for caption in image.captions)
    content.later_texts.extend(question.text for question in gqa_only)
    content.later_texts.extend(statement.sentence for statement in statements)
    # Answers too: of "yes" in pieces, a hidden one would be guessed from the others without a look at the picture.
    content.later_texts.extend(question.answer for question in [*questions, *gqa_only])
    return content


def _write_vqa(
    world: DemoWorld, split: str, questions: Sequence[Question], annotations: list[dict[str, object]]
) -> None:
    header = {"info": INFO, "data_type": "mscoco", "data_subtype": f"{split}2014", "license": LICENSE}
    entries = [
        {"image_id": question.image_id, "question": question.text, "question_id": question_id(question)}
        for question in questions
    ]
    _write_json(world.questions(split), {**header, "task_type": "Open-Ended", "questions": entries})
    _write_json(world.annotations(split), {**header, "annotations": annotations})


def _write_captions(world: DemoWorld, split: str, content: _SplitContent) -> None:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for scene, image in zip(content.scenes, content.images, strict=True):
        name = image_file_name(scene.image_id)
        images.append({"id": scene.image_id, "file_name": name, "width": scene.width, "height": scene.height})
        for caption in image.captions:
            annotations.append({"image_id": scene.image_id, "id": len(annotations) + 1, "caption": caption})
    _write_json(world.captions(split), _coco_captions(images, annotations))


def _write_gqa(world: DemoWorld, split: str, questions: Iterable[Question]) -> None:
    records = gqa_records(questions)
    _write_json(world.gqa(split), records)
    if split == "test":
        _write_json(world.gqa_submission, without_answers(records))


def _write_nlvr2(world: DemoWorld, split: str, scenes: Sequence[Scene], seed: int) -> list[Statement]:
    """As many statements as there are pictures, so four times as many pairs."""
    rng = np.random.default_rng([seed, FIRST_IMAGE_IDS[split], STATEMENT_STREAM])
    statements = state(scenes, len(scenes), rng)
    lines = [json.dumps(record) + "\n" for record in nlvr2_records(NLVR2_SPLITS[split], scenes, statements)]
    world.nlvr2(split).write_text("".join(lines), encoding="utf-8")
    return statements


def _write_caption_splits(world: DemoWorld, contents: dict[str, _SplitContent], seed: int) -> None:
    """The caption files that reach over the splits, and those with a held-out shape."""
    everything = [image for split in SPLITS for image in contents[split].images]
    _write_json(world.karpathy, karpathy_layout(everything, world.images.name))
    known = without_novel(contents["train"].scenes, contents["train"].images)
    _write_json(world.nocaps_train, karpathy_layout(known, world.images.name))
    rng = np.random.default_rng([seed, FIRST_IMAGE_IDS["val"], NOCAPS_STREAM])
    images, annotations = nocaps_layout(contents["val"].scenes, contents["val"].images, rng)
    _write_json(world.nocaps_val, _coco_captions(images, annotations))


def _coco_captions(images: list[dict[str, object]], annotations: list[dict[str, object]]) -> dict[str, object]:
    return {"info": INFO, "images": images, "licenses": [{**LICENSE, "id": 1}], "annotations": annotations}


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

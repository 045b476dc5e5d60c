"""One piece of the demo world: some pictures with their regions, questions, answers and captions.

The world is made in pieces of `IMAGES_PER_PIECE` pictures. A piece depends on the seed and its image ids alone, so
pieces can be made by any number of processes, in any order, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vinvl.data.demo.answers import human_answers, most_common_answer
from vinvl.data.demo.captions import describe
from vinvl.data.demo.detection import Detections, detect
from vinvl.data.demo.features import crop_features, crop_pixels
from vinvl.data.demo.gqa import GQA_ONLY_PER_IMAGE, gqa_only_families
from vinvl.data.demo.questions import Question, ask
from vinvl.data.demo.render import render_scene
from vinvl.data.demo.scene import Scene, sample_scene

IMAGES_PER_PIECE = 64
# Every use of random numbers has a stream of its own, so that what is added changes nothing of what was there.
PICTURE_STREAM, QUESTION_STREAM, GQA_STREAM, STATEMENT_STREAM, NOCAPS_STREAM = range(5)


@dataclass(frozen=True)
class PieceJob:
    """What to make: pictures go to `image_folder`, the rest is returned."""

    seed: int
    image_ids: tuple[int, ...]
    questions_per_image: int
    image_folder: Path


@dataclass(frozen=True)
class Piece:
    """What was made, in the order of the job's image ids."""

    scenes: list[Scene]
    detections: list[Detections]
    features: list[np.ndarray]  # of each image (R, 2048) float16
    questions: list[Question]
    annotations: list[dict[str, object]]  # one per question, in VQA v2 form
    captions: list[list[str]]  # of each image
    gqa_only: list[Question]  # asked in the GQA files only


def image_file_name(image_id: int) -> str:
    """000000100001.png"""
    return f"{image_id:012d}.png"


def make_piece(job: PieceJob) -> Piece:
    """Make the pictures of a job and everything that belongs to them."""
    scenes: list[Scene] = []
    detections: list[Detections] = []
    features: list[np.ndarray] = []
    captions: list[list[str]] = []
    for image_id in job.image_ids:
        rng = np.random.default_rng([job.seed, image_id, PICTURE_STREAM])
        scene = sample_scene(image_id, rng)
        picture = render_scene(scene)
        picture.save(job.image_folder / image_file_name(image_id), compress_level=6)
        found = detect(scene, rng)
        pixels = np.asarray(picture)
        scenes.append(scene)
        detections.append(found)
        features.append(crop_features([crop_pixels(pixels, box) for box in found.boxes]))
        captions.append(describe(scene, rng))
    rng = np.random.default_rng([job.seed, job.image_ids[0], QUESTION_STREAM])
    questions = ask(scenes, job.questions_per_image, rng)
    annotations = [annotate(question, rng) for question in questions]
    rng = np.random.default_rng([job.seed, job.image_ids[0], GQA_STREAM])
    gqa_only = ask(scenes, GQA_ONLY_PER_IMAGE, rng, gqa_only_families())
    return Piece(scenes, detections, features, questions, annotations, captions, gqa_only)


def question_id(question: Question) -> int:
    """image_id * 1000 + number, as VQA v2 numbers its questions."""
    return question.image_id * 1000 + question.number


def annotate(question: Question, rng: np.random.Generator) -> dict[str, object]:
    """The VQA v2 annotation of a question: ten answers, their most common one and the types."""
    answers = human_answers(question, rng)
    return {
        "question_type": question.kind,
        "multiple_choice_answer": most_common_answer(answers),
        "answers": answers,
        "image_id": question.image_id,
        "answer_type": question.answer_type,
        "question_id": question_id(question),
    }

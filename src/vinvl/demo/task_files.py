"""Pieces of the demo world, generated side by side, and its files of NLVR2, Karpathy's splits and NoCaps.

The world is made in pieces of `IMAGES_PER_PIECE` pictures. A piece depends on the seed and its image ids alone, so
pieces can be made by any number of processes, in any order, with the same result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vinvl.demo.questions import Question, ask, human_answers, most_common_answer
from vinvl.demo.scene import Detections, Scene, crop_features, crop_pixels, detect, render_scene, sample_scene
from vinvl.demo.sentences import GQA_ONLY_PER_IMAGE, Statement, describe, describe_shape, gqa_only_families

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


# Statements of the demo world as the records of NLVR2.


NUM_DIRECTORIES = 100  # NLVR2 deals its training pairs out to this many


def nlvr2_records(split: str, scenes: Sequence[Scene], statements: Sequence[Statement]) -> list[dict[str, object]]:
    """One record per pair, with NLVR2's keys and the pictures' own ids beside them.

    NLVR2 derives image names from the identifier `split-set-pair-sentence`. Here a picture serves in many pairs, so
    `left_image_id` and `right_image_id` name the two; `synset` and `query` hold subject and family of the statement.

    Args:
        split: train | dev | test1, the first field of the identifier.
        scenes: the pictures that the pairs of `statements` mean by their position.
        statements: one set each, always with sentence number 0.
    """
    records: list[dict[str, object]] = []
    for set_number, statement in enumerate(statements):
        for pair_number, (left, right, truth) in enumerate(statement.pairs):
            ids = [scenes[position].image_id for position in (left, right)]
            record: dict[str, object] = {
                "validation": {},
                "sentence": statement.sentence,
                "left_url": image_file_name(ids[0]),
                "writer": "demo",
                "label": str(truth),
                "right_url": image_file_name(ids[1]),
                "synset": statement.subject,
                "query": statement.family,
                "identifier": f"{split}-{set_number}-{pair_number}-0",
                "left_image_id": str(ids[0]),
                "right_image_id": str(ids[1]),
            }
            # As in NLVR2: only train has directories, only the other splits were validated by more people.
            if split == "train":
                record["directory"] = set_number % NUM_DIRECTORIES
            else:
                record["extra_validations"] = {}
            records.append(record)
    return records


# Captions of the demo world in the layout of the Karpathy splits (dataset_coco.json).


# One of every ten pictures of train is "restval", as COCO's Karpathy split has part of its training: the second, so
# that a world of a few pictures has some of both.
RESTVAL_EVERY, RESTVAL_PLACE = 10, 2


@dataclass(frozen=True)
class CaptionedImage:
    """A picture of the world with its captions; `split` is train, val or test of the world."""

    image_id: int
    split: str
    captions: tuple[str, ...]


def karpathy_layout(images: Iterable[CaptionedImage], folder: str) -> dict[str, object]:
    """The content of a Karpathy file; images and sentences are numbered from 0 in the order given.

    Args:
        images: the pictures, those of the training split in the order of their ids.
        folder: goes to `filepath`.
    """
    entries: list[dict[str, object]] = []
    num_sentences = num_train = 0
    for imgid, image in enumerate(images):
        num_train += image.split == "train"
        in_rest = image.split == "train" and num_train % RESTVAL_EVERY == RESTVAL_PLACE
        sentids = list(range(num_sentences, num_sentences + len(image.captions)))
        num_sentences += len(sentids)
        entries.append(
            {
                "filepath": folder,
                "filename": image_file_name(image.image_id),
                "cocoid": image.image_id,
                "split": "restval" if in_rest else image.split,
                "imgid": imgid,
                "sentids": sentids,
                "sentences": [
                    {"raw": caption, "tokens": re.findall("[a-z0-9]+", caption.lower()), "imgid": imgid, "sentid": sent}
                    for sent, caption in zip(sentids, image.captions, strict=True)
                ],
            }
        )
    return {"dataset": "demo", "images": entries}


# Captioning of things that no training caption names, as in NoCaps: one shape is held out of training.


NOVEL_SHAPE = "star"
OUT_OF_DOMAIN_SHARE = 0.5  # from this share of novel objects on a picture is out of domain


def domain(scene: Scene) -> str:
    """in-domain without novel objects, out-domain where at least half of the objects are novel, else near-domain.

    NoCaps calls a picture out of domain when all its labelled objects are novel; here few such pictures exist.
    """
    novel = sum(thing.shape == NOVEL_SHAPE for thing in scene.objects)
    if novel == 0:
        return "in-domain"
    return "out-domain" if novel >= OUT_OF_DOMAIN_SHARE * len(scene.objects) else "near-domain"


def without_novel(scenes: Iterable[Scene], images: Iterable[CaptionedImage]) -> list[CaptionedImage]:
    """The pictures that hold no novel object; their captions, being true, do not name it either."""
    return [image for scene, image in zip(scenes, images, strict=True) if domain(scene) == "in-domain"]


def nocaps_layout(
    scenes: Sequence[Scene], images: Sequence[CaptionedImage], rng: np.random.Generator
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """`images` and `annotations` of a COCO captions file with NoCaps' `domain` for every image.

    Pictures in domain keep their captions. The others get five that all name the novel shape; near domain the other
    objects named are known ones, out of domain novel ones if there are any.
    """
    entries: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for scene, image in zip(scenes, images, strict=True):
        where = domain(scene)
        captions: Sequence[str] = image.captions
        if where != "in-domain":
            captions = describe_shape(scene, NOVEL_SHAPE, where == "out-domain", rng)
        entries.append(
            {
                "id": scene.image_id,
                "file_name": image_file_name(scene.image_id),
                "width": scene.width,
                "height": scene.height,
                "domain": where,
            }
        )
        for caption in captions:
            annotations.append({"id": len(annotations) + 1, "image_id": scene.image_id, "caption": caption})
    return entries, annotations

"""What the files of a demo world hold: its content in the layouts of VQA v2, NLVR2, COCO, Karpathy and NoCaps."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vinvl.demo.questions import Question, human_answers, most_common_answer
from vinvl.demo.scene import ATTRIBUTES, CLASSES, Scene
from vinvl.demo.sentences import Statement, describe_shape

Record = dict[str, object]
INFO = {
    "description": "Generated demo world in the format of VQA v2.0.", "url": "", "version": "2.0", "year": 2026,
    "contributor": "vinvl", "date_created": "2026-01-01 00:00:00",
}  # fmt: skip
LICENSE = {"url": "https://opensource.org/license/mit", "name": "MIT License"}


def image_file_name(image_id: int) -> str:
    """000000100001.png"""
    return f"{image_id:012d}.png"


def image_record(image_id: int, width: int, height: int) -> Record:
    """A picture as COCO's files list it."""
    return {"id": image_id, "file_name": image_file_name(image_id), "width": width, "height": height}


# VQA v2.


def question_id(question: Question) -> int:
    """image_id * 1000 + number, as VQA v2 numbers its questions."""
    return question.image_id * 1000 + question.number


def annotate(question: Question, rng: np.random.Generator) -> Record:
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


def vqa_files(questions: Sequence[Question], annotations: list[Record], split: str) -> tuple[Record, Record]:
    """The content of the question file and of the annotation file."""
    header = {"info": INFO, "data_type": "mscoco", "data_subtype": f"{split}2014", "license": LICENSE}
    entries = [{"image_id": one.image_id, "question": one.text, "question_id": question_id(one)} for one in questions]
    return {**header, "task_type": "Open-Ended", "questions": entries}, {**header, "annotations": annotations}


# NLVR2.

NUM_DIRECTORIES = 100  # NLVR2 deals its training pairs out to this many


def nlvr2_records(split: str, scenes: Sequence[Scene], statements: Sequence[Statement]) -> list[Record]:
    """A record for each pair, with NLVR2's keys: `synset` and `query` hold subject and family of the statement.

    NLVR2 derives image names from the identifier `split-set-pair-sentence`. Here a picture serves in many pairs, so
    `left_image_id` and `right_image_id` name the two.
    """
    records: list[Record] = []
    for set_number, statement in enumerate(statements):
        for pair_number, (left, right, truth) in enumerate(statement.pairs):
            ids = [scenes[position].image_id for position in (left, right)]
            record: Record = {
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
            of_split: Record = (
                {"directory": set_number % NUM_DIRECTORIES} if split == "train" else {"extra_validations": {}}
            )
            records.append(record | of_split)
    return records


# Captions: COCO's own layout, that of the Karpathy splits, and NoCaps with one shape held out of training.


# One of every ten pictures of train is "restval", as COCO's Karpathy split has part of its training: the second, so
# that a world of a few pictures has some of both.
RESTVAL_EVERY, RESTVAL_PLACE = 10, 2
NOVEL_SHAPE = "star"
OUT_OF_DOMAIN_SHARE = 0.5  # from this share of novel objects on a picture is out of domain


class CaptionedImage(NamedTuple):
    """A picture of the world with its captions; `split` is train, val or test of the world."""

    image_id: int
    split: str
    captions: Sequence[str]


def coco_captions(images: list[Record], captions: Iterable[Sequence[str]]) -> dict[str, Any]:
    """A COCO captions file of images, each with its captions."""
    pairs = ((image["id"], text) for image, texts in zip(images, captions, strict=True) for text in texts)
    annotations = [{"image_id": one, "id": number, "caption": text} for number, (one, text) in enumerate(pairs, 1)]
    return {"info": INFO, "images": images, "licenses": [{**LICENSE, "id": 1}], "annotations": annotations}


def karpathy_layout(images: Iterable[CaptionedImage], folder: str) -> Record:
    """The content of a Karpathy file of pictures in a folder; images and sentences are numbered from 0."""
    entries: list[Record] = []
    num_sentences = num_train = 0
    for imgid, image in enumerate(images):
        num_train += image.split == "train"
        in_rest = image.split == "train" and num_train % RESTVAL_EVERY == RESTVAL_PLACE
        sentids = list(range(num_sentences, num_sentences + len(image.captions)))
        num_sentences += len(sentids)
        sentences = [
            {"raw": caption, "tokens": re.findall("[a-z0-9]+", caption.lower()), "imgid": imgid, "sentid": sent}
            for sent, caption in zip(sentids, image.captions, strict=True)
        ]
        entries.append(
            {
                "filepath": folder,
                "filename": image_file_name(image.image_id),
                "cocoid": image.image_id,
                "split": "restval" if in_rest else image.split,
                "imgid": imgid,
                "sentids": sentids,
                "sentences": sentences,
            }
        )
    return {"dataset": "demo", "images": entries}


def domain(scene: Scene) -> str:
    """in-domain without novel objects, out-domain where at least half of the objects are novel, else near-domain.

    NoCaps calls a picture out of domain when all its labelled objects are novel; here few such pictures exist.
    """
    share = sum(thing.shape == NOVEL_SHAPE for thing in scene.objects) / len(scene.objects)
    return "in-domain" if share == 0 else "out-domain" if share >= OUT_OF_DOMAIN_SHARE else "near-domain"


def nocaps_file(scenes: Sequence[Scene], images: Sequence[CaptionedImage], rng: np.random.Generator) -> Record:
    """A COCO captions file with NoCaps' `domain` for every image.

    Pictures in domain keep their captions. The others get five that all name the novel shape.
    """
    domains = [domain(scene) for scene in scenes]
    entries = [
        {**image_record(scene.image_id, scene.width, scene.height), "domain": where}
        for scene, where in zip(scenes, domains, strict=True)
    ]
    captions = [
        image.captions if where == "in-domain" else describe_shape(scene, NOVEL_SHAPE, where == "out-domain", rng)
        for scene, image, where in zip(scenes, images, domains, strict=True)
    ]
    content = coco_captions(entries, captions)
    # "id" first, as NoCaps has it.
    return content | {"annotations": [{"id": one["id"], **one} for one in content["annotations"]]}


# The world as a pre-training corpus and as pictures with annotated objects; scenes are those of its scene files.


def corpus_rows(
    captions: dict[str, Any], scenes: list[dict[str, Any]], questions: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Captions and descriptions of single objects without tags (those of the store are used), then questions.

    Answers are the true ones, of the GQA file: those of the VQA annotations are as people give them.
    """
    for annotation in captions["annotations"]:
        yield {"image_id": annotation["image_id"], "text": annotation["caption"], "source": "captions"}
    for scene in scenes:
        for thing in scene["objects"]:
            text = f"a {thing['size']} {thing['texture']} {thing['colour']} {thing['shape']}"
            yield {"image_id": scene["image_id"], "text": text, "source": "descriptions"}
    for one in questions.values():
        yield {"image_id": one["imageId"], "text": one["question"], "answer": one["answer"], "source": "questions"}


def tag_rows(scenes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Image-level labels: of each picture the shapes that it shows, in the order of the alphabet."""
    for scene in scenes:
        yield {"image_id": scene["image_id"], "tags": sorted({thing["shape"] for thing in scene["objects"]})}


def instances(scenes: list[dict[str, Any]]) -> Record:
    """A COCO instances file with colours and textures as attributes; boxes are as in the demo's region stores."""
    things = [(scene["image_id"], thing) for scene in scenes for thing in scene["objects"]]
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": CLASSES.index(thing["shape"]),
            "bbox": [
                *(round(thing[place] - thing["radius"], 2) for place in ("x", "y")),
                *2 * [round(2 * thing["radius"], 2)],
            ],
            "area": round((2 * thing["radius"]) ** 2, 2),
            "iscrowd": 0,
            "attributes": [thing["colour"], thing["texture"]],
        }
        for number, (image_id, thing) in enumerate(things, start=1)
    ]
    return {
        "info": {"description": "Generated demo world."},
        "images": [image_record(scene["image_id"], scene["width"], scene["height"]) for scene in scenes],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES) if index > 0],
        "attributes": [{"id": index, "name": name} for index, name in enumerate(ATTRIBUTES) if index > 0],
        "annotations": annotations,
    }


# The world's own WordPiece vocabulary, as a transformers tokenizer folder.

VOCABULARY_SIZE = 1000
SPECIAL_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
_CHARACTERS = string.ascii_lowercase + string.digits
# Letters and digits at the start of and inside words, and marks: every plain text can be spelt out.
SPELLING = (*string.punctuation, *_CHARACTERS, *(f"##{character}" for character in _CHARACTERS))


def write_tokenizer(texts: Iterable[str], later_texts: Iterable[str], folder: Path) -> None:
    """Write a new folder with a lower-casing WordPiece tokenizer for texts, which `AutoTokenizer` loads as BERT's.

    Words that only the later texts have get the ids after all others.
    """
    # Every frequent word gets a piece of its own: words are counted and letters added, instead of merged by
    # WordPieceTrainer, whose choice between equally frequent pairs differs from run to run.
    pieces = [*SPECIAL_TOKENS.values(), *SPELLING]
    for part in (texts, later_texts):
        pieces += [word for word in _frequent_words(part) if word not in pieces]
    pieces = pieces[:VOCABULARY_SIZE]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = _lower_casing(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    config |= {name: SPECIAL_TOKENS[name] for name in names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _lower_casing(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with BERT's splitting into lower-case words and marks."""
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _frequent_words(texts: Iterable[str]) -> list[str]:
    """The words that come twice at least, by falling frequency and then by letter."""
    counter = _lower_casing(Tokenizer(models.WordLevel(unk_token="[UNK]")))
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY_SIZE, min_frequency=2, show_progress=False)
    counter.train_from_iterator(texts, trainer)
    vocabulary = counter.get_vocab()
    return sorted(vocabulary, key=lambda word: vocabulary[word])

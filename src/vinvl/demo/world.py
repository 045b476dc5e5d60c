"""The demo world: where its files lie, how it is generated into a folder, or found there already."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from vinvl.demo import files, gqa, questions, scene, sentences
from vinvl.demo.files import CaptionedImage, image_file_name
from vinvl.demo.questions import Question
from vinvl.demo.scene import CLASSES, Scene
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.writer import RegionStoreWriter
from vinvl.run.errors import UserError, say
from vinvl.run.files import is_open_file, lock, put_in_place, read_json, work_folder, write_text_atomically
from vinvl.run.lines import Pool

MARKER = "demo_world.json"
GENERATOR = "vinvl demo world"
VERSION = 7  # raise it whenever the same seed would give other files
# Not part of the world, but made from it on the first training: answer vocabularies, the pre-training corpus, and the
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
                "missed_objects": scene.MISSED_RATE,
                "wrong_classes_and_attributes": scene.WRONG_RATE,
                "spurious_regions_per_image": scene.SPURIOUS_RATE,
                "box_jitter": scene.BOX_JITTER,
                "answers_in_other_words": questions.VARIANT_RATE,
                "wrong_answers": questions.WRONG_RATE,
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

    def questions(self, split: str) -> Path:  # official VQA v2 question JSON
        return self.folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json"

    def annotations(self, split: str) -> Path:  # official VQA v2 annotation JSON
        return self.folder / f"v2_mscoco_{split}2014_annotations.json"

    def store(self, split: str) -> Path:  # RegionStore file
        return self.folder / f"{split}.h5"

    def captions(self, split: str) -> Path:  # COCO captions JSON
        return self.folder / f"captions_{split}.json"

    def scenes(self, split: str) -> Path:  # what the pictures truly show, for checks; no model reads it
        return self.folder / f"scenes_{split}.json"

    def nlvr2(self, split: str) -> Path:  # NLVR2 JSON Lines: val is NLVR2's dev, test its test1
        return self.folder / f"nlvr2_{NLVR2_SPLITS[split]}.json"

    def gqa(self, split: str) -> Path:  # GQA question JSON with answers: test is GQA's testdev
        return self.folder / f"gqa_{GQA_SPLITS[split]}_balanced_questions.json"

    def gqa_choices(self, split: str) -> Path:  # GQA's valid and plausible answers to each question
        return self.folder / f"gqa_{GQA_SPLITS[split]}_choices.json"

    def gqa_scene_graphs(self, split: str) -> Path:  # GQA's objects of each picture
        return self.folder / f"gqa_{GQA_SPLITS[split]}_sceneGraphs.json"

    def pretraining_corpus(self, split: str) -> Path:  # JSONL; made on the first pre-training
        return self.folder / "pretraining" / f"{split}.jsonl"

    def image_tags(self, split: str) -> Path:  # JSONL of tags without texts; made on the first VIVO pre-training
        return self.folder / "pretraining" / f"tags_{split}.jsonl"

    def instances(self, split: str) -> Path:  # COCO instances JSON; made on the first training of a detector
        return self.folder / "detection" / f"instances_{split}.json"

    def top_level_names(self) -> set[str]:
        """Names of all files and folders that may be in the folder of a demo world."""
        files = (self.questions, self.annotations, self.store, self.captions, self.scenes, self.nlvr2)
        of_gqa = (self.gqa, self.gqa_choices, self.gqa_scene_graphs)
        names = {file(split).name for file in (*files, *of_gqa) for split in SPLITS}
        names |= {path.name for path in (self.gqa_submission, self.karpathy, self.nocaps_train, self.nocaps_val)}
        return names | {self.images.name, self.tokenizer.name, MARKER} | MADE_LATER


def read_marker(folder: Path) -> dict[str, object] | None:
    """The marker of a folder, or None if the folder bears no marker of ours."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("generator") == GENERATOR else None


# A world is made in pieces of `IMAGES_PER_PIECE` pictures. A piece depends on the seed and its image ids alone, so
# pieces can be made by any number of processes, in any order, with the same result.

IMAGES_PER_PIECE = 64
GQA_ONLY_PER_IMAGE = 3
# Every use of random numbers has a stream of its own, so that what is added changes nothing of what was there.
PICTURE_STREAM, QUESTION_STREAM, GQA_STREAM, STATEMENT_STREAM, NOCAPS_STREAM = range(5)
DETECTOR = "vinvl demo detector"
FIRST_IMAGE_IDS = {"train": 100_001, "val": 200_001, "test": 300_001}


@dataclass
class Piece:
    """Some pictures' content in the order of their ids; their files are written."""

    scenes: list[Scene]
    captions: list[list[str]]  # of each picture
    regions: list[Regions]  # of each picture
    questions: list[Question]
    annotations: list[dict[str, object]]  # one per question, in VQA v2 form
    gqa_only: list[Question]  # asked in the GQA files only


def make_piece(seed: int, questions_per_image: int, image_folder: Path, image_ids: Sequence[int]) -> Piece:
    """Make pictures, in `image_folder`, and everything that belongs to them."""
    piece = Piece([], [], [], [], [], [])
    for image_id in image_ids:
        rng = np.random.default_rng([seed, image_id, PICTURE_STREAM])
        shown = scene.sample_scene(image_id, rng)
        picture = scene.render_scene(shown)
        picture.save(image_folder / image_file_name(image_id), compress_level=6)
        pixels = np.asarray(picture)
        boxes, labels, scores = scene.detect(shown, rng)
        features = scene.crop_features([scene.crop_pixels(pixels, box) for box in boxes])
        of_class, of_attributes = (labels[:, 0], scores[:, 0]), (labels[:, 1:], scores[:, 1:])
        size = (shown.width, shown.height)
        piece.regions.append(Regions(str(image_id), features, boxes, *of_class, *of_attributes, *size))
        piece.scenes.append(shown)
        piece.captions.append(sentences.describe(shown, rng))
    rng = np.random.default_rng([seed, image_ids[0], QUESTION_STREAM])
    piece.questions = questions.ask(piece.scenes, questions_per_image, rng, questions.question_families())
    piece.annotations = [files.annotate(question, rng) for question in piece.questions]
    rng = np.random.default_rng([seed, image_ids[0], GQA_STREAM])
    piece.gqa_only = questions.ask(piece.scenes, GQA_ONLY_PER_IMAGE, rng, questions.gqa_only_families())
    return piece


@dataclass
class _Texts:
    """What the tokenizer learns from: questions, tags and captions, and for its last words what came to be later."""

    first: list[str]
    later: list[str]


def write_world(world: DemoWorld, sizes: DemoWorldSizes, workers: int) -> None:
    """Make a world in the existing empty folder `world.folder`; the marker is written last."""
    world.images.mkdir()
    scenes: dict[str, list[Scene]] = {}
    images: dict[str, list[CaptionedImage]] = {}
    of_train = _Texts([], [])
    make = partial(make_piece, sizes.seed, sizes.questions_per_image, world.images)
    with ExitStack() as stack:
        # Forked: pieces need nothing of torch or HDF5, and fresh processes would run the caller's script once more.
        pool = stack.enter_context(Pool(workers, forked=True)) if workers > 1 else None
        for split in SPLITS:
            ids = range(FIRST_IMAGE_IDS[split], FIRST_IMAGE_IDS[split] + sizes.images(split))
            parts = [ids[start : start + IMAGES_PER_PIECE] for start in range(0, len(ids), IMAGES_PER_PIECE)]
            made = pool.map(make, parts) if pool else map(make, parts)
            scenes[split], images[split], texts = _write_split(world, split, made, sizes.seed)
            of_train = texts if split == "train" else of_train
    _write_json(world.karpathy, files.karpathy_layout(chain(*images.values()), world.images.name))
    # Captions are true, so those of pictures without the novel shape do not name it either.
    pairs = zip(scenes["train"], images["train"], strict=True)
    known = [image for shown, image in pairs if files.domain(shown) == "in-domain"]
    _write_json(world.nocaps_train, files.karpathy_layout(known, world.images.name))
    rng = np.random.default_rng([sizes.seed, FIRST_IMAGE_IDS["val"], NOCAPS_STREAM])
    _write_json(world.nocaps_val, files.nocaps_file(scenes["val"], images["val"], rng))
    files.write_tokenizer(of_train.first, of_train.later, world.tokenizer)
    _write_json(world.marker, sizes.marker())


def _write_split(
    world: DemoWorld, split: str, pieces: Iterator[Piece], seed: int
) -> tuple[list[Scene], list[CaptionedImage], _Texts]:
    """Write the files of a split; regions go to the store as the pieces come in."""
    whole, texts = Piece([], [], [], [], [], []), _Texts([], [])
    with RegionStoreWriter(
        world.store(split),
        feature_dim=scene.FEATURE_DIM,
        detector=DETECTOR,
        label_map=LabelMap(classes=CLASSES, attributes=scene.ATTRIBUTES),
        num_attributes=scene.NUM_ATTRIBUTES,
    ) as store:
        for piece in pieces:
            for regions in piece.regions:
                store.add(regions)
                texts.first.append(" ".join(CLASSES[index] for index in regions.classes))
            for name in ("scenes", "captions", "questions", "annotations", "gqa_only"):
                getattr(whole, name).extend(getattr(piece, name))
    asked, annotated = files.vqa_files(whole.questions, whole.annotations, split)
    _write_json(world.questions(split), asked)
    _write_json(world.annotations(split), annotated)
    records = [files.image_record(one.image_id, one.width, one.height) for one in whole.scenes]
    _write_json(world.captions(split), files.coco_captions(records, whole.captions))
    _write_json(world.scenes(split), {"scenes": [asdict(one) for one in whole.scenes]})
    everything = [*whole.questions, *whole.gqa_only]
    of_gqa = gqa.gqa_records(everything, whole.scenes)
    _write_json(world.gqa(split), of_gqa)
    _write_json(world.gqa_choices(split), gqa.choices(everything, whole.scenes))
    _write_json(world.gqa_scene_graphs(split), gqa.scene_graphs(whole.scenes))
    if split == "test":
        _write_json(world.gqa_submission, gqa.without_answers(of_gqa))
    # As many statements as there are pictures, so four times as many pairs.
    rng = np.random.default_rng([seed, FIRST_IMAGE_IDS[split], STATEMENT_STREAM])
    statements = sentences.state(whole.scenes, len(whole.scenes), rng)
    lines = [json.dumps(record) + "\n" for record in files.nlvr2_records(NLVR2_SPLITS[split], whole.scenes, statements)]
    world.nlvr2(split).write_text("".join(lines), encoding="utf-8")
    texts.first.extend(question.text for question in whole.questions)
    texts.first.extend(caption for captions in whole.captions for caption in captions)
    texts.later.extend(question.text for question in whole.gqa_only)
    texts.later.extend(statement.sentence for statement in statements)
    # Answers too: of "yes" in pieces, a hidden one would be guessed from the others without a look at the picture.
    texts.later.extend(question.answer for question in everything)
    images = zip(whole.scenes, whole.captions, strict=True)
    return whole.scenes, [CaptionedImage(one.image_id, split, captions) for one, captions in images], texts


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def ensure_demo_world(folder: Path, *, workers: int = 2, **options: Unpack[SizeOptions]) -> DemoWorld:
    """The demo world in `folder`: as it is if seed, sizes and version agree, else generated in the place of another.

    It appears at once and whole, or not at all, and is the same whatever the number of `workers`. Of several processes
    that call this at once one generates.

    Args:
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


def ensure_demo_corpus(folder: Path, **sizes: Unpack[SizeOptions]) -> DemoWorld:
    """`ensure_demo_world` with its pre-training corpus, which is made if it is missing."""

    def text(world: DemoWorld, split: str) -> str:
        contents = [read_json(file(split)) for file in (world.captions, world.scenes, world.gqa)]
        rows = files.corpus_rows(contents[0], contents[1]["scenes"], contents[2])
        return "".join(json.dumps(row) + "\n" for row in rows)

    return _with_files(folder, sizes, DemoWorld.pretraining_corpus, text)


def ensure_demo_tags(folder: Path, **sizes: Unpack[SizeOptions]) -> DemoWorld:
    """`ensure_demo_world` with the shapes that each picture truly shows as its tags, which are made if missing."""

    def text(world: DemoWorld, split: str) -> str:
        rows = files.tag_rows(read_json(world.scenes(split))["scenes"])
        return "".join(json.dumps(row) + "\n" for row in rows)

    return _with_files(folder, sizes, DemoWorld.image_tags, text)


def ensure_demo_instances(folder: Path, **sizes: Unpack[SizeOptions]) -> DemoWorld:
    """`ensure_demo_world` with annotated objects to train a detector on, which are made if they are missing."""

    def text(world: DemoWorld, split: str) -> str:
        return json.dumps(files.instances(read_json(world.scenes(split))["scenes"]))

    return _with_files(folder, sizes, DemoWorld.instances, text)


def _with_files(
    folder: Path, sizes: SizeOptions, place: Callable[[DemoWorld, str], Path], text: Callable[[DemoWorld, str], str]
) -> DemoWorld:
    """The demo world with a file of each split that is made from others of its files."""
    world = ensure_demo_world(folder, **sizes)
    for split in SPLITS:
        if not place(world, split).exists():
            write_text_atomically(place(world, split), text(world, split))
    return world

"""Where the files of a demo world lie and how its marker tells one world from another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vinvl.data.demo import answers, detection

MARKER = "demo_world.json"
GENERATOR = "vinvl demo world"
VERSION = 6  # raise it whenever the same seed would give other files
# No part of the world, but made from it on the first training: answer vocabularies, the pre-training corpus, and the
# annotations for a detector.
MADE_LATER = frozenset({"answers.json", "gqa_answers.json", "pretraining", "detection"})
SPLITS = ("train", "val", "test")
NLVR2_SPLITS = {"train": "train", "val": "dev", "test": "test1"}  # the datasets' own names of the splits
GQA_SPLITS = {"train": "train", "val": "val", "test": "testdev"}


@dataclass(frozen=True)
class DemoWorldSizes:
    """Everything that decides what a demo world holds."""

    seed: int
    num_train_images: int
    num_val_images: int
    num_test_images: int
    questions_per_image: int

    def images(self, split: str) -> int:
        """Number of pictures of a split."""
        return {"train": self.num_train_images, "val": self.num_val_images, "test": self.num_test_images}[split]

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


@dataclass(frozen=True)
class DemoWorld:
    """The files of a demo world; splits are train, val and test."""

    folder: Path

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

    @property
    def gqa_submission(self) -> Path:
        """The questions of GQA's testdev without their answers."""
        return self.folder / "gqa_submission_questions.json"

    @property
    def karpathy(self) -> Path:
        """Captions of all splits in the layout of dataset_coco.json."""
        return self.folder / "dataset_demo.json"

    @property
    def nocaps_train(self) -> Path:
        """Captions of training pictures without the held-out shape, in the layout of dataset_coco.json."""
        return self.folder / "nocaps_train.json"

    @property
    def nocaps_val(self) -> Path:
        """COCO captions JSON of the pictures of val, with NoCaps' domains."""
        return self.folder / "nocaps_val.json"

    @property
    def images(self) -> Path:
        """Folder of PNG pictures."""
        return self.folder / "images"

    @property
    def tokenizer(self) -> Path:
        """transformers tokenizer folder."""
        return self.folder / "tokenizer"

    @property
    def marker(self) -> Path:
        """Written last: a folder without it is not a demo world."""
        return self.folder / MARKER

    def top_level_names(self) -> set[str]:
        """Names of all files and folders that may lie in the folder of a demo world."""
        files = (self.questions, self.annotations, self.store, self.captions, self.scenes, self.nlvr2, self.gqa)
        names = {file(split).name for file in files for split in SPLITS}
        names |= {path.name for path in (self.gqa_submission, self.karpathy, self.nocaps_train, self.nocaps_val)}
        return names | {self.images.name, self.tokenizer.name, MARKER} | MADE_LATER


def read_marker(folder: Path) -> dict[str, object] | None:
    """The marker of a folder, or None where the folder bears no marker of ours."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("generator") == GENERATOR else None

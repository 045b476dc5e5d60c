"""A small corpus in the published form: yaml, corpus TSV, label TSVs and their JSON files of line numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Labels = Mapping[str, Any]


def write_tsv(path: Path, rows: Sequence[Sequence[str]], *, line_index: bool = False) -> list[int]:
    """Writes rows of columns, and where asked for the offsets beside it; returns the offsets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row).encode() + b"\n" for row in rows]
    offsets = [sum(map(len, lines[:number])) for number in range(len(lines))]
    path.write_bytes(b"".join(lines))
    if line_index:
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    return offsets


def write_labels(path: Path, ids: str, labels: Labels, *, line_index: bool = False) -> None:
    """A label TSV with its JSON of {id: line number}."""
    write_tsv(path, [(name, json.dumps(value)) for name, value in labels.items()], line_index=line_index)
    (path.parent / ids).write_text(json.dumps({name: number for number, name in enumerate(labels)}))


def objects(*names: str) -> dict[str, Any]:
    found = [{"class": name, "rect": [0, 0, 5, 5], "conf": 0.5} for name in names]
    return {"image_h": 10, "image_w": 20, "objects": found}


ROWS = (
    ("coco_391895", "coco_391895", "A man on a motorbike."),
    ("coco_391895", "coco_391895", "Someone rides  ❤."),
    ("gqa_2386621", "gqa_qa_2386621_q1", "What is red?"),
    ("cc_0_77", "cc_77", "sunset over the sea"),
    ("vg_1", "vg_1", "left out"),
    ("coco_12", "coco_12", "two dogs"),
    ("gqa_2386621", "gqa_2386621", "a red door"),
)
COCO = {"12": objects("dog", "dog"), "391895": {**objects("man", "motorbike"), "gt_objects": [{"class": "person"}]}}


def write_published(folder: Path, rows: Sequence[Sequence[str]] = ROWS, *, line_index: bool = False) -> Path:
    """The corpus of these rows over three datasets; returns the yaml."""
    write_tsv(folder / "text" / "corpus.tsv", rows)
    labels = folder / "labels"
    write_labels(labels / "coco" / "predictions_gt.tsv", "imageid2idx.json", COCO, line_index=line_index)
    write_labels(labels / "cc" / "predictions_gt.tsv", "imageid2idx.json", {"77": objects("sea", "sun set")})
    write_labels(labels / "gqa" / "predictions_gt.tsv", "imageid2idx.json", {"2386621": objects("door")})
    answers = {"q0": {"labels": ["no"]}, "q1": {"labels": ["the", "door"]}}
    write_labels(labels / "gqa" / "QA_fileB.tsv", "QA_qaid2idx.json", answers, line_index=line_index)
    content = (
        "corpus_file: text/corpus.tsv\ncorpus: coco_googlecc_gqa\nimage_feature_path: {coco: f, googlecc: f, gqa: f}\n"
    )
    content += "image_label_path:\n  coco: labels/coco\n  googlecc: labels/cc\n  gqa: labels/gqa\n  sbu: labels/sbu\n"
    (folder / "corpus.yaml").write_text(content)
    return folder / "corpus.yaml"

"""Small made-up caption files in each layout, for the tests of their readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vinvl.captioning.files import CaptionRecords, read_karpathy

Reader = Callable[..., CaptionRecords]
read_train = partial(read_karpathy, splits=["train"])


def karpathy_image(number: int = 1, *captions: Any, **changes: Any) -> dict[str, Any]:
    sentences = [{"raw": raw, "sentid": number * 10 + n} for n, raw in enumerate(captions or ("A cat.", "Two cats."))]
    return {"cocoid": number, "filename": f"{number}.jpg", "split": "train", "sentences": sentences} | changes


def coco_image(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg"} | changes


def annotation(number: int = 1, image_id: Any = 1, caption: Any = "A cat.", **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "caption": caption} | changes


def karpathy_file(folder: Path, *images: Any) -> Path:
    return json_file(folder, {"images": list(images), "dataset": "coco"})


def coco_file(folder: Path, images: list[Any], annotations: list[Any] | None = None) -> Path:
    return json_file(folder, {"images": images} | ({} if annotations is None else {"annotations": annotations}))


def json_file(folder: Path, content: Any, name: str = "captions.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder / name


def lines_file(folder: Path, *records: Any, name: str = "own.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name

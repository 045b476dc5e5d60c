"""Reading the records of a split, and leaving one image of it out: seconds and memory.

    python benchmarks/records.py [--kinds vqa captions instances] [--images 40000] [--texts 200000]

Writes the official files (VQA v2, Karpathy's COCO captions, COCO instances) in a temporary folder and reads them from
the page cache in a process of their own, twice each. Seconds are those of its CPU, so that other programs do not count;
memory is what it held at most, and before it read.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def write_captions(folder: Path, captions: int, images: int | Mapping[str, int]) -> None:
    """Karpathy's file, its captions spread evenly over the images: of training, or of each split so many."""
    draw = random.Random(0)
    entries: list[dict[str, Any]] = []
    splits = [
        split
        for split, count in (images if isinstance(images, Mapping) else {"train": images}).items()
        for _ in range(count)
    ]
    images = len(splits)
    for image in range(images):
        own = range(captions * image // images, captions * (image + 1) // images)
        raw = [" ".join(f"word{draw.randrange(9999)}" for _ in range(10)) for _ in own]
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": image, "sentid": number}
            for number, text in zip(own, raw, strict=True)
        ]
        name = f"COCO_train2014_{image:012d}.jpg"
        entries.append(
            {"filepath": "train2014", "sentids": [*own], "filename": name, "imgid": image, "split": splits[image]}
            | {"sentences": sentences, "cocoid": image}
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))


def write_instances(folder: Path, boxes: int, images: int, points: int) -> None:
    """COCO's file and pictures of no bytes, which are only looked for."""
    draw = random.Random(0)
    names = [f"{image:012d}.jpg" for image in range(images)]
    (folder / "pictures").mkdir()
    for name in names:
        (folder / "pictures" / name).touch()
    annotations = []
    for number in range(boxes):
        x, y, width, height = draw.uniform(0, 300), draw.uniform(0, 200), draw.uniform(20, 300), draw.uniform(20, 250)
        outline = [round(draw.uniform(0, 400), 2) for _ in range(2 * points)]
        box = [round(one, 2) for one in (x, y, width, height)]
        annotations.append(
            {"segmentation": [outline], "area": width * height, "iscrowd": 0, "image_id": draw.randrange(images)}
            | {"bbox": box, "category_id": draw.randrange(1, 81), "id": number}
        )
    content = {
        "images": [{"id": n, "file_name": name, "width": 640, "height": 480} for n, name in enumerate(names)],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 81)],
    }
    (folder / "instances.json").write_text(json.dumps(content))


def reader(kind: str) -> Callable[[Path], Any]:
    """What reads the files of a folder; imported here, so that it can be told what that alone takes."""
    if kind == "vqa":
        from vinvl.vqa.files import read_official

        return lambda folder: read_official(folder / "questions.json", folder / "annotations.json")
    if kind == "captions":
        from vinvl.captioning.files import read_karpathy

        return lambda folder: read_karpathy(folder / "dataset_coco.json", ["train"])
    from vinvl.detector.instances import InstanceOptions, read_instances

    return lambda folder: read_instances(folder / "instances.json", folder / "pictures", None, InstanceOptions())[0]


def most_memory() -> int:
    """Megabytes that this process has held at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def read(kind: str, folder: Path) -> None:
    """One reading, printed as a row."""
    records_of, imported = reader(kind), most_memory()
    start = time.process_time()
    records = records_of(folder)
    seconds = time.process_time() - start
    most = most_memory()
    row = f"{len(records):>10,}{seconds:>8.1f} s{most:>10,} MB{imported:>10,} MB"
    if kind == "instances":
        print(f"{kind:<10}{row}   {os.path.getsize(folder / 'instances.json') / 1e6:,.0f} MB of JSON")
        return
    image_ids = np.array(list(records.image_ids))
    start = time.process_time()
    kept = records.select(image_ids != image_ids[len(image_ids) // 2])
    selecting = time.process_time() - start
    print(f"{kind:<10}{row}   {selecting:.2f} s → {len(kept):,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=("vqa", "captions", "instances"), default=["vqa"])
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--texts", type=int, default=200_000, help="questions, captions or boxes")
    parser.add_argument("--points", type=int, default=20, help="of the outline of each box")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # what the process of its own is asked for
    options = parser.parse_args()
    if options.read is not None:
        return read(options.kinds[0], options.read)
    from vqa_feed import write_questions

    writers: dict[str, Callable[[Path, int, int], object]] = {
        "vqa": write_questions,
        "captions": write_captions,
        "instances": partial(write_instances, points=options.points),
    }
    print(f"{'':<10}{'records':>10}{'reading':>10}{'most':>13}{'imports':>13}   leaving one image out")
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as name:
            writers[kind](Path(name), options.texts, options.images)
            for _ in range(2):
                subprocess.run([sys.executable, __file__, "--kinds", kind, "--read", name], check=True)


if __name__ == "__main__":
    main()

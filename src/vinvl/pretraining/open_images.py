"""Open Images' image-level labels as they are downloaded → a corpus of tags alone, which data.variant=vivo learns from.

`python -m vinvl.pretraining.corpus open-images LABELS.csv … --descriptions CSV --output FOLDER`
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vinvl.data.open_images import class_descriptions, csv_batches
from vinvl.pretraining.published import TRAIN, VALIDATION, share_of
from vinvl.run.errors import UserError, say
from vinvl.run.files import atomic_write, refuse_existing
from vinvl.run.progress import progress
from vinvl.run.values import checked_id, shown

FILE = "open_images_tags.jsonl"
COLUMNS = {"ImageID": pa.string(), "LabelName": pa.string(), "Confidence": pa.float64()}
HELP = "Open Images' image-level labels (CSV as downloaded) → tags of images, without texts, for data.variant=vivo"
MORE = (
    f"Writes FOLDER/train/{FILE} and FOLDER/val/{FILE}. Of labels that people verified those of confidence 1 become "
    "tags and those of 0, which are known to be absent, do not. Rows of an image may be anywhere, and in several files."
)


class Labels(NamedTuple):
    """Verified labels of images, in the order of the files, each image's together."""

    image_ids: Sequence[str]  # in the order in which they come first
    starts: np.ndarray  # (I + 1,) int64
    classes: np.ndarray  # (starts[-1],) int32, of each image different ones
    absent: int  # rows that say that there is no such thing in the image
    unwanted: int  # rows of classes that were not asked for


def read_labels(files: Sequence[Path], descriptions: Path, wanted: Path | None) -> tuple[list[str], Labels]:
    """The names of the classes, and the labels; six bytes a true label are held, and once each image id.

    Args:
        files: `train-annotations-human-imagelabels.csv`, `…-boxable.csv` and the like: ImageID, LabelName, Confidence.
        descriptions: `oidv7-class-descriptions.csv` or another with all their classes.
        wanted: class descriptions too; other classes are left out. None: all.

    Raises:
        UserError: names file and line.
    """
    names = class_descriptions(descriptions, alike=True)
    mids, within = pa.array(list(names)), None if wanted is None else class_descriptions(wanted, alike=True)
    if within is not None and (foreign := [mid for mid in within if mid not in names]):
        raise UserError(
            f"{wanted} names the class {foreign[0]}, which is in no line of {descriptions}: give both of one version."
        )
    is_wanted = np.array([within is None or mid in within for mid in names])
    images, classes, absent, unwanted = [], [], 0, 0
    for path in files:
        line = 2
        with progress("MB", path.stat().st_size / 1e6 if path.is_file() else 0) as show:
            for read, table in csv_batches(path, COLUMNS):
                of_class, is_true = _checked(table, mids, f"{path} line", line, descriptions)
                kept = is_true & is_wanted[of_class]
                absent, unwanted = absent + int((~is_true).sum()), unwanted + int((is_true & ~kept).sum())
                images.append(table["ImageID"].filter(pa.array(kept)))
                classes.append(of_class[kept])
                line += len(table)
                show(read / 1e6)
    chunks = [chunk for one in images for chunk in one.chunks if len(chunk)]
    if not chunks:
        raise UserError(f"{files[0]} holds no label of confidence 1 of a class that is asked for: get the file again.")
    encoded = pa.chunked_array(chunks).combine_chunks().dictionary_encode()
    image = encoded.indices.to_numpy().astype(np.int64)
    keys = image * len(names) + np.concatenate(classes)
    first = np.sort(np.unique(keys, return_index=True)[1])  # of labels that are there twice the first
    order = first[np.argsort(image[first], kind="stable")]
    starts = np.insert(np.cumsum(np.bincount(image[order])), 0, 0)
    ordered = (keys[order] % len(names)).astype(np.int32)
    return list(names.values()), Labels(encoded.dictionary.to_pylist(), starts, ordered, absent, unwanted)


def _checked(
    table: pa.Table, mids: pa.Array, place: str, line: int, descriptions: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int32, the class of each row, and (n,) bool, whether the image has it. `line` is that of the first row."""
    of_class = pc.fill_null(pc.index_in(table["LabelName"], mids), -1).to_numpy().astype(np.int32)
    confidence = pc.fill_null(table["Confidence"], np.nan).to_numpy()
    rules = (
        (of_class < 0, "LabelName", f"is in no line of {descriptions}: give the class descriptions of this version"),
        (~np.isin(confidence, (0, 1)), "Confidence", "is neither 0 nor 1: give labels that people verified"),
        (pc.equal(pc.fill_null(table["ImageID"], ""), "").to_numpy(), "ImageID", "is no id"),
    )
    for wrong, name, what in rules:
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(f"{place} {line + row}: {name} {shown(table[name][row].as_py())} {what}.")
    return of_class, confidence == 1


def write_tags(names: Sequence[str], labels: Labels, folder: Path, validation_share: float) -> Counter[str]:
    """Writes the corpus of both splits; returns how many images each has.

    Raises:
        UserError: files are there already, or cannot be written.
    """
    if not 0 <= validation_share < 1:
        raise UserError(f"--validation-share is {validation_share}: give a share from 0 to less than 1.")
    paths = {split: folder / split / FILE for split in ((TRAIN, VALIDATION) if validation_share else (TRAIN,))}
    for path in paths.values():
        refuse_existing(path)
    lines: dict[str, list[str]] = {split: [] for split in paths}
    for number, image_id in enumerate(labels.image_ids):
        checked_id(image_id, f"ImageID {shown(image_id)}")
        tags = [names[one] for one in labels.classes[labels.starts[number] : labels.starts[number + 1]].tolist()]
        split = VALIDATION if share_of(image_id) < validation_share else TRAIN
        # Two classes may have one name.
        lines[split].append(
            json.dumps({"image_id": image_id, "tags": [*dict.fromkeys(tags)]}, ensure_ascii=False) + "\n"
        )
    for split in paths:
        if not lines[split]:
            raise UserError(
                f"None of {len(labels.image_ids):,} images falls to {split}: give another --validation-share."
            )
    for split, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.writelines(lines[split])
    return Counter({split: len(of_split) for split, of_split in lines.items()})


def add_open_images(commands: Any) -> None:
    """The subcommand `open-images` of `python -m vinvl.pretraining.corpus`."""
    command = commands.add_parser("open-images", help=HELP, description=f"{HELP}. {MORE}")
    add = command.add_argument
    add("files", nargs="+", metavar="LABELS", help="train-annotations-human-imagelabels.csv and the like")
    add("--descriptions", required=True, metavar="CSV", help="names of all classes: oidv7-class-descriptions.csv")
    add("--classes", metavar="CSV", help="of these classes alone: class-descriptions-boxable.csv")
    add("--output", required=True, metavar="FOLDER")
    add(
        "--validation-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the images, by their id (default: %(default)s)",
    )
    command.set_defaults(run=_convert)


def _convert(files: Sequence[str], descriptions: str, classes: str | None, output: str, validation_share: float) -> int:
    names, labels = read_labels([*map(Path, files)], Path(descriptions), Path(classes) if classes else None)
    counts = write_tags(names, labels, Path(output), validation_share)
    used = len(np.unique(labels.classes))
    told = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    say(f"{output}: images {told}; {len(labels.classes):,} tags of {used:,} classes")
    say(f"left out: {labels.absent:,} labels that are absent, {labels.unwanted:,} of classes that were not asked for")
    return 0

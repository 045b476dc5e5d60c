"""Captions of the published retrieval folders: dicts that torch.save has written, key lists, hard captions."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.captioning.files import FOUND, CaptionRecords, OnMissingCaptions, Row, checked_handling, tell_skipped
from vinvl.data.module import plain
from vinvl.data.table import RecordTable
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, reading
from vinvl.run.tensor_files import load_tensor_file
from vinvl.run.values import shown

CAPTIONS = "a dict of image id → list of captions, such as train_captions.pt"
HARD = "a dict of image id → list of [image id, caption number], such as minival_caption_indexs_top20.pt"


def read_published_captions(
    path: str | Path, keys: str | Path | None = None, on_missing_captions: OnMissingCaptions = "error"
) -> CaptionRecords:
    """The images of `{split}_captions.pt` with their captions, which are called by image and number, "391895#2".

    Args:
        path: of torch.save, a dict of image id → list of captions, or JSON text of that list.
        keys: the images to take, in this order, an id a line, as in test_img_keys_1k.tsv; None for all, in the order of
            the dict.

    Raises:
        UserError: a file is missing or something else, or the list names an image without captions, or one twice; and
            as all readers of captions.
    """
    found = lists_by_image(path, CAPTIONS)
    wanted = {image_id: (str(path), number) for number, image_id in enumerate(found, start=1)}
    if keys is not None:
        wanted = {image_id: (str(keys), line) for image_id, line in key_lines(keys)}
        for image_id, (_, line) in wanted.items():
            if image_id not in found:
                missing = sum(one not in found for one in wanted)
                raise UserError(
                    f"{keys} line {line}: image {image_id[:40]!r} has no captions in {path}, like {missing - 1:,} more "
                    f"of {len(wanted):,}: give the key list of that file's split."
                )

    def rows() -> Iterator[Row]:
        for image_id, (file, number) in wanted.items():
            texts = found[image_id]
            if not all(isinstance(text, str) for text in texts):
                wrong = next(text for text in texts if not isinstance(text, str))
                raise UserError(f"{path}: image {image_id} has {shown(wrong)} as a caption; give {CAPTIONS}.")
            ids = [f"{image_id}#{n}" for n in range(1, len(texts) + 1)]
            kind = "image" if file == str(path) else "line"
            yield f"{file} {kind}", number, image_id, None, None, [text.strip() for text in texts], ids, None

    return CaptionRecords.checked(RecordTable.of(FOUND, rows(), path), on_missing_captions)


def read_published_retrieval_split(files: Any, split: str, on_missing_captions: str) -> CaptionRecords | None:
    """That of `{captions: FILE.pt}` or `{captions: FILE.pt, keys: FILE.tsv}`; None for another form."""
    match plain(files):
        case {"captions": str(path), **others} if set(others) <= {"keys"}:
            keys = others.get("keys")
            if keys is not None and not isinstance(keys, str):
                raise UserError(f"data.splits.{split}.keys is {keys!r}: name a file, one image id a line.")
            records = read_published_captions(path, keys, checked_handling(on_missing_captions))
            tell_skipped(records, split)
            return records
    return None


def key_lines(path: str | Path) -> list[tuple[str, int]]:
    """(id, line from 1) of each image of a key list. UserError if it names none, one twice, or has other columns."""
    listed: dict[str, int] = {}
    for number, line in enumerate(read_bytes(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not (image_id := line.strip()):
            continue
        if "\t" in image_id:
            raise UserError(f"{path} line {number} has several columns; a key list has one image id a line.")
        if image_id in listed:
            raise UserError(f"{path} line {number} has image {image_id[:40]!r} of line {listed[image_id]} again.")
        listed[image_id] = number
    if not listed:
        raise UserError(f"{path} names no images; a key list has one image id a line.")
    return list(listed.items())


def read_hard_captions(path: str | Path, records: CaptionRecords) -> list[np.ndarray]:
    """The captions that each image of a split is scored with, as the published validation has them.

    Args:
        path: of torch.save, a dict of image id → list of [image id, caption number from 0], or JSON text of it.

    Returns:
        For each image of `records` (n,) int64 into its captions, in the order of the file; n is the same for all.

    Raises:
        UserError: the file is missing or something else, lacks an image of the split, or names an image or a caption
            that the split does not have, or lists are not of one length.
    """
    found = lists_by_image(path, HARD)
    place_of = {image_id: place for place, image_id in enumerate(records["image_id"])}
    counts = np.diff(records.offsets)
    hard: list[np.ndarray] = []
    for index, own_id in enumerate(records["image_id"]):
        if own_id not in found:
            raise UserError(f"{path} has no list for {records.describe(index)}: give the file of this split.")
        captions = [_caption_of(pair, f"{path}, image {own_id}") for pair in found[own_id]]
        if not captions or (hard and len(captions) != len(hard[0])):
            first = f", and image {records['image_id'][0]} {len(hard[0])}" if hard else ""
            raise UserError(f"{path}: image {own_id} has {len(captions)} captions{first}; give each image as many.")
        for image_id, number in captions:
            place = place_of.get(image_id)
            if place is None:
                raise UserError(
                    f"{path}, image {own_id} names a caption of image {image_id[:40]!r}, which the split lacks: "
                    "give the file of this split."
                )
            if not 0 <= number < counts[place]:
                raise UserError(
                    f"{path}, image {own_id} names caption {number} of image {image_id}, whose captions in use are 0 "
                    f"to {counts[place] - 1}: give the file of this split, or set data.captions_per_image."
                )
        hard.append(np.array([records.offsets[place_of[image_id]] + number for image_id, number in captions]))
    return hard


def _caption_of(pair: Any, place: str) -> tuple[str, int]:
    match pair:
        case [int() | str() as image_id, int() as number] if not isinstance(number, bool):
            return str(image_id), number
    raise UserError(f"{place} has {shown(pair)}, expected [image id, caption number]; give {HARD}.")


def lists_by_image(path: str | Path, expected: str) -> dict[str, list[Any]]:
    """The lists of a dict in a file of torch.save, each as it is or as JSON text. UserError for anything else."""
    content = _content(Path(path), expected)
    found: dict[str, list[Any]] = {}
    for key, value in content.items():
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise UserError(f"{path} has the key {str(key)[:40]!r}, which is no image id; give {expected}.")
        image_id = str(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise UserError(f"{path}: image {image_id[:40]} has a text that is no JSON; give {expected}.") from None
        if not isinstance(value, list | tuple):
            what = shown(value) if isinstance(value, str | int | float | dict | None) else f"a {type(value).__name__}"
            raise UserError(f"{path}: image {image_id[:40]} has {what}, expected a list; give {expected}.")
        if image_id in found:
            raise UserError(f"{path} has image {image_id[:40]} twice, as a number and as text; leave one out.")
        found[image_id] = list(value)
    if not found:
        raise UserError(f"{path} is empty; give {expected}.")
    return found


def _content(path: Path, expected: str) -> Mapping[Any, Any]:
    with reading(path):
        path.open("rb").close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of files that it need not trust
            content = load_tensor_file(path)
    except UserError:
        raise
    except Exception as error:  # whatever a file that is none makes torch raise
        told = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read as plain values of torch.save ({told}); give {expected}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; give {expected}.")
    return content

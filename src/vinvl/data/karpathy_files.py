"""Reads the caption files of Karpathy and Fei-Fei (2015): dataset_coco.json, dataset_flickr30k.json."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vinvl.data.caption_packing import Caption, CaptionedImage, OnMissingCaptions, numbered_caption, pack
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.json_files import no_cycle_collection, read_json
from vinvl.data.record_fields import (
    Record,
    checked_record,
    optional_text,
    record_list,
    required,
    required_id,
    required_text,
    shown,
)
from vinvl.errors import UserError


def read_karpathy(
    path: str | Path, splits: Sequence[str], on_missing_captions: OnMissingCaptions = "error"
) -> CaptionRecords:
    """Reads the images of some splits ("train", "restval", "val", "test") in the order of the file.

    The file is an object whose "images" list holds {"split", "filename", "sentences": [{"raw"}]}, with "cocoid" and
    each sentence's "sentid" where there are such. An image is called by its cocoid, or else by its filename without
    folder and suffix. Of the images of other splits only the split is looked at.

    `on_missing_captions` "error" refuses images without captions and blank captions, "skip" leaves them out and counts
    them in `skipped`. Raises UserError, naming file and record (counted from 1), for files and records that are not as
    described, for images and sentence ids that occur twice and for splits that the file does not have.
    """
    with no_cycle_collection():
        records = record_list(read_json(path), "images", path, "Karpathy split file")
        return pack(_images(records, path, splits), f"{path} record", on_missing_captions)


def _images(records: list[object], path: str | Path, splits: Sequence[str]) -> list[CaptionedImage]:
    splits = [splits] if isinstance(splits, str) else splits
    images = []
    found: dict[str, None] = {}
    for number, value in enumerate(records, start=1):
        place = f"{path} record {number}"
        record = checked_record(value, place, "filename, split and sentences")
        split = required_text(record, "split", place)
        found[split] = None
        if split in splits:
            images.append(_image(record, number, place))
    unknown = [split for split in splits if split not in found]
    if unknown or not splits:
        wanted = f"no split {shown(unknown[0])}" if unknown else "no split to read named"
        raise UserError(f"{path} has {wanted}; it has {', '.join(found)}.")
    return images


def _image(record: Record, number: int, place: str) -> CaptionedImage:
    file_name = optional_text(record, "filename", place)
    if record.get("cocoid") is not None:
        image_id = str(required_id(record, "cocoid", place))
    else:
        image_id = PurePosixPath(str(required_id(record, "filename", place))).stem
    return CaptionedImage(number, image_id, file_name, None, _captions(record, image_id, place))


def _captions(record: Record, image_id: str, place: str) -> list[Caption]:
    sentences = record.get("sentences")
    if sentences is None:
        return []
    if not isinstance(sentences, list):
        raise UserError(f"{place}: sentences is {shown(sentences)}, expected a list of objects.")
    captions = []
    for position, value in enumerate(sentences, start=1):
        sentence = checked_record(value, f"{place}: sentence {position}", "raw")
        raw = required(sentence, "raw", f"{place}: sentence {position}")
        caption = numbered_caption(image_id, position, raw, place)
        if sentence.get("sentid") is not None:
            caption = caption._replace(caption_id=required_id(sentence, "sentid", f"{place}: sentence {position}"))
        captions.append(caption)
    return captions

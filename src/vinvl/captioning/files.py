"""Reads captions: Karpathy's dataset_coco.json and dataset_flickr30k.json, COCO's own JSON, JSONL of your own."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vinvl.captioning.records import (
    Caption,
    CaptionedImage,
    CaptionRecords,
    OnMissingCaptions,
    numbered_caption,
    pack,
)
from vinvl.data.records import (
    Record,
    checked_record,
    checked_text,
    optional_text,
    record_list,
    required,
    required_id,
    required_text,
    shown,
)
from vinvl.run.errors import UserError
from vinvl.run.files import json_lines, no_cycle_collection, read_json

# Reads captions of your own: JSONL, one image per line.


def read_caption_jsonl(path: str | Path, on_missing_captions: OnMissingCaptions = "error") -> CaptionRecords:
    """Reads one split from JSONL, UTF-8, one object per line; blank lines are skipped.

    Keys: "image_id" (integer or text) and "captions", a list of texts, or "caption", one text; missing on every line of
    a file of images to predict captions for. Optional: "file_name", "domain". Captions are called by their image and
    number from 1, "391895#2".

    `on_missing_captions` "error" refuses images without captions and blank captions, "skip" leaves them out and counts
    them in `skipped`. Raises UserError, naming file and line, for files and lines that are not as described and for
    images that occur twice.
    """
    images = []
    for line, value in json_lines(path):
        place = f"{path} line {line}"
        record = checked_record(value, place, "image_id and captions")
        image_id = str(required_id(record, "image_id", place))
        file_name, domain = optional_text(record, "file_name", place), optional_text(record, "domain", place)
        images.append(CaptionedImage(line, image_id, file_name, domain, _captions(record, image_id, place)))
    if not images:
        raise UserError(f"{path} holds no images; an empty split cannot be used.")
    return pack(images, f"{path} line", on_missing_captions)


def _captions(record: Record, image_id: str, place: str) -> list[Caption] | None:
    captions, caption = record.get("captions"), record.get("caption")
    if captions is not None and caption is not None:
        raise UserError(f"{place} has both captions and caption; keep one of the two.")
    if caption is not None:
        captions = [caption]
    if captions is None:
        return None
    if not isinstance(captions, list):
        raise UserError(f"{place}: captions is {shown(captions)}, expected a list of texts.")
    return [numbered_caption(image_id, number, text, place) for number, text in enumerate(captions, start=1)]


# Reads caption files in the layout of COCO (Chen et al. 2015), which NoCaps (Agrawal et al. 2019) uses as well.


_KIND = "COCO caption file"


def read_coco_captions(path: str | Path, on_missing_captions: OnMissingCaptions = "error") -> CaptionRecords:
    """Reads the images in the order of the file, each with its captions in the order of theirs.

    The file is an object whose "images" list holds {"id"}, optionally with "file_name" and NoCaps' "domain", and whose
    "annotations" list holds {"id", "image_id", "caption"}. A file without "annotations" (image_info_test2014.json,
    NoCaps test) holds images only.

    `on_missing_captions` "error" refuses images without captions and blank captions, "skip" leaves them out and counts
    them in `skipped`. Raises UserError, naming file and record (counted from 1), for files and records that are not as
    described, for images and annotation ids that occur twice and for annotations of images that the file lacks.
    """
    with no_cycle_collection():
        content = read_json(path)
        records = record_list(content, "images", path, _KIND)
        captions = None if content.get("annotations") is None else _coco_captions(content, path)
        images = [_coco_image(value, number, path, captions) for number, value in enumerate(records, start=1)]
        if captions is not None:
            _refuse_unknown_images(captions, images, path)
        return pack(images, f"{path} image", on_missing_captions)


def _coco_image(
    value: Any, number: int, path: str | Path, captions: dict[str, list[tuple[int, Caption]]] | None
) -> CaptionedImage:
    place = f"{path} image {number}"
    record = checked_record(value, place, "id and file_name")
    image_id = str(required_id(record, "id", place))
    return CaptionedImage(
        number,
        image_id,
        optional_text(record, "file_name", place),
        optional_text(record, "domain", place),
        None if captions is None else [caption for _, caption in captions.get(image_id, [])],
    )


def _coco_captions(content: dict[str, Any], path: str | Path) -> dict[str, list[tuple[int, Caption]]]:
    """image id -> (annotation number from 1, caption) of each of its captions."""
    captions: dict[str, list[tuple[int, Caption]]] = {}
    for number, value in enumerate(record_list(content, "annotations", path, _KIND), start=1):
        place = f"{path} annotation {number}"
        record = checked_record(value, place, "id, image_id and caption")
        text = checked_text(required(record, "caption", place), f"{place}: caption")
        image_id = str(required_id(record, "image_id", place))
        captions.setdefault(image_id, []).append((number, Caption(required_id(record, "id", place), text)))
    return captions


def _refuse_unknown_images(
    captions: dict[str, list[tuple[int, Caption]]], images: list[CaptionedImage], path: str | Path
) -> None:
    known = {image.image_id for image in images}
    unknown = [image_id for image_id in captions if image_id not in known]
    if unknown:
        number, caption = captions[unknown[0]][0]
        raise UserError(
            f"{path} annotation {number} (id {caption.caption_id}) is about image {unknown[0]}, which is not among the "
            f'"images" of the file ({len(unknown):,} such images); add it or leave its annotations out.'
        )


def read_karpathy(
    path: str | Path, splits: Sequence[str], on_missing_captions: OnMissingCaptions = "error"
) -> CaptionRecords:
    """Reads the images of some splits ("train", "restval", "val", "test") in the order of the file.

    The file is an object whose "images" list holds {"split", "filename", "sentences": [{"raw"}]}, with "cocoid" and
    each sentence's "sentid" if it has one. An image is called by its cocoid, or else by its filename without
    folder and suffix. Images of other splits are read only as far as their split.

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
            images.append(_karpathy_image(record, number, place))
    unknown = [split for split in splits if split not in found]
    if unknown or not splits:
        wanted = f"no split {shown(unknown[0])}" if unknown else "no split to read named"
        raise UserError(f"{path} has {wanted}; it has {', '.join(found)}.")
    return images


def _karpathy_image(record: Record, number: int, place: str) -> CaptionedImage:
    file_name = optional_text(record, "filename", place)
    if record.get("cocoid") is not None:
        image_id = str(required_id(record, "cocoid", place))
    else:
        image_id = PurePosixPath(str(required_id(record, "filename", place))).stem
    return CaptionedImage(number, image_id, file_name, None, _karpathy_captions(record, image_id, place))


def _karpathy_captions(record: Record, image_id: str, place: str) -> list[Caption]:
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

"""Reads captions of one's own: JSONL, one image per line."""

from pathlib import Path

from vinvl.data.caption_packing import Caption, CaptionedImage, OnMissingCaptions, numbered_caption, pack
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.json_files import json_lines
from vinvl.data.record_fields import Record, checked_record, optional_text, required_id, shown
from vinvl.errors import UserError


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

"""Reads caption files in the layout of COCO (Chen et al. 2015), which NoCaps (Agrawal et al. 2019) uses as well."""

from pathlib import Path
from typing import Any

from vinvl.data.caption_packing import Caption, CaptionedImage, OnMissingCaptions, pack
from vinvl.data.caption_records import CaptionRecords
from vinvl.data.json_files import no_cycle_collection, read_json
from vinvl.data.record_fields import checked_record, checked_text, optional_text, record_list, required, required_id
from vinvl.errors import UserError

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
        captions = None if content.get("annotations") is None else _captions(content, path)
        images = [_image(value, number, path, captions) for number, value in enumerate(records, start=1)]
        if captions is not None:
            _refuse_unknown_images(captions, images, path)
        return pack(images, f"{path} image", on_missing_captions)


def _image(
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


def _captions(content: dict[str, Any], path: str | Path) -> dict[str, list[tuple[int, Caption]]]:
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

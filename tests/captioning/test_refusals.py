"""Caption files in each layout that are refused, and what is said of them."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.captioning.samples import (
    Reader,
    annotation,
    coco_file,
    coco_image,
    karpathy_file,
    karpathy_image,
    lines_file,
    read_train,
)
from tests.data.reader_checks import BROKEN_FILES, refusal
from vinvl.captioning.files import read_caption_jsonl, read_coco_captions


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "captions.json holds no images; an empty split"),
        ([3], "got `int` at $.images[0]"),
        ([karpathy_image(), {"cocoid": 4}], "missing required field `split` at $.images[1]"),
        ([karpathy_image(split=None)], "got `null` at $.images[0].split"),
        ([karpathy_image(split=" ")], "that is not blank at $.images[0].split"),
        ([karpathy_image(cocoid=1.5)], "got `float` at $.images[0].cocoid"),
        ([karpathy_image(cocoid="\0")], "without null characters, of 256 characters at most at $.images[0].cocoid"),
        ([karpathy_image(cocoid=10**256)], "an integer of more than 256 digits"),
        ([karpathy_image(filename=4)], "got `int` at $.images[0].filename"),
        ([karpathy_image(cocoid=None, filename="\ud800.jpg")], "$.images[0].filename holds half of a surrogate pair"),
        ([karpathy_image(cocoid=None, filename=" ")], "record 1, which has no cocoid: filename is ' '"),
        ([{"split": "train", "sentences": []}], "record 1, which has no cocoid: filename is missing or null"),
        ([karpathy_image(sentences={"raw": "x"})], "got `object` at $.images[0].sentences"),
        ([karpathy_image(sentences=["x"])], "got `str` at $.images[0].sentences[0]"),
        ([karpathy_image(sentences=[{"tokens": []}])], "field `raw` at $.images[0].sentences[0]"),
        ([karpathy_image(sentences=[{"raw": 3}])], "got `int` at $.images[0].sentences[0].raw"),
        ([karpathy_image(sentences=[{"raw": float("nan")}])], "is not valid JSON"),
        ([karpathy_image(1, "x", "\udfff")], "$.images[0].sentences[1].raw holds half of a surrogate pair"),
        ([karpathy_image(sentences=[{"raw": "x", "sentid": []}])], "got `array` at $.images[0].sentences[0].sentid"),
        ([karpathy_image(sentences=None)], "record 1 (image 1) has no captions; add one"),
        ([karpathy_image(), karpathy_image()], "json record 2 has the image_id 1 of"),
        ([karpathy_image(), karpathy_image(2, sentences=[{"raw": "x", "sentid": 10}])], "has a caption with the id 10"),
    ],
)
def test_bad_karpathy_records_are_refused(tmp_path: Path, images: list[Any], sentence: str) -> None:
    path = karpathy_file(tmp_path, *images)
    message = refusal(read_train, path)
    assert sentence in message and message.startswith(str(path)), message


@pytest.mark.parametrize(
    ("images", "annotations", "sentence"),
    [
        ([], None, "captions.json holds no images; an empty split"),
        ([coco_image()], [], "captions.json holds no annotations; an empty split"),
        ([3], None, "got `int` at $.images[0]"),
        ([{"file_name": "x"}], None, "missing required field `id` at $.images[0]"),
        ([coco_image(domain=3)], None, "got `int` at $.images[0].domain"),
        ([coco_image(), coco_image("1")], None, "captions.json image 2 has the image_id 1 of"),
        ([coco_image(), coco_image()], [annotation()], "captions.json image 2 has the image_id 1 of"),
        ([coco_image()], [[]], "got `array` at $.annotations[0]"),
        ([coco_image()], [{"id": 1, "image_id": 1}], "missing required field `caption` at $.annotations[0]"),
        ([coco_image()], [{"caption": "x", "image_id": 1}], "missing required field `id` at $.annotations[0]"),
        ([coco_image()], [annotation(caption=None)], "got `null` at $.annotations[0].caption"),
        ([coco_image()], [annotation(caption="\ud83d")], "$.annotations[0].caption holds half of a surrogate pair"),
        ([coco_image()], [annotation(True)], "got `bool` at $.annotations[0].id"),
        ([coco_image()], [annotation(), annotation(2, 8)], "annotation 2 (id 2) is about image 8, which is not among"),
        ([coco_image()], [annotation(), annotation()], "annotation 2 has the caption_id 1 of"),
    ],
)
def test_bad_coco_records_are_refused(
    tmp_path: Path, images: list[Any], annotations: list[Any] | None, sentence: str
) -> None:
    path = coco_file(tmp_path, images, annotations)
    message = refusal(read_coco_captions, path)
    assert sentence in message and message.startswith(str(path)), message


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (3, "line 1: Expected `object`, got `int`"),
        ({"captions": ["x"]}, "line 1: Object missing required field `image_id`"),
        ({"image_id": 1, "captions": "x"}, "got `str` at $.captions"),
        ({"image_id": 1, "captions": ["x", 4]}, "got `int` at $.captions[1]"),
        ({"image_id": 1, "caption": ["x"]}, "got `array` at $.caption"),
        ({"image_id": 1, "caption": "x", "captions": ["x"]}, "line 1 has both captions and caption"),
        ({"image_id": 1, "captions": [float("nan")]}, "line 1 is not valid JSON"),
        ({"image_id": 1, "captions": ["\ud800"]}, "line 1 is not usable JSON ($.captions[0] holds half"),
        ({"image_id": "x\0", "captions": ["x"]}, "without null characters"),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, record: Any, sentence: str) -> None:
    path = lines_file(tmp_path, record)
    message = refusal(read_caption_jsonl, path)
    assert sentence in message and message.startswith(str(path)), message


def test_one_line_per_caption_is_refused(tmp_path: Path) -> None:
    path = lines_file(tmp_path, *[{"image_id": 1, "caption": text} for text in ("x", "y")])
    message = refusal(read_caption_jsonl, path)
    assert "line 2 has the image_id 1 of" in message and "one record with all its captions" in message
    path = lines_file(tmp_path, {"image_id": 1, "caption": "x"}, {"image_id": 1})
    assert "line 2 has the image_id 1 of" in refusal(read_caption_jsonl, path, "skip")


@pytest.mark.parametrize("reader", [read_train, read_coco_captions, read_caption_jsonl])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        *BROKEN_FILES,
        (b"[]", "Expected `object`, got `array`"),
        (b'{"annotations": []}', "missing required field `(images|image_id)`"),
        (b'{"images": {}}', "got `object` at \\$.images|missing required field `image_id`"),
        (b"null", "Expected `object`, got `null`"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, reader: Reader, content: bytes, sentence: str) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    message = refusal(reader, path)
    assert message.startswith(str(path)) and re.search(f"{sentence}|holds no images|missing required", message), message
    assert "none.json does not exist" in refusal(reader, tmp_path / "none.json")
    assert "cannot be read" in refusal(reader, tmp_path)

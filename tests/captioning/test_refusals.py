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
        ([3], "record 1 is 3, expected an object with filename, split and sentences"),
        ([karpathy_image(), {"cocoid": 4}], "record 2 has no split (it has cocoid)"),
        ([karpathy_image(split=None)], "record 1: split is missing or null"),
        ([karpathy_image(cocoid=1.5)], "record 1: cocoid is 1.5, expected an integer or a text"),
        ([karpathy_image(cocoid=10**256)], "an integer of more than 256 digits"),
        ([karpathy_image(filename=4)], "record 1: filename is 4, expected a text"),
        ([karpathy_image(cocoid=None, filename="\ud800.jpg")], "$.images[0].filename holds half of a surrogate pair"),
        ([{"split": "train", "sentences": []}], "record 1 has no filename (it has sentences, split)"),
        ([karpathy_image(sentences={"raw": "x"})], "record 1: sentences is {'raw': 'x'}, expected a list"),
        ([karpathy_image(sentences=["x"])], "record 1: sentence 1 is 'x', expected an object with raw"),
        ([karpathy_image(sentences=[{"tokens": []}])], "record 1: sentence 1 has no raw (it has tokens)"),
        ([karpathy_image(sentences=[{"raw": float("nan")}])], "record 1: caption 1 is nan, expected a text"),
        ([karpathy_image(1, "x", "\udfff")], "$.images[0].sentences[1].raw holds half of a surrogate pair"),
        ([karpathy_image(sentences=[{"raw": "x", "sentid": []}])], "record 1: sentence 1: sentid is [], expected"),
        ([karpathy_image(sentences=None)], "record 1 (image 1) has no captions; add one"),
        ([karpathy_image(), karpathy_image()], "json record 2 has the image id 1 of"),
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
        ([3], None, "image 1 is 3, expected an object with id and file_name"),
        ([{"file_name": "x"}], None, "image 1 has no id (it has file_name)"),
        ([coco_image(domain=3)], None, "image 1: domain is 3, expected a text"),
        ([coco_image(), coco_image("1")], None, "captions.json image 2 has the image id 1 of"),
        ([coco_image(), coco_image()], [annotation()], "captions.json image 2 has the image id 1 of"),
        ([coco_image()], [[]], "annotation 1 is [], expected an object with id, image_id and caption"),
        ([coco_image()], [{"id": 1, "image_id": 1}], "annotation 1 has no caption (it has id, image_id)"),
        ([coco_image()], [{"caption": "x", "image_id": 1}], "annotation 1 has no id (it has caption, image_id)"),
        ([coco_image()], [annotation(caption=None)], "annotation 1: caption is missing or null"),
        ([coco_image()], [annotation(caption="\ud83d")], "$.annotations[0].caption holds half of a surrogate pair"),
        ([coco_image()], [annotation(True)], "annotation 1: id is True, expected an integer or a text"),
        ([coco_image()], [annotation(), annotation(2, 8)], "annotation 2 (id 2) is about image 8, which is not among"),
        ([coco_image()], [annotation(), annotation()], "has a caption with the id 1 of a caption of"),
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
        (3, "line 1 is 3, expected an object with image_id and captions"),
        ({"captions": ["x"]}, "line 1 has no image_id (it has captions)"),
        ({"image_id": 1, "captions": "x"}, "line 1: captions is 'x', expected a list of texts"),
        ({"image_id": 1, "captions": ["x", 4]}, "line 1: caption 2 is 4, expected a text"),
        ({"image_id": 1, "caption": ["x"]}, "line 1: caption 1 is ['x'], expected a text"),
        ({"image_id": 1, "caption": "x", "captions": ["x"]}, "line 1 has both captions and caption"),
        ({"image_id": 1, "captions": [float("nan")]}, "line 1: caption 1 is nan, expected a text"),
        (
            {"image_id": 1, "captions": ["\ud800"]},
            "line 1 is not usable JSON ($.captions[0] holds half of a surrogate pair",
        ),
        ({"image_id": "x\0", "captions": ["x"]}, "holds a null character"),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, record: Any, sentence: str) -> None:
    path = lines_file(tmp_path, record)
    message = refusal(read_caption_jsonl, path)
    assert sentence in message and message.startswith(str(path)), message


def test_one_line_per_caption_is_refused(tmp_path: Path) -> None:
    path = lines_file(tmp_path, *[{"image_id": 1, "caption": text} for text in ("x", "y")])
    message = refusal(read_caption_jsonl, path)
    assert "line 2 has the image id 1 of" in message and "one record with all its captions" in message
    path = lines_file(tmp_path, {"image_id": 1, "caption": "x"}, {"image_id": 1})
    assert "line 2 has the image id 1 of" in refusal(read_caption_jsonl, path, "skip")


@pytest.mark.parametrize("reader", [read_train, read_coco_captions, read_caption_jsonl])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        *BROKEN_FILES,
        (b"[]", "expected an object"),
        (b'{"annotations": []}', "found an object with annotations|has no image_id"),
        (b'{"images": {}}', "expected an object with a list under 'images'|has no image_id"),
        (b"null", "expected an object"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, reader: Reader, content: bytes, sentence: str) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    message = refusal(reader, path)
    assert message.startswith(str(path)) and re.search(f"{sentence}|holds no images", message), message
    assert "none.json does not exist" in refusal(reader, tmp_path / "none.json")
    assert "cannot be read" in refusal(reader, tmp_path)

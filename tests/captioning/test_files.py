"""Captions from Karpathy's files, the COCO layout and JSONL: what is read, and how bad files are refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.captioning.samples import (
    Reader,
    annotation,
    coco_file,
    coco_image,
    json_file,
    karpathy_file,
    karpathy_image,
    lines_file,
    read_train,
)
from tests.data.reader_checks import refusal, sentences, unique_ids
from vinvl.captioning.files import CaptionRecords, read_caption_jsonl, read_coco_captions, read_karpathy

SAMPLES = Path(__file__).parents[1] / "data/samples"
KARPATHY_LINES = SAMPLES / "coco_karpathy/karpathy_test_50.jsonl"


def contents(records: CaptionRecords) -> list[Any]:
    return [
        records.image_ids.tolist(),
        list(records["file_name"]) if "file_name" in records else None,
        list(records["domain"]) if "domain" in records else None,
        [records.captions_of(index) for index in range(len(records))],
        records.caption_ids.tolist(),
    ]


def test_karpathy_sample_in_both_layouts(tmp_path: Path) -> None:
    raw = [json.loads(line) for line in KARPATHY_LINES.read_text().splitlines()]
    own = read_caption_jsonl(KARPATHY_LINES)
    assert len(own) == 50 and own.image_ids[0] == "253964" and own.caption_ids[1] == "253964#2"
    assert own.captions_of(1)[2] == "A street sign at an intersection with the names of two streets."
    assert contents(pickle.loads(pickle.dumps(own))) == contents(own)
    images = [
        karpathy_image(r["image_id"], *r["captions"], filename=r["file_name"], split=r["split"], filepath="val2014")
        for r in raw
    ]
    images.insert(0, karpathy_image(0, split="val"))
    path = karpathy_file(tmp_path, *images)
    official = read_karpathy(path, ["test"])
    assert contents(official)[:4] == contents(own)[:4] and official.caption_ids.dtype == np.int64
    assert official.caption_ids[:6].tolist() == [2539640, 2539641, 2539642, 2539643, 2539644, 3503340]
    assert official.describe(0) == f"{path} record 2 (image 253964)"
    assert official.skipped == ""


def test_coco_sample() -> None:
    path = SAMPLES / "coco_caption/captions_val2014.sample.json"
    raw = json.loads(path.read_text())
    records = read_coco_captions(path)
    assert len(records) == 100 and "domain" not in records
    assert records.captions is not None and len(records.captions) == len(raw["annotations"])
    assert records.image_ids.tolist() == [str(image["id"]) for image in raw["images"]]
    assert records.caption_ids.dtype == np.int64
    stated = {a["id"]: (str(a["image_id"]), a["caption"].strip()) for a in raw["annotations"]}
    images = records.image_ids[records.caption_image].tolist()
    assert dict(zip(records.caption_ids.tolist(), zip(images, records.captions, strict=True), strict=True)) == stated


def test_flickr_images_are_called_by_their_file(tmp_path: Path) -> None:
    image = {
        "filename": "100.b.jpg",
        "split": "test",
        "sentences": [{"raw": " Two men.\n"}, {"raw": "x", "sentid": "9"}],
    }
    records = read_karpathy(karpathy_file(tmp_path, image), ["test"])
    assert contents(records) == [["100.b"], ["100.b.jpg"], None, [["Two men.", "x"]], ["100.b#1", "9"]]


def test_karpathy_splits(tmp_path: Path) -> None:
    path = karpathy_file(
        tmp_path,
        karpathy_image(1, split="val"),
        karpathy_image(2, split="restval"),
        karpathy_image(3),
        {"split": "test"},
    )
    assert read_karpathy(path, ["train", "restval"]).image_ids.tolist() == ["2", "3"]
    assert read_karpathy(path, ("val",)).image_ids.tolist() == ["1"]
    found = "it has val, restval, train, test."
    assert f"captions.json has no split 'dev'; {found}" in refusal(read_karpathy, path, ["train", "dev"])
    assert f"captions.json has no split to read named; {found}" in refusal(read_karpathy, path, [])


def test_coco_order_domains_and_images_only(tmp_path: Path) -> None:
    images = [coco_image(5, domain="in-domain"), {"id": "b"}, coco_image(2, domain="out-domain")]
    annotations = [annotation(9, "b", "B."), annotation(3, 2, " C "), annotation(7, "5", "A."), annotation(1, 2, "D")]
    path = coco_file(tmp_path, images, annotations)
    records = read_coco_captions(path)
    captions = [["A."], ["B."], ["C", "D"]]
    assert contents(records)[:2] == [["5", "b", "2"], ["5.jpg", "", "2.jpg"]]
    assert contents(records)[2:] == [["in-domain", "unstated", "out-domain"], captions, [7, 9, 3, 1]]
    assert records.caption_image.tolist() == [0, 1, 2, 2] and records.offsets.tolist() == [0, 1, 2, 4]
    only = read_coco_captions(coco_file(tmp_path, images))
    assert only.captions is None and len(only.caption_ids) == len(only.caption_image) == 0
    assert contents(only) == [*contents(records)[:3], [[], [], []], []]


def test_jsonl_forms(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '\ufeff{"image_id": "a/b.jpg", "captions": ["One. ", "Two."], "domain": "near-domain"}\n\n'
        '{"image_id": 5, "caption": "Three.", "file_name": "5.png"}',
        encoding="utf-8",
    )
    records = read_caption_jsonl(path)
    assert contents(records)[:3] == [["a/b.jpg", "5"], ["", "5.png"], ["near-domain", "unstated"]]
    assert contents(records)[3:] == [[["One.", "Two."], ["Three."]], ["a/b.jpg#1", "a/b.jpg#2", "5#1"]]
    assert records.describe(1) == f"{path} line 3 (image 5)"
    only = read_caption_jsonl(lines_file(tmp_path, {"image_id": 1}, {"image_id": 2, "captions": None}))
    assert only.captions is None and only.image_ids.tolist() == ["1", "2"] and "file_name" not in only


def lacking_files(folder: Path) -> list[tuple[Reader, Path, str]]:
    """Per layout: images 1 (one caption, one blank), 2 (none), 3 (fine), 4 (only blank ones)."""
    captions: dict[int, list[str]] = {1: ["\t", "A cat."], 2: [], 3: ["A dog."], 4: [" ", "\n"]}
    karpathy = [karpathy_image(n, sentences=[{"raw": c} for c in captions[n]]) for n in captions]
    pairs = [(n, caption) for n in captions for caption in captions[n]]
    annotations = [annotation(k, n, caption) for k, (n, caption) in enumerate(pairs)]
    coco = {"images": [coco_image(n) for n in captions], "annotations": annotations}
    lines = [{"image_id": n} | ({"captions": captions[n]} if captions[n] else {}) for n in captions]
    return [
        (read_train, json_file(folder, {"images": karpathy}, "karpathy.json"), "record"),
        (read_coco_captions, json_file(folder, coco, "coco.json"), "image"),
        (read_caption_jsonl, lines_file(folder, *lines), "line"),
    ]


@pytest.mark.parametrize("layout", [0, 1, 2])
def test_missing_and_blank_captions(tmp_path: Path, layout: int) -> None:
    reader, path, place = lacking_files(tmp_path)[layout]
    message = refusal(reader, path)
    assert re.search(rf"{place} 1 \(image 1\), caption (0|1#1), is blank; add one, or set on_missing_captions", message)
    records = reader(path, on_missing_captions="skip")
    assert contents(records)[0] == ["1", "3"] and contents(records)[3] == [["A cat."], ["A dog."]]
    assert records.describe(1) == f"{path} {place} 3 (image 3)"
    images = f"2 images without captions (the first: {path} {place} 2 (image 2))"
    assert records.skipped.startswith(f"{images} and 3 blank captions (the first: {path} {place} 1 (image 1), caption ")
    assert records.select(np.array([True, False])).skipped == records.skipped


def test_images_without_captions_are_named(tmp_path: Path) -> None:
    path = coco_file(tmp_path, [coco_image(3), coco_image(2)], [annotation(1, 3)])
    assert "image 2 (image 2) has no captions; add one, or set" in refusal(read_coco_captions, path)
    told = f"1 image without captions (the first: {path} image 2 (image 2))"
    assert read_coco_captions(path, on_missing_captions="skip").skipped == told


def test_a_split_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"image_id": 1, "captions": []}, {"image_id": 2})
    assert "own.jsonl line 1 and all others have no captions" in refusal(read_caption_jsonl, path, "skip")


captioned = st.lists(sentences, min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(unique_ids, st.data(), st.booleans())
def test_round_trip_and_selection(
    tmp_path_factory: pytest.TempPathFactory, image_ids: list[int | str], data: st.DataObject, ascii_only: bool
) -> None:
    folder = tmp_path_factory.mktemp("captions")
    count = len(image_ids)
    captions = data.draw(st.lists(captioned, min_size=count, max_size=count))
    numbered = [(image, text) for image, texts in zip(image_ids, captions, strict=True) for text in texts]
    order = data.draw(st.permutations(range(len(numbered))))
    expected = [[text.strip() for text in texts] for texts in captions]

    def read(reader: Reader, *contents: Any) -> CaptionRecords:
        text = "\n".join(json.dumps(content, ensure_ascii=ascii_only) for content in contents)
        (folder / "captions.json").write_text(text, encoding="utf-8", newline="")
        return reader(folder / "captions.json")

    annotations = [{"id": n, "image_id": numbered[n][0], "caption": numbered[n][1]} for n in order]
    coco = read(read_coco_captions, {"images": [{"id": image} for image in image_ids], "annotations": annotations})
    pairs = list(zip(image_ids, captions, strict=True))
    own = read(read_caption_jsonl, *({"image_id": image, "captions": texts} for image, texts in pairs))
    assert own.image_ids.tolist() == coco.image_ids.tolist() == [str(image) for image in image_ids]
    assert contents(own)[3] == expected
    assert [sorted(texts) for texts in contents(coco)[3]] == [sorted(texts) for texts in expected]
    assert coco.captions is not None
    for n, (image, text) in zip(coco.caption_ids, zip(coco.caption_image, coco.captions, strict=True), strict=True):
        assert (coco.image_ids[image], text) == (str(numbered[n][0]), numbered[n][1].strip())

    keep = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    kept, rest = own.select(keep), own.select(~keep)
    assert contents(kept)[3] == [texts for texts, k in zip(expected, keep, strict=True) if k]
    assert sorted([*kept.image_ids, *rest.image_ids]) == sorted(own.image_ids)
    owners = [
        (kept.image_ids[image], caption_id)
        for image, caption_id in zip(kept.caption_image, kept.caption_ids, strict=True)
    ]
    assert all(caption_id.startswith(f"{image_id}#") for image_id, caption_id in owners)

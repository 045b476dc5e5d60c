"""The TSV of all that is said of regions, beside a store: what is in it, and that no way of stopping loses a row."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.detector.samples import small_detector
from tests.extraction.samples import LABELS, USED, run_extract
from tests.picture_samples import gradient, save
from vinvl.detector import Detector
from vinvl.regions import RegionStore

SIZES = {"a": (60, 50), "b": (100, 80), "c": (40, 70)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        save(tmp_path / "pictures" / f"{name}.png", gradient(*size))
    return tmp_path


def extracted(folder: Path, *given: str, name: str = "f") -> tuple[RegionStore, dict[str, Any]]:
    """The store and the rows of the TSV, in its order, read by its line index."""
    place = f"predictions={folder / f'{name}.tsv'}", f"output={folder / f'{name}.h5'}"
    run_extract(folder, f"images={folder / 'pictures'}", *place, *given)
    content = (folder / f"{name}.tsv").read_bytes()
    starts = [int(line) for line in (folder / f"{name}.lineidx").read_text().split()]
    rows = [content[start:].split(b"\n", 1)[0].split(b"\t") for start in starts]
    assert content.count(b"\n") == len(rows) and not (folder / f"{name}.tsv.partial").exists()
    return RegionStore(folder / f"{name}.h5"), {key.decode(): json.loads(value) for key, value in rows}


def floats(objects: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(one[name]), dtype="<f4") for one in objects])


def test_a_row_is_all_that_is_said_of_the_regions_of_an_image(folder: Path) -> None:
    store, rows = extracted(folder)
    assert list(rows) == list(store.image_ids) == list(SIZES) and store.verify() == []
    detector = small_detector()
    detector.config = USED
    for name, size in SIZES.items():
        (found,), row = detector.detect([gradient(*size)], every_class=True), rows[name]
        objects, regions = row["objects"], store[name]
        assert (row["image_w"], row["image_h"]) == size and len(objects) == len(regions) == len(found) > 0
        assert [one["bbox_id"] for one in objects] == list(range(len(objects)))
        assert [one["class"] for one in objects] == [f"class {label}" for label in found.labels.tolist()]
        assert [one["rect"] for one in objects] == regions.boxes.tolist()
        np.testing.assert_array_equal([one["conf"] for one in objects], regions.class_scores)
        assert found.class_probabilities is not None and found.class_boxes is not None
        arrays = {"feature": found.features, "scores_all": found.class_probabilities, "boxes_all": found.class_boxes}
        for field, expected in arrays.items():
            np.testing.assert_allclose(floats(objects, field), expected.flatten(1).numpy(), rtol=1e-3, atol=1e-2)
        named = [{LABELS["attribute_to_idx"][word] for word in one["attributes"]} for one in objects]
        assert named == [set(row[row > 0].tolist()) for row in regions.attributes]
        assert [len(one["attr_scores"]) for one in objects] == list(map(len, named))
    # It is a file of boxes, too.
    again, _ = extracted(folder, f"given_boxes={folder / 'f.tsv'}", "prediction_fields=[boxes_all,rect]", name="again")
    for name, row in rows.items():
        np.testing.assert_allclose(again[name].boxes, [one["rect"] for one in row["objects"]], atol=2.5)


def test_fields_are_chosen(folder: Path) -> None:
    store, rows = extracted(folder, "prediction_fields=[rect,conf]", "labels=none")
    assert set(rows["a"]["objects"][0]) == {"rect", "conf", "bbox_id"}
    assert store.provenance["predictions"] == ["rect", "conf"]
    for fields, words in (("[rect,colour]", "holds 'colour': give some of rect, class"), ("[class]", "labels=FILE")):
        with pytest.raises(SystemExit, match=words):
            extracted(folder, f"prediction_fields={fields}", "labels=none", name="other")
    given = extracted(folder, f"given_boxes={folder / 'f.tsv'}", "prediction_fields=[rect,boxes_all]", name="given")[1]
    assert floats(given["a"]["objects"], "boxes_all").shape[1] == 4


@pytest.mark.parametrize("at", [2, 3])
def test_what_was_stopped_goes_on_to_the_same_rows(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole = extracted(folder, name="whole")[1]
    detect, calls = Detector.detect_pixels, []

    def killed(self: Detector, *given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise torch.AcceleratorError("the power is gone")
        return detect(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "detect_pixels", killed)
        with pytest.raises(torch.AcceleratorError):
            extracted(folder, "shard_seconds=0")
    for process in (0, 7):  # the other one is not there when it goes on
        with (folder / "f.tsv.partial" / f"{process:05d}.tsv").open("ab") as file:
            file.write(b'c\t{"image_w": 4')  # a row that was cut off
    assert not (folder / "f.tsv").exists()
    with pytest.raises(SystemExit, match=r"predictions was \[.*and is \[\"rect\"\]"):
        extracted(folder, "prediction_fields=[rect]")
    assert extracted(folder)[1] == whole
    assert (folder / "f.tsv").read_bytes() == (folder / "whole.tsv").read_bytes()


def test_rows_are_added_for_more_pictures_and_a_lost_file_is_told(folder: Path) -> None:
    before = extracted(folder)[1]
    (folder / "keep.tsv").write_bytes((folder / "f.tsv").read_bytes())
    save(folder / "pictures" / "aa.png", gradient(50, 50))
    assert extracted(folder)[1].items() > before.items()
    assert list(extracted(folder)[1]) == ["a", "aa", "b", "c"]
    (folder / "f.tsv").unlink()
    with pytest.raises(SystemExit, match=r"f.tsv lacks image 'a' of .*: give overwrite=true"):
        extracted(folder)
    (folder / "new.tsv").write_text("mine")
    with pytest.raises(SystemExit, match=r"predictions=.*new.tsv exists: give another name, or overwrite=true"):
        extracted(folder, name="new")
    assert (folder / "new.tsv").read_text() == "mine" and not (folder / "new.h5").exists()
    assert len(extracted(folder, "overwrite=true")[1]) == 4


def test_a_store_that_was_finished_without_its_rows_gets_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two."""
    with monkeypatch.context() as patch:
        patch.setattr("vinvl.extraction.predictions.SavedPredictions.finish", lambda *_: exec("raise KeyError"))
        with pytest.raises(KeyError):
            extracted(folder)
    assert (folder / "f.h5").is_file() and not (folder / "f.tsv").exists()
    save(folder / "pictures" / "aa.png", gradient(50, 50))
    assert list(extracted(folder)[1]) == ["a", "aa", "b", "c"]

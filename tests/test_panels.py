"""Some examples of an evaluation as a table and as a sheet of pictures, also of strange texts and missing pictures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vinvl.examples import Outcome
from vinvl.panels import CELL, ExamplePanels, PanelFrame, Shown, markdown, places_in, sheet, shown_outcomes
from vinvl.regions import RegionStore


@pytest.fixture(scope="module")
def store(demo_data: Path) -> RegionStore:
    return RegionStore(demo_data / "demo/val.h5")


def outcome(image_id: str, text: str = "is it?") -> Outcome:
    return Outcome("1", image_id, 100.0, text=text, answer="yes", truth=("yes", "yes", "no"))


def test_the_first_examples_of_different_images(store: RegionStore) -> None:
    first, second, third = store.image_ids[:3].tolist()
    given = [
        outcome(first),
        outcome(first, "again?"),
        outcome(f"{second} {third}"),
        outcome("elsewhere"),
        outcome(third),
    ]
    picture = Image.new("RGB", (10, 10), "red")
    shown = shown_outcomes(given, 3, store, lambda _, place: picture if place == 0 else None)
    assert [one.text for one in shown] == ["is it?"] * 3 and shown[0].truth == "yes | no"
    assert [len(one.frames) for one in shown] == [1, 2, 0]
    regions = store[first]
    frame = shown[0].frames[0]
    assert (frame.width, frame.height) == (regions.width, regions.height) and frame.picture is picture
    np.testing.assert_array_equal(frame.boxes, regions.boxes)
    assert frame.names == [store.label_map.classes[one] for one in regions.classes]
    assert list(places_in(store, f"{second} {third}")) == [1, 2]


def test_a_sheet_has_boxes_where_they_are() -> None:
    """A box of half the picture, on an empty frame and on a picture, beside one outside of it all."""
    boxes = np.array([[0.0, 0.0, 50.0, 60.0], [-500.0, 90.0, 1e9, 2e9]])
    frames = [
        PanelFrame(100, 60, boxes, ["cat", "\x1b[31m猫"], picture) for picture in (None, Image.new("L", (10, 6), 255))
    ]
    whole = sheet(
        [Shown("x" * 500, "a", "", 0.0, (frames[0],)), Shown("", "", "", 0.0, (frames[1],)), Shown("", "b", "b", 1)]
    )
    assert whole.width == 3 * CELL[0]
    pixels = np.asarray(whole).astype(int)
    assert pixels[100, 10].tolist() == [0xE8] * 3 and pixels[100, CELL[0] + 10].tolist() == [255] * 3
    for left in (0, CELL[0]):
        edge = pixels[100, left + 158]  # the right side of the first box
        assert edge[0] > edge[1] + 50


def test_a_table_quotes_what_markdown_or_html_would_read() -> None:
    told = markdown([Shown("a|b\n<script>", "*x*", "[y](http://z)", 33.3)])
    lines = told.split("\n")
    assert len(lines) == 3 and lines[0] == "| asked | answer | truth | score |"
    assert lines[2].count("|") == 5 and not set("<>*[]()") & set(lines[2])


class Tables:
    """A logger with the two methods of Lightning's for Weights & Biases that are called."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def log_table(self, key: str, columns: list[str], data: list[tuple[str, ...]]) -> None:
        self.told[key] = [dict(zip(columns, row, strict=True)) for row in data]

    def log_image(self, key: str, images: list[Image.Image]) -> None:
        self.told[key] = images


def test_weights_and_biases_get_table_and_sheet(store: RegionStore) -> None:
    first = str(store.image_ids[0])
    logger = Tables()
    trainer = SimpleNamespace(
        loggers=[logger], sanity_checking=False, state=SimpleNamespace(fn="fit"), is_global_zero=True
    )
    task = SimpleNamespace(
        shown_examples=lambda count, picture_of: shown_outcomes([outcome(first)] * 2, count, store, picture_of)
    )
    ExamplePanels().on_validation_end(trainer, task)  # type: ignore[arg-type]
    assert logger.told["val/examples"] == [{"asked": "is it?", "answer": "yes", "truth": "yes | no", "score": "100"}]
    assert logger.told["val/examples/pictures"][0].width == CELL[0]


def test_pictures_are_found_and_broken_ones_are_not_shown(store: RegionStore, tmp_path: Path) -> None:
    first, second = store.image_ids[:2].tolist()
    Image.new("RGB", (30, 20), "blue").save(tmp_path / f"{first}.png")
    (tmp_path / f"{second}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    panels = ExamplePanels(images=str(tmp_path))
    picture = panels.picture_of(store, 0)
    assert picture is not None and picture.size == (30, 20)
    assert panels.picture_of(store, 1) is None and panels.picture_of(store, 2) is None
    assert ExamplePanels().picture_of(store, 0) is None

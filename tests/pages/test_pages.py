"""The pages: whole in one file, and nothing in a caption or a name can break out of its place."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.door_in_process import refused_in_process, run_in_process
from tests.picture_samples import gradient, save, with_orientation
from tests.regions.samples import LABELS, write
from vinvl.pages.pages import CaptionedPicture, report_regions, summarise, write_page
from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter
from vinvl.run.errors import UserError


class Reader(HTMLParser):
    """Collects tags, image sources and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_pictures_captions_and_references(tmp_path: Path) -> None:
    picture = tmp_path / "one.png"
    Image.new("RGB", (4, 3), "red").save(picture)
    hostile = '<script>alert("a")</script> & "b"'
    captioned = [CaptionedPicture(picture, hostile, ["a red thing", "<b>"])]
    write_page(tmp_path / "page.html", "captions.html", title="T & <i>", pictures=captioned)
    picture.unlink()  # the page needs nothing beside it
    reader = Reader()
    reader.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in reader.tags and "b" not in reader.tags and "i" not in reader.tags
    assert hostile in reader.text and "a red thing" in reader.text and "<b>" in reader.text
    (source,) = reader.sources
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", "captions.html")


def regions(image_id: str, count: int = 3, size: tuple[int, int] = (40, 30), score: float = 0.5) -> Regions:
    return Regions(
        image_id,
        np.random.default_rng(count).random((count, 8)).astype(np.float16),
        np.tile(np.array([2, 3, 20, 25], dtype=np.float32), (count, 1)) + np.arange(count, dtype=np.float32)[:, None],
        np.full(count, 1, dtype=np.int32),
        np.full(count, score, dtype=np.float32),
        np.full((count, 1), 1, dtype=np.int32),
        np.full((count, 1), 0.9, dtype=np.float32),
        *size,
    )


def page(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "r.html").read_text(encoding="utf-8"))
    return reader


def store(folder: Path, *images: Regions, **layout: object) -> Path:
    return write(folder / "f.h5", list(images), feature_dim=8, attributes=1, **layout)


def test_pictures_come_with_their_regions(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.png")
    path = store(tmp_path, regions("a", 3), regions("b", 2))
    assert report_regions(path, tmp_path / "r.html", images=str(tmp_path / "p"), count=10)[0] == 1
    reader = page(tmp_path)
    assert reader.tags.count("rect") == 3 and len(reader.sources) == 1
    assert reader.sources[0].startswith("data:image/jpeg;base64,")
    assert "40 × 30, 3 regions" in reader.text and "cat" in reader.text and "red" in reader.text


def test_regions_without_classes_have_numbers(tmp_path: Path) -> None:
    bare, numbered = regions("a", 3), regions("b", 1)
    with RegionStoreWriter(tmp_path / "f.h5", feature_dim=8) as writer:
        writer.add(Regions("a", bare.features, bare.boxes, width=40, height=30))
        writer.add(Regions("b", numbered.features, numbered.boxes, numbered.classes, width=40, height=30))
    report_regions(tmp_path / "f.h5", tmp_path / "r.html")
    text = page(tmp_path).text
    assert "#0#1#2" in "".join(text.split()) and "number 1" in text and "number 0" not in text
    assert (tmp_path / "r.html").read_text().count('<td class="score"></td>') == 4  # none is stored


def test_without_pictures_boxes_are_drawn_on_grey(tmp_path: Path) -> None:
    path = store(tmp_path, *(regions(f"{i}", i) for i in range(1, 6)))
    assert report_regions(path, tmp_path / "r.html", count=3) == (3, "")
    assert report_regions(path, tmp_path / "r.html", ids=["2", "5"]) == (2, "")
    assert page(tmp_path).tags.count("rect") == 7


def test_the_sample_is_the_same_for_a_seed(tmp_path: Path) -> None:
    path = store(tmp_path, *(regions(f"{i}", 1) for i in range(40)))
    texts = []
    for seed in (1, 1, 2):
        report_regions(path, tmp_path / "r.html", count=5, seed=seed)
        texts.append((tmp_path / "r.html").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_names_cannot_break_out_of_their_place(tmp_path: Path) -> None:
    hostile = LabelMap(("__background__", "<script>alert(1)</script>"), ("none", '"><b>'))
    with RegionStoreWriter(
        tmp_path / "f.h5", feature_dim=8, detector="<i>d</i>", label_map=hostile, num_attributes=1,
        provenance={"weights": "<u>"},
    ) as writer:  # fmt: skip
        writer.add(regions('"><b>id'))
    report_regions(tmp_path / "f.h5", tmp_path / "r.html")
    reader = page(tmp_path)
    # Of the page's own there is one script, and the scores of attributes are in italics.
    assert reader.tags.count("script") == 1 and "u" not in reader.tags
    assert reader.tags.count("b") == 1 and reader.tags.count("i") == 3
    assert "<script>alert(1)</script>" in reader.text and "<i>d</i>" in reader.text


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    with_orientation(tmp_path / "p" / "turned.jpg", 6)
    save(tmp_path / "p" / "other.png", gradient(80, 60))
    (tmp_path / "p" / "empty.png").touch()
    given = [regions("turned", size=(30, 40)), regions("other"), regions("empty"), regions("gone")]
    path = store(tmp_path, *given, provenance={"exif_orientation": "ignore"})
    ids = [one.image_id for one in given]
    report_regions(path, tmp_path / "r.html", images=str(tmp_path / "p"), ids=ids)
    text = page(tmp_path).text
    assert "it was turned on the way" in text and "it is another picture" in text
    assert "is empty (0 bytes)" in text and "its picture is not among the images" in text


@pytest.mark.parametrize(
    ("image_id", "picture", "says"),
    [
        ("42", "x/COCO_0042.jpg", {"rule": "stem", "pattern": r"0*(\d+)$"}),
        ("0042", "x/COCO_0042.jpg", {"rule": "stem", "pattern": r"_(\d+)$"}),
        ("300001", "x/000000300001.jpg", {"rule": "of another version"}),
        ("x/a", "x/a.jpg", None),
        ("x/a.jpg", "x/a.jpg", None),
    ],
)
def test_orientation_and_ids_follow_what_the_store_says_or_are_found(
    image_id: str, picture: str, says: object, tmp_path: Path
) -> None:
    with_orientation(tmp_path / "p" / picture, 6)
    save(tmp_path / "p" / "y" / "a.png")
    made = {"exif_orientation": "apply"} | ({} if says is None else {"image_id": says})
    path = store(tmp_path, regions(image_id, size=(30, 40)), provenance=made)
    assert report_regions(path, tmp_path / "r.html", images=str(tmp_path / "p"))[0] == 1
    assert "it was turned" not in page(tmp_path).text


@pytest.mark.parametrize("size", [(30, 40), (40, 30)])
def test_pictures_of_a_store_that_says_nothing_are_turned_where_that_fits(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    with_orientation(tmp_path / "p" / "a.jpg", 6)
    path = store(tmp_path, regions("a", size=size), provenance={"exif_orientation": "of old"})
    report_regions(path, tmp_path / "r.html", images=str(tmp_path / "p"))
    assert "it was turned" not in page(tmp_path).text and "it is another" not in page(tmp_path).text
    report_regions(path, tmp_path / "r.html", images=str(tmp_path / "p"), max_pixels=1000)
    assert "and max_pixels is 1,000" in page(tmp_path).text


alike = regions("a")
alike.features[:] = 1


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([regions("a", 10, score=0.1)] * 4, "most images have just the least number of boxes"),
        ([regions("a", 0)] * 4, "4 images have no region at all"),
        ([], "the store has no images"),
        ([alike] * 4, "all regions look the same to a model"),
    ],
)
def test_odd_stores_are_warned_of(tmp_path: Path, images: list[Regions], word: str) -> None:
    numbered = [Regions(f"{i}", *(list(vars(one).values())[1:])) for i, one in enumerate(images)]
    report_regions(store(tmp_path, *numbered), tmp_path / "r.html")
    assert word in page(tmp_path).text


def test_a_sound_store_has_no_warning(tmp_path: Path) -> None:
    sound = [regions(f"{i}", 3 + i) for i in range(6)]
    for number, one in enumerate(sound):
        rng = np.random.default_rng(number)
        one.features[:] = np.maximum(rng.standard_normal(one.features.shape), 0)
        one.classes[:] = rng.integers(1, 3, len(one))
    for one in sound:
        one.classes[:2] = (1, 2)
    summary = summarise(RegionStore(store(tmp_path, *sound)))
    assert [sign.warning for sign in summary.signs if sign.warning and "one tag" not in sign.warning] == []
    assert sum(summary.region_counts.values()) == 6 and {name for name, _ in summary.tags} == set(LABELS.classes[1:])


def test_pictures_of_another_store_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "p" / "x.png")
    with pytest.raises(UserError, match=r"whose ids are like 'a'; the first picture is .*x\.png: pass id\.rule"):
        report_regions(store(tmp_path, regions("a")), tmp_path / "r.html", images=str(tmp_path / "p"))
    assert not (tmp_path / "r.html").exists()


def test_the_door(tmp_path: Path) -> None:
    store(tmp_path, regions("a"))
    save(tmp_path / "p" / "a.png")
    place = f"store={tmp_path / 'f.h5'}"
    printed = run_in_process("report", tmp_path, tmp_path / "run", place, f"images={tmp_path}/p")
    assert "f.html: 1 pictures" in printed and "1 of 1 images of " in printed and "by id.rule=stem" in printed
    assert "store=none.h5 does not exist" in refused_in_process("report", tmp_path, tmp_path / "run", "store=none.h5")
    assert "count=0 must be" in refused_in_process("report", tmp_path, tmp_path / "run", place, "count=0")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "run") == ["f.h5", "f.html", "p"]


def test_of_names_at_one_place_the_best_is_shown_and_the_others_when_they_are_pointed_at(tmp_path: Path) -> None:
    three, apart = regions("a", 3), regions("b", 2, (200, 150))
    three.class_scores[:] = (0.1, 0.9, 0.5)
    apart.boxes[1] += 100
    report_regions(store(tmp_path, three, apart), tmp_path / "r.html")
    names = re.findall(r'<span class="name( covered)?" data-region="(\d)"', (tmp_path / "r.html").read_text())
    assert names == [(" covered", "0"), ("", "1"), (" covered", "2"), ("", "0"), ("", "1")]

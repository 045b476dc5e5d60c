"""Open Images' CSV files and pictures, made small to the published layout."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.reader_checks import refusal
from tests.picture_samples import gradient, save, with_orientation
from vinvl.detector import open_images
from vinvl.detector.annotations import AnnotatedPicture, write_annotations
from vinvl.detector.instances import InstanceOptions
from vinvl.detector.open_images import read_open_images
from vinvl.pictures import ReadingOptions, read_picture
from vinvl.pictures.reading import TURNS, turned_shares
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
ROWS = [
    "000a,xclick,/m/0bt9lr,1,0.1,0.5,0.25,1.000000,0,1,0,0,0",
    "000a,xclick,/m/01yrx,1,0.000000,0.999375,0.0,0.5,-1,-1,1,-1,-1",
    "000b,activemil,/m/0bt9lr,1,0.5,0.75,0.5,0.75,0,0,-1,0,0",
    "000d,xclick,/m/0bt9lr,1,0.2,0.4,0.2,0.4,0,0,0,0,0",
    "000d,xclick,/m/0bt9lr,1,0.3,0.5,0.3,0.5,0,0,0,0,0",
    "000d,xclick,/m/01yrx,1,0.4,0.6,0.4,0.6,0,0,0,0,0",
]
IDS = [
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,Rotation",
    '000a,train,https://a/b.jpg,https://a,https://l,https://p,"A, B","Two\nlines, of a ""title""",99,0.0',
    "000b,train,https://a/b.jpg,https://a,https://l,https://p,B,,99,",
    "000c,train,https://a/b.jpg,https://a,https://l,https://p,B,nothing,99,270.0",
    "000d,train,https://a/b.jpg,https://a,https://l,https://p,B,x,99,90.0",
]
SIZES = {
    "train_0/000a.jpg": (40, 30),
    "train_0/000b.jpg": (64, 32),
    "000c.jpg": (20, 20),
    "train_1/000d.jpg": (100, 50),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "class-descriptions-boxable.csv").write_text(
        '/m/0bt9lr,Dog\n/m/01yrx,"Cat, of any kind"\n/m/0x,Unused\n'
    )
    lines(tmp_path, ROWS)
    (tmp_path / "train-images-boxable-with-rotation.csv").write_text("\n".join(IDS) + "\n")
    for name, size in SIZES.items():
        save(tmp_path / "pictures" / name, gradient(*size))
    return tmp_path


def lines(folder: Path, rows: list[str], header: str = HEADER, name: str = "train-annotations-bbox.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


def read(folder: Path, pictures: str = "pictures", **options: Any) -> tuple[LabelMap, list[AnnotatedPicture]]:
    labels, found = read_open_images(folder, folder / pictures, InstanceOptions(**options))
    return labels, list(found)


def refused(folder: Path, **options: Any) -> str:
    return refusal(lambda: read(folder, **options))


def test_pictures_with_their_boxes_then_those_without(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, found = read(folder)
    assert labels == LabelMap(("__background__", "Dog", "Cat, of any kind", "Unused"), ())
    assert [(one.image_id, one.file_name) for one in found] == [
        ("000a", "train_0/000a.jpg"),
        ("000b", "train_0/000b.jpg"),
        ("000d", "train_1/000d.jpg"),
        ("000c", "000c.jpg"),
    ]
    assert [(one.width, one.height) for one in found] == [SIZES[one.file_name] for one in found]
    np.testing.assert_allclose(found[0].boxes, [[4, 7.5, 20, 30], [0, 0, 39.975, 15]], rtol=1e-6)
    assert [one.labels.tolist() for one in found] == [[1, 2], [1], [1, 1, 2], []]
    assert [one.crowd.tolist() for one in found] == [[False, True], [False], [False] * 3, []]
    assert write_annotations(folder / "set.arrow", found, labels, "a test") == 4
    assert "lists 1 pictures, of 4, that have no boxes in train-annotations-bbox.csv" in capsys.readouterr().out


@pytest.mark.parametrize("block", [120, 200, 400])
def test_blocks_may_end_within_a_picture(folder: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    whole = read(folder)[1]
    monkeypatch.setattr("vinvl.data.open_images.BLOCK_BYTES", block)
    monkeypatch.setattr(open_images, "BLOCK", 1)
    for one, other in zip(whole, read(folder)[1], strict=True):
        assert one.image_id == other.image_id and one.boxes.tolist() == other.boxes.tolist()
        assert one.labels.tolist() == other.labels.tolist()
    lines(folder, [*ROWS[:5], ROWS[5].replace("/m/01yrx", "/m/no")])
    assert "line 7: LabelName '/m/no'" in refused(folder)


def test_newer_files_have_other_names_and_more_columns(folder: Path) -> None:
    plain = read(folder)[1]
    (folder / "train-annotations-bbox.csv").unlink()
    more = [f"{row},0.1,0.2" for row in ROWS]
    path = lines(folder, more, HEADER + ",XClick1X,XClick2X", "oidv6-train-annotations-bbox.csv")
    assert [one.boxes.tolist() for one in read(folder)[1]] == [one.boxes.tolist() for one in plain]
    lines(folder, ROWS, name="validation-annotations-bbox.csv")
    assert "holds the boxes of several splits" in refused(folder)
    assert len(list(read_open_images(path, folder / "pictures", InstanceOptions())[1])) == 4


def test_without_a_list_of_ids_there_are_the_pictures_with_boxes(folder: Path) -> None:
    (folder / "train-images-boxable-with-rotation.csv").unlink()
    assert [one.image_id for one in read(folder)[1]] == ["000a", "000b", "000d"]
    lines(folder, [*ROWS, ROWS[0]])
    assert "the rows of the picture '000a' do not follow each other" in refused(folder)


def test_pictures_in_an_archive(folder: Path) -> None:
    plain = read(folder)[1]
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for name in SIZES:
            archive.write(folder / "pictures" / name, name)
    for one, other in zip(plain, read(folder, "train.zip")[1], strict=True):
        assert one.file_name == other.file_name and one.boxes.tolist() == other.boxes.tolist()


@pytest.mark.parametrize("turn", [1, *TURNS])
def test_boxes_are_turned_as_their_picture_is(folder: Path, turn: int) -> None:
    shares = np.array([[0.1, 0.2, 0.3, 0.5]])
    path = with_orientation(folder / "pictures" / "train_0" / "000b.jpg", turn)
    lines(folder, ["000b,x,/m/0bt9lr,1,0.1,0.3,0.2,0.5,0,0,0,0,0"])
    turned = next(one for one in read(folder)[1] if one.image_id == "000b")
    shown = read_picture(path, ReadingOptions())
    assert (turned.width, turned.height) == shown.size
    # What is in the box is the same, if the picture is looked at as it is stored.
    stored = np.zeros((30, 40), bool)
    stored[6:15, 4:12] = True
    seen = Image.fromarray(stored) if turn == 1 else Image.fromarray(stored).transpose(TURNS[turn])
    rows, columns = np.nonzero(np.asarray(seen))
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(turned.boxes[0], expected, atol=1e-4)
    ignoring = read(folder, reading=ReadingOptions(exif_orientation="ignore"))[1]
    np.testing.assert_allclose(next(one for one in ignoring if one.image_id == "000b").boxes[0], [4, 6, 12, 15], 1e-5)
    assert turned_shares(shares, 1).tolist() == shares.tolist()


def test_missing_pictures_are_refused_or_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pictures" / "train_0" / "000b.jpg").write_bytes(b"")
    (folder / "pictures" / "000c.jpg").unlink()
    assert "000b.jpg is empty (0 bytes): get the file again. Or pass data.on_missing=skip" in refused(folder)
    assert [one.image_id for one in read(folder, on_missing="skip")[1]] == ["000a", "000d"]
    assert "data.on_missing=skip: 2 pictures are left out; of the first: " in capsys.readouterr().out
    for name in SIZES:
        (folder / "pictures" / name).unlink(missing_ok=True)
    assert "has none of 4 pictures" in refused(folder, on_missing="skip")
    assert "has no picture '000a'" in refused(folder)


def change(row: int, old: str, new: str) -> Callable[[], list[str]]:
    """The rows with one of them changed."""
    return lambda: [one.replace(old, new) if index == row else one for index, one in enumerate(ROWS)]


@pytest.mark.parametrize(
    "rows, told",
    [
        (change(1, "/m/01yrx", "/m/zzz"), "line 3: LabelName '/m/zzz' is in no line of class-descriptions"),
        (change(2, "0.75,0.5", "640,0.5"), "line 4: XMax 640.0 is no share of the picture"),
        (change(2, "0.5,0.75,0.5,", "-0.2,0.75,0.5,"), "line 4: XMin -0.2 is no share"),
        (change(2, "0.75,0.5", "nan,0.5"), "line 4: XMax missing or null is no share"),
        (change(2, "0.75,0.5", "x,0.5"), "line 4: XMax is 'x', expected a number from 0 to 1"),
        (
            change(3, "0.2,0.4,0.2,0.4", "0.4,0.4,0.2,0.4"),
            "line 5: XMin 0.4 is not less than its Max; pass data.bad_boxes",
        ),
        (change(3, "0.2,0.4,0.2,0.4", "0.2,0.4,0.5,0.4"), "line 5: YMin 0.5 is not less than its Max"),
        (change(0, ",0,1,0,0,0", ",0,1,yes,0,0"), "line 2: IsGroupOf 'yes' is none of 1, 0 and -1"),
        (change(4, "0.3,0.5,0.3,0.5,0,0,0,0,0", "0.3"), "line 6 has 5 columns, not 13: it is cut off"),
        (change(3, "000d", "000a"), "the rows of the picture '000a' do not follow each other"),
        (change(2, "000b", "000x"), "has boxes of the picture '000x', which .*rotation.csv does not list"),
        (change(2, "000b", "../b"), "line 4: ImageID '../b' holds a slash"),
        (change(2, "000b", ""), "line 4: ImageID is '', expected"),
        (list, "holds no boxes"),
    ],
)
def test_wrong_rows_are_named_with_their_line(folder: Path, rows: Callable[[], list[str]], told: str) -> None:
    lines(folder, rows())
    with pytest.raises(UserError, match=told):
        read(folder)


def test_boxes_without_area_are_left_out_if_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(folder, change(3, "0.2,0.4,0.2,0.4", "0.4,0.4,0.2,0.4")())
    assert read(folder, bad_boxes="clip")[1][2].labels.tolist() == [1, 2]
    assert "1 of all have no area within it and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("class-descriptions-boxable.csv", b"/m/0bt9lr,Dog\n/m/01yrx\n", "boxable.csv line 2 is '/m/01yrx': expected"),
        ("class-descriptions-boxable.csv", b"/m/a,Dog\n/m/b,Dog\n", "line 2: '/m/b,Dog' is there twice"),
        ("class-descriptions-boxable.csv", b"", "names no classes"),
        ("class-descriptions-boxable.csv", b"\xff\xfe", "is not UTF-8 text"),
        ("train-annotations-bbox.csv", b"ImageID,LabelName\na,b\n", "line 1 has no column IsGroupOf"),
        ("train-annotations-bbox.csv", b"", "line 1 has no column ImageID"),
        ("train-annotations-bbox.csv", HEADER.encode() + b"\n\xff" * 3, "UTF-8|columns"),
        ("train-images-boxable-with-rotation.csv", b"id\n000a\n", "rotation.csv line 1 has no column ImageID"),
    ],
)
def test_wrong_files_are_refused(folder: Path, name: str, content: bytes, told: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        read(folder)


def test_what_is_not_there_is_said(folder: Path) -> None:
    assert "The pictures" in refusal(lambda: read(folder, "gone"))
    assert "holds no file *-annotations-bbox.csv" in refusal(lambda: read(folder / "pictures"))
    (folder / "class-descriptions-boxable.csv").unlink()
    assert "class-descriptions-boxable.csv does not exist" in refused(folder)

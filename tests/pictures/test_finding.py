"""Folders, list files and single pictures, and the ids that follow from their places."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vinvl.data.table import Column
from vinvl.pictures import PictureNames, Pictures, find_pictures, finding, told_of
from vinvl.run.errors import UserError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ids(source: Path, rule: str = "stem", pattern: str | None = None) -> list[str]:
    return list(find_pictures(source, PictureNames(rule, pattern)).ids)


def test_nested_folders_in_the_order_of_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/1.png", "a/9.webp", "c.jpeg", "notes.txt", ".hidden/3.jpg", ".4.jpg", "b/x.h5")
    found = find_pictures(tmp_path, PictureNames())
    assert list(found.ids) == ["c", "9", "1", "2"]
    assert list(found.paths) == [str(tmp_path / name) for name in ("c.jpeg", "a/9.webp", "b/1.png", "b/2.JPG")]
    assert ids(tmp_path, "path") == ["c", "a/9", "b/1", "b/2"]


def test_files_of_one_stem_are_told_apart_by_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.jpg", "b/a.jpg")
    assert ids(tmp_path, "file") == ["a.jpg", "a.png", "b/a.jpg"]
    with pytest.raises(UserError, match=r"id\.rule=file"):
        ids(tmp_path, "path")
    (tmp_path / "list.txt").write_text("a.png\na.png\n")
    with pytest.raises(UserError, match="one line a file, or with ids of your own"):
        ids(tmp_path / "list.txt", "file")
    with pytest.raises(UserError, match=r"another id\.pattern"):
        ids(tmp_path, "file", r"(\w)")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.jpg")
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(tmp_path / "real", root / "link")
    os.symlink(root, root / "circle")
    assert ids(root) == ["1"]


def test_coco_ids_by_a_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "val2014/COCO_val2014_000000262148.jpg", "val2014/COCO_val2014_000000000042.jpg")
    assert ids(tmp_path, pattern=r"0*(\d+)$") == ["42", "262148"]


def test_a_list_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"a/1.jpg\n\n{tmp_path}/b/2.jpg\r\nc.jpg\tmy id\n", encoding="utf-8-sig")
    assert ids(tmp_path / "list.txt") == ["1", "2", "my id"]
    assert ids(tmp_path / "list.txt", "path") == ["a/1", "b/2", "my id"]
    (tmp_path / "list.txt").write_text("/elsewhere/1.jpg\n")
    assert ids(tmp_path / "list.txt", "path") == ["/elsewhere/1"]


def test_a_list_of_odd_places(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("/\tone\n//\tone\n")
    with pytest.raises(UserError, match="both have the image id 'one'"):
        ids(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text(".\n..\n/\nb.png\n")
    assert ids(tmp_path / "list.txt", "path")[-1] == ids(tmp_path / "list.txt")[-1] == "b"


def written(path: Path, kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, kind)
    return path


def test_pictures_are_known_by_what_they_begin_with(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        written(tmp_path / f"plain/{kind}", kind)
        written(tmp_path / f"wrong/{kind}w.json", kind)
    written(tmp_path / "other/a.jfif", "JPEG")
    written(tmp_path / "other/b.PNG", "JPEG")
    touch(tmp_path, "notes.txt", "labels/1.txt", "labels/2.TXT", "README", ".DS_Store")
    (tmp_path / "sound.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    found = find_pictures(tmp_path, PictureNames())
    kinds = ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]
    assert list(found.ids) == ["a", "b", *kinds, *(f"{kind}w" for kind in kinds if kind != "TIFF")]
    # A camera's raw file begins as a TIFF; so does the one of another suffix.
    assert dict(found.passed_over) == {".txt": 3, "without a suffix": 3, "hidden": 1, ".wav": 1, ".json": 1}
    assert told_of(found.passed_over).startswith(
        "9 files passed over: 3 .txt, 3 without a suffix, 1 .json, 1 .wav, 1 hidden"
    )
    assert ids(tmp_path / "plain/JPEG") == ["JPEG"] == ids(tmp_path / "plain/JPEG", "file")


def test_files_without_a_picture_s_suffix_alone_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.jpg", "2.TIFF", "3.json")
    seen: list[str] = []
    monkeypatch.setattr(finding, "opened", lambda place, most: seen.append(place) or io.BytesIO())
    assert ids(tmp_path) == ["1", "2"] and [Path(one).name for one in seen] == ["3.json"]


def test_one_picture(tmp_path: Path) -> None:
    touch(tmp_path, "cat.jpg", "dog.jpg")
    assert ids(tmp_path / "cat.jpg") == ["cat"]


def test_a_name_that_gives_no_id_is_put_aside(tmp_path: Path) -> None:
    touch(tmp_path, "COCO_1.jpg", "other.jpg", "y.jpg")
    found = find_pictures(tmp_path, PictureNames(pattern=r"_(\d+)$"))
    assert list(found.ids) == ["1"]
    assert [Path(one.path).name for one in found.unusable] == ["other.jpg", "y.jpg"]
    assert "does not fit 'other'" in found.unusable[0].reason


def test_a_name_that_is_no_unicode_is_put_aside(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg")
    try:
        (tmp_path / os.fsdecode(b"bad\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system has Unicode names alone")
    found = find_pictures(tmp_path, PictureNames())
    assert list(found.ids) == ["good"] and len(found.unusable) == 1
    assert found.unusable[0].path.isascii()
    os.mkdir(tmp_path / os.fsdecode(b"dir\xfe"))
    (tmp_path / os.fsdecode(b"dir\xfe/fine.jpg")).touch()
    assert list(find_pictures(tmp_path, PictureNames()).ids) == ["good"]


def test_ids_too_long_for_a_store_are_put_aside(tmp_path: Path) -> None:
    touch(tmp_path, "/".join(["d" * 100] * 3) + "/1.jpg", "2.jpg")
    found = find_pictures(tmp_path, PictureNames("path"))
    assert list(found.ids) == ["2"] and "bytes" in found.unusable[0].reason


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (["a/1.jpg", "b/1.png"], r"a/1\.jpg and .*b/1\.png both have the image id '1'.*id\.rule=path"),
        (["a/1.jpg", "a/1.tif"], r"a/1\.jpg and .*a/1\.tif both have the image id '1'.*id\.rule=file"),
        (["notes.txt"], "holds no pictures"),
        ([], "holds no pictures"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, files: list[str], word: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=word):
        find_pictures(tmp_path, PictureNames())


def test_sources_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00a")
    (tmp_path / "nul.txt").write_bytes(b"a\0b\n")
    (tmp_path / "none.txt").write_text("\n\n")
    for name, word in (("list.txt", "UTF-8"), ("nul.txt", "line 1"), ("none.txt", "no pictures"), ("x", "not exist")):
        with pytest.raises(UserError, match=word):
            find_pictures(tmp_path / name, PictureNames())


@pytest.mark.parametrize(("rule", "pattern"), [("name", None), ("stem", "("), ("stem", r"\d+")])
def test_rules_that_are_refused(rule: str, pattern: str | None) -> None:
    with pytest.raises(UserError, match=r"id\."):
        PictureNames(rule, pattern)


@given(number=st.integers(0, 50), count=st.integers(1, 20))
def test_parts_are_all_pictures_once_in_order(number: int, count: int) -> None:
    names = Column.of([str(i) for i in range(number)])
    parts = [Pictures(names, names).part(index, count) for index in range(count)]
    assert [name for part in parts for name in part.ids] == list(names)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1

"""Pictures in a TSV, a zip or tar archive and an LMDB: the same as in a folder, and what is wrong with one named."""

from __future__ import annotations

import base64
import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from tests.extraction.samples import pictures as detector_pictures
from tests.extraction.samples import run_extract
from tests.picture_samples import gradient
from vinvl.pictures import PictureNames, Pictures, ReadingOptions, find_pictures, name_of, picture_size, read_picture
from vinvl.pictures.containers import FIRST_LINES, opened
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

OPTIONS = ReadingOptions()
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def content(kind: str = "PNG", width: int = 40) -> bytes:
    file = io.BytesIO()
    gradient(width, 30).save(file, kind)
    return file.getvalue()


def write_tsv(path: Path, pictures: Mapping[str, bytes], *, index: bool = False, python3: bool = False) -> Path:
    """As the published extractor reads it: key, (a column of JSON,) base64; with the byte of each line beside it."""
    starts, text = [], b""
    for number, (key, picture) in enumerate(pictures.items()):
        starts.append(len(text))
        encoded, more = base64.b64encode(picture), [b'[{"class": "cat"}]'] if number % 2 else []
        text += b"\t".join([key.encode(), *more, repr(encoded).encode() if python3 else encoded]) + b"\n"
    path.write_bytes(text)
    if index:
        path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))
    return path


def write_zip(path: Path, pictures: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, picture in pictures.items():
            archive.writestr(name, picture)
    return path


def write_lmdb(path: Path, pictures: Mapping[str, bytes], *, folder: bool = True) -> Path:
    with lmdb.open(str(path), map_size=2**26, subdir=folder, lock=False) as database, database.begin(write=True) as put:
        for key, picture in pictures.items():
            put.put(key.encode(), picture)
        put.put(b"__keys__", pickle.dumps(list(pictures)))
    return path


def write_tar(path: Path, pictures: Mapping[str, bytes]) -> Path:
    """As WebDataset's: what else is known of a picture stands beside it."""
    with tarfile.open(path, "w") as archive:
        for name, content in [part for one in pictures.items() for part in (one, (f"{one[0][:6]}.cls", b"1"))]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_set(path: Path, pictures: Mapping[str, bytes]) -> Path:
    """A yaml as VinVL's code reads it, whose linelist leaves out the first and the last row of its TSV."""
    rows = {"before": content(), **pictures, "behind": b"no picture"}
    write_tsv(path.with_name("rows.tsv"), rows, index=True)
    numbers = [*range(len(pictures), 0, -1), 1]
    path.with_name("train.linelist.tsv").write_text("".join(f"{number}\n" for number in numbers))
    path.write_text("img: rows.tsv\nhw: hw.tsv\nlinelist: train.linelist.tsv\nlabel: labels.tsv\n")
    return path


CONTAINERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "tsv": lambda folder, given: write_tsv(folder / "train.tsv", given),
    "tsv of any name, with an index": lambda folder, given: write_tsv(folder / "train.img.txt", given, index=True),
    "tsv of Python 3": lambda folder, given: write_tsv(folder / "train.tsv", given, python3=True),
    "zip": lambda folder, given: write_zip(folder / "val.zip", given),
    "zip, not packed, of any name": lambda folder, given: write_zip(folder / "val", given, zipfile.ZIP_STORED),
    "tar": lambda folder, given: write_tar(folder / "shard-000.tar", given),
    "yaml of a set": lambda folder, given: write_set(folder / "train.yaml", given),
    "lmdb": lambda folder, given: write_lmdb(folder / "val.lmdb", given),
    "lmdb in one file": lambda folder, given: write_lmdb(folder / "val", given, folder=False),
}


def found(source: Path, rule: str = "stem", pattern: str | None = None, prefix: str = "") -> Pictures:
    return find_pictures(source, PictureNames(rule, pattern, prefix))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_pictures_are_those_that_were_put_in(kind: str, tmp_path: Path) -> None:
    given = {f"{number:06}.{name}": content(name, 40 + number) for number, name in enumerate(KINDS)}
    pictures = found(CONTAINERS[kind](tmp_path, given), "file")
    assert list(pictures.ids) == list(given) and not pictures.unusable
    assert pictures.passed_over == ({".cls": len(given)} if kind == "tar" else {})
    for image_id, place in zip(pictures.ids, pictures.paths, strict=True):
        assert opened(place).read() == given[image_id]
        expected = Image.open(io.BytesIO(given[image_id])).convert("RGB")
        np.testing.assert_array_equal(np.asarray(read_picture(place, OPTIONS)), np.asarray(expected))
        assert picture_size(place, OPTIONS) == expected.size and name_of(place).endswith(f"/{image_id}")


@pytest.mark.parametrize(("kind", "rule"), [("tsv", "stem"), ("zip", "file"), ("lmdb", "path")])
def test_ids_follow_from_keys_and_names(kind: str, rule: str, tmp_path: Path) -> None:
    given = {f"val2014/COCO_val2014_{number:012}.jpg": content() for number in (42, 262148)}
    source = CONTAINERS[kind](tmp_path, given)
    assert list(found(source, rule, r"_0*(\d+)(?:\.jpg)?$", "coco_").ids) == ["coco_42", "coco_262148"]


def test_names_in_an_archive_are_as_paths_below_a_folder_and_never_become_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = [
        "a/1.jpg",
        "b/2",
        "../../3.png",
        "/etc/4.png",
        "C:\\5.png",
        "__MACOSX/a/._1.jpg",
        "a/.6.jpg",
        "notes.txt",
        "b/",
    ]
    given = {name: b"words" if name == "notes.txt" else content() for name in names}
    pictures = found(write_zip(tmp_path / "in" / "x.zip", given))
    assert list(pictures.ids) == ["1", "2", "3", "4", "C:\\5"]
    assert dict(pictures.passed_over) == {"hidden": 2, ".txt": 1}
    assert list(found(tmp_path / "in" / "x.zip", "path").ids)[:3] == ["a/1", "b/2", "../../3"]
    assert [read_picture(place, OPTIONS).size for place in pictures.paths] == [(40, 30)] * 5
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "x.zip"]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = base64.b64encode(content())
    odd, half, other = good[:50] + b"*" + good[51:], good[: len(good) // 8 * 4], base64.b64encode(b"words" * 9)
    rows = {b"cut": good[:-3], b"odd": odd, b"ok": good + b"\n\nok\t" + good + b"\nalone", b"\xff": good, b"": good,
            b"half": half, b"other": other, b"empty": b"", b"last": good}  # fmt: skip
    (tmp_path / "a.tsv").write_bytes(b"".join(b"\t".join(one) + b"\n" for one in rows.items()))
    pictures = found(tmp_path / "a.tsv")
    assert list(pictures.ids) == ["cut", "odd", "ok", "half", "other", "empty", "last"]
    told = [one.reason for one in pictures.unusable]
    for place, word in {
        "line 5 ('ok')": "its key is that of line 3", "line 6 ('alone')": "no column for a picture",
        "line 7 ('')": "no UTF-8", "''": "0 bytes",
    }.items():  # fmt: skip
        assert any(place in sentence and word in sentence for sentence in told), told
    assert len(told) == 4
    reasons = {}
    for image_id, place in zip(pictures.ids, pictures.paths, strict=True):
        try:
            read_picture(place, OPTIONS)
        except UserError as error:
            assert f"a.tsv/{image_id}" in str(error)
            reasons[image_id] = str(error)
    assert reasons.keys() == {"cut", "odd", "half", "other", "empty"}
    assert all("no picture in base64, or one that is cut off" in reasons[name] for name in ("cut", "odd", "empty"))
    assert "cut off or damaged" in reasons["half"] and "not a picture of a known kind" in reasons["other"]


def test_the_column_of_the_picture_is_found(tmp_path: Path) -> None:
    """Also where captions come behind it, and in base64 for addresses, as OFA writes its files."""
    picture = content()
    plain, ours = base64.b64encode(picture), base64.urlsafe_b64encode(picture)
    rows = [b"1\t" + plain + b"\ta cat", b"2\ta dog\t7\t" + ours, b"3\t[{}]\t" + plain + b"\r"]
    (tmp_path / "a.tsv").write_bytes(b"\n".join(rows))
    pictures = found(tmp_path / "a.tsv")
    assert list(pictures.ids) == ["1", "2", "3"]
    assert all(opened(place).read() == picture for place in pictures.paths)


def test_an_index_that_is_of_another_file(tmp_path: Path) -> None:
    given = {str(number): content(width=40 + number) for number in range(4)}
    source = write_tsv(tmp_path / "a.tsv", given, index=True)
    index = tmp_path / "a.lineidx"
    starts = index.read_text().split()
    for wrong in (["7", *starts[1:]], [*starts[:2], "11", "12"], [*starts, "999999"], ["a", *starts[1:]], starts[::-1]):
        index.write_text("\n".join(wrong))
        with pytest.raises(UserError, match=r"a\.lineidx line \d is not where a line of .*a\.tsv begins"):
            found(source)
    for left_out in (2, 3):  # of which the line before is two then
        index.write_text("\n".join(starts[:left_out] + starts[left_out + 1 :]))
        pictures = found(source)
        with pytest.raises(UserError, match=r"there are two lines where its \.lineidx has one"):
            read_picture(pictures.paths[left_out - 1], OPTIONS)


def test_a_first_row_that_is_damaged_does_not_make_it_a_list(tmp_path: Path) -> None:
    lines = [f"{number}\t{base64.b64encode(content()).decode()}\n" for number in range(2)]
    (tmp_path / "a.tsv").write_text("0\tAAAA\n" * (FIRST_LINES - 1) + lines[1])
    assert list(found(tmp_path / "a.tsv").ids) == ["0", "1"]


def encrypted(path: Path) -> Path:
    raw = bytearray(write_zip(path, {"a.png": content(), "b.png": content()}).read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1  # the first member's flag in the list of all
    path.write_bytes(raw)
    return path


def test_members_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    one, other = (
        found(encrypted(tmp_path / "e.zip")),
        found(write_zip(tmp_path / "l.zip", {"a.png": content()}, zipfile.ZIP_LZMA)),
    )
    assert list(one.ids) == ["b"] and "e.zip/a.png is encrypted" in one.unusable[0].reason
    assert len(other) == 0 and "packed in another way than deflate" in other.unusable[0].reason
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for _ in range(2):
            archive.writestr("a.png", content())
    twice = found(tmp_path / "d.zip")
    assert list(twice.ids) == ["a"] and "has the name of another one" in twice.unusable[0].reason


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    """A bomb: what is unpacked ends where the archive says that the member does, or at the limit."""
    raw = write_zip(tmp_path / "b.zip", {"a.png": bytes(50_000_000)}).read_bytes()
    listed = raw.index(b"PK\1\2")
    claimed = bytearray(raw)
    claimed[listed + 24 : listed + 28] = struct.pack("<I", 1000)
    (tmp_path / "b.zip").write_bytes(claimed)
    with pytest.raises(UserError, match="damaged"):
        read_picture(found(tmp_path / "b.zip").paths[0], OPTIONS)
    claimed[listed + 24 : listed + 28] = struct.pack("<I", 2**31)
    (tmp_path / "b.zip").write_bytes(claimed)
    pictures = found(tmp_path / "b.zip")
    assert len(pictures) == 0 and "2,147,483,648 bytes, at most" in pictures.unusable[0].reason


@pytest.mark.parametrize("kind", ["zip", "tar", "lmdb", "tsv"])
def test_damaged_containers_end_in_sentences(kind: str, tmp_path: Path) -> None:
    """Whatever is cut off or changed: a picture as it was, another one where nothing can tell, or a sentence."""
    given = {f"{number}.png": content(width=60 + number) for number in range(5)}
    source = CONTAINERS[kind](tmp_path, given)
    path = source / "data.mdb" if source.is_dir() else source
    whole, chance = path.read_bytes(), random.Random(3)
    for round_ in range(60):
        changed = bytearray(whole)
        if round_ % 2:
            del changed[chance.randrange(len(changed)) :]
        else:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            for place in found(source).paths:
                read_picture(place, OPTIONS)
        except UserError as error:
            assert str(tmp_path) in str(error)


def test_a_tar_that_ends_early_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    """Also where it is cut between members, or the head of one is damaged, which Python takes for the end."""
    path = write_tar(tmp_path / "a.tar", {f"{number:06}.png": content() for number in range(3)})
    with tarfile.open(path) as archive:
        whole, starts = path.read_bytes(), [one.offset for one in archive]
    for changed in (whole[: starts[2]], whole[: starts[2] + 700], whole[: starts[3]] + b"?" + whole[starts[3] + 1 :]):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"a\.tar is cut off or damaged"):
            found(path)


@pytest.mark.parametrize(
    ("linelist", "words"),
    [
        ("0\n7\n", "has 3 rows, and its linelist asks for row 7"),
        ("0\n-1\n", "holds '-1', a row number"),
        ("", "no pic"),
    ],
)
def test_a_linelist_of_another_set(tmp_path: Path, linelist: str, words: str) -> None:
    source = write_set(tmp_path / "train.yaml", {"a": content()})
    (tmp_path / "train.linelist.tsv").write_text(linelist)
    with pytest.raises(UserError, match=words):
        found(source)
    source.write_text("img: none.tsv\n")
    with pytest.raises(UserError, match=r"none\.tsv does not exist"):
        found(source)


def test_what_is_gone_or_shorter_when_it_is_read_is_told(tmp_path: Path) -> None:
    for kind in ("tsv", "zip", "tar", "lmdb"):
        source = CONTAINERS[kind](tmp_path, {"1.png": content()})
        place = found(source).paths[0]
        path = source / "data.mdb" if source.is_dir() else source
        os.truncate(path, 20)
        with pytest.raises(UserError, match=r"1\.png: "):
            read_picture(place, OPTIONS)
        path.unlink()
        with pytest.raises(UserError, match="does not exist"):
            read_picture(place, OPTIONS)


def test_a_store_of_a_container_is_that_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, with worker processes; what is broken in it is listed, what is no picture counted."""
    folder = detector_pictures(tmp_path / "pictures", 3)
    files = sorted(folder.rglob("*.png"), key=lambda path: path.stem)
    given = {f"{path.stem}.png": path.read_bytes() for path in files} | {"~broken.png": content()[:60]}
    (tmp_path / "list.txt").write_text("".join(f"{path.relative_to(tmp_path)}\n" for path in files))
    run_extract(tmp_path, f"images={tmp_path / 'list.txt'}", f"output={tmp_path / 'f.h5'}")
    written = [CONTAINERS["tsv"](tmp_path, given), CONTAINERS["lmdb"](tmp_path, given)]
    written.append(CONTAINERS["zip"](tmp_path, given | {"a.json": b"{}"}))
    for number, source in enumerate(written):
        (tmp_path / "c.h5").unlink(missing_ok=True)
        given_so = ["workers=0", "workers=2"][number % 2], *([r"id.pattern='(.*)\.png'"] if number < 2 else [])
        run_extract(tmp_path, f"images={source}", f"output={tmp_path / 'c.h5'}", *given_so)
        ours, theirs = RegionStore(tmp_path / "c.h5"), RegionStore(tmp_path / "f.h5")
        assert list(ours.image_ids) == list(theirs.image_ids) == [path.stem for path in files]
        for index in range(len(ours)):
            np.testing.assert_array_equal(ours.at(index).features, theirs.at(index).features)
        assert f"{source}/~broken.png is cut off" in (tmp_path / "c.h5.unusable.txt").read_text()
    assert "1 files passed over: 1 .json" in capsys.readouterr().out

"""Archives that nobody should trust, and damaged ones: nothing outside of the folder, nothing half in it."""

import errno
import os
import tarfile
from pathlib import Path

import pytest

from tests.downloads.archives import tar_of, zip_of
from vinvl.downloads.unpacking import unpack
from vinvl.run.errors import UserError

OUTSIDE, LINK = "a place outside of its folder", "a link or device"
HOSTILE = {
    "up": (zip_of({"good/1": b"1", "../x": b"x"}), OUTSIDE),
    "deep up": (zip_of({"good/1": b"1", "good/../../x": b"x"}), OUTSIDE),
    "absolute": (tar_of({"good/1": b"1", "/tmp/x": b"x"}), OUTSIDE),
    "of Windows": (tar_of({"good/1": b"1", "c:\\x": b"x"}), OUTSIDE),
    "drive": (zip_of({"good/1": b"1", "c:/x": b"x"}), OUTSIDE),
    "link in zip": (zip_of({"good/1": b"1"}, {"good/2": "/etc/passwd"}), LINK),
    "link in tar": (tar_of({"good/sub/1": b"1"}, {"good/sub": ".."}), LINK),
    "hard link": (tar_of({"good/1": b"1"}, {"good/2": "/etc/passwd"}, tarfile.LNKTYPE), LINK),
    "device": (tar_of({"good/1": b"1"}, {"good/2": ""}, tarfile.CHRTYPE), LINK),
    "pipe": (tar_of({"good/1": b"1"}, {"good/2": ""}, tarfile.FIFOTYPE), LINK),
    "web page": (b"<!DOCTYPE html><html>" * 9, "neither zip nor tar; it begins with b'<!DOCTYPE html"),
    "empty": (b"", "neither zip nor tar"),
    "cut tar": (tar_of({"good/1": os.urandom(9000)})[:-4000], "is damaged"),
    "cut zip": (zip_of({"good/1": os.urandom(9000)})[:-4000], "neither zip nor tar"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_left_of_an_archive_that_is_not_what_it_should_be(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(UserError, match="archive") as raised:
        unpack(tmp_path / "archive", ["good"], tmp_path / "set")
    assert reason in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "set"]


def test_a_zip_whose_bytes_are_other_ones_or_that_is_encrypted(tmp_path: Path) -> None:
    whole = zip_of({"good": b"content"})
    (tmp_path / "archive").write_bytes(whole.replace(b"content", b"contend", 1))
    with pytest.raises(UserError, match="is damaged"):
        unpack(tmp_path / "archive", ["good"], tmp_path / "set")
    at = whole.index(b"PK\x01\x02") + 8  # the flags of its only member
    (tmp_path / "archive").write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(UserError, match="is encrypted"):
        unpack(tmp_path / "archive", ["good"], tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_there_twice_or_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "twice").write_bytes(tar_of({"a/good": b"1", "./a/good": b"2"}))
    with pytest.raises(UserError, match=r"holds \./a/good twice"):
        unpack(tmp_path / "twice", ["good"], tmp_path / "set")
    (tmp_path / "two").write_bytes(tar_of({"a/good/1": b"1", "b/good/2": b"2", "b/other": b""}))
    assert unpack(tmp_path / "two", ["good", "b/other"], tmp_path / "set") is None
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == ["1", "b", "good", "other"]


def test_what_an_archive_lacks_is_said_and_the_rest_is_in_place(tmp_path: Path) -> None:
    (tmp_path / "some.zip").write_bytes(zip_of({f"{number}": b"" for number in range(8)}))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1").write_text("there already")
    lacks = unpack(tmp_path / "some.zip", ["1", "2", "nine"], tmp_path / "set")
    assert lacks == "some.zip does not hold nine, but 0, 1, 2, 3, 4 and 3 more"
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["1", "2"]
    assert (tmp_path / "set" / "1").read_text() == "there already"


def test_room_for_what_is_unpacked_is_looked_for_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of({"good/1": bytes(3000), "other": bytes(9000)}))
    monkeypatch.setattr("vinvl.downloads.unpacking.free_room", lambda folder: 2999)
    with pytest.raises(UserError, match="make room") as raised:
        unpack(tmp_path / "a.zip", ["good"], tmp_path / "set")
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.errno == errno.ENOSPC
    monkeypatch.setattr("vinvl.downloads.unpacking.free_room", lambda folder: 3000)
    assert unpack(tmp_path / "a.zip", ["good"], tmp_path / "set") is None

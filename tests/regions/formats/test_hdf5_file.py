"""Arrays of HDF5 files that nobody trusts: what is not asked again, and that nothing else is read for it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinvl.regions.formats import hdf5_file
from vinvl.run.errors import UserError


def header_of(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file.id.links.get_info(name.encode()).u)


@pytest.mark.parametrize("track_times", [False, True])
@pytest.mark.parametrize("group", ["", "107/"])
def test_what_one_array_was_checked_for_is_not_asked_again(tmp_path: Path, group: str, track_times: bool) -> None:
    file, arrays = tmp_path / "in.h5", [np.full((3, 4), number, "<f4") for number in range(3)]
    with h5py.File(file, "w") as out:
        for number, array in enumerate(arrays):
            out.create_dataset(f"{group}{number}", data=array, track_times=track_times)
        out[f"{group}turned"], out[f"{group}whole"] = arrays[0].T, arrays[0].astype("<i4")
    if track_times and not group:  # of another second; 0x12 is that message, its time behind version and reserved
        content = bytearray(file.read_bytes())
        message = content.index(b"\x12\0\x08\0", header_of(file, "2"))
        content[message + 12] ^= 1
        file.write_bytes(content)
    reader = hdf5_file.Hdf5File(file)
    np.testing.assert_array_equal(reader.whole(f"{group}0"), arrays[0])
    with pytest.MonkeyPatch.context() as without:
        without.setattr(reader, "_placed", None)
        for number in (2, 1):
            np.testing.assert_array_equal(reader.whole(f"{group}{number}"), arrays[number])
        for name in ("turned", "whole"):
            with pytest.raises(TypeError):
                reader.whole(group + name)
        with pytest.raises(UserError, match="2 lies where another array lies"):
            reader.whole(f"{group}2")
    assert reader.whole(f"{group}turned").shape == (4, 3)


def message(kind: int, content: bytes, flags: int = 0) -> bytes:
    return kind.to_bytes(2, "little") + len(content).to_bytes(2, "little") + bytes([flags, 0, 0, 0]) + content


def header_with(start: int, seconds: int, kind: str = "") -> bytes:
    """A header with the place and the time of an array, or with what makes its bytes mean something else."""
    layout = b"\3\1" + start.to_bytes(8, "little") + (b"" if kind == "short layout" else bytes([96]) + bytes(13))
    time = b"\1\0\0\0" + (b"" if kind == "short time" else seconds.to_bytes(4, "little"))
    parts = [message(8, layout, 2 * (kind == "shared layout")), message(0x12, time, 2 * (kind == "shared time"))]
    before = message(8, b"\3\1" + bytes(22)) if kind == "two layouts" else b""
    more = {"elsewhere": message(0x10, bytes(16)), "short time": message(seconds, b"")}
    return b"\1" + bytes(15) + before + b"".join(parts) + more.get(kind, b"")


def test_headers_are_the_same_but_for_place_and_time() -> None:
    facts = np.dtype("<f4"), (3, 4)
    for kind in ("", "short layout", "shared layout", "two layouts", "elsewhere", "short time", "shared time"):
        headers, first = hdf5_file.Headers(most=1), header_with(96, 7, kind)
        headers.add(first, *facts, 192)
        assert headers.find(first) is None  # it says another place than HDF5
        headers.add(first, *facts, 96)
        assert headers.find(header_with(192, 8, kind)) == (None if kind else (*facts, 192)), kind
        known = headers.find(header_with(192, 7, kind))
        assert known == ((*facts, 192) if kind in ("", "short time", "shared time") else None), kind
    headers = hdf5_file.Headers(most=1)
    first, larger = header_with(96, 7), header_with(96, 7).replace(bytes([96]) + bytes(13), bytes([97]) + bytes(13))
    headers.add(first, *facts, 96)
    assert headers.find(first) and not headers.find(larger)
    headers.add(larger, *facts, 96)
    assert headers.find(larger) and not headers.find(first)  # no more are kept


def test_a_damaged_header_is_never_more_than_hdf5_makes_of_it(tmp_path: Path) -> None:
    """One byte of two headers is changed: the second is read as if no other had been checked before."""
    file, headers = tmp_path / "in.h5", []
    with h5py.File(file, "w") as out:
        for number in range(3):
            out.create_dataset(str(number), data=np.full((3, 4), number + 1, "<f4"), track_times=True)
    content, headers = file.read_bytes(), [header_of(file, name) for name in ("0", "2")]

    def outcome(reader: hdf5_file.Hdf5File) -> object:
        try:
            array = reader.whole("2")
        except UserError as error:
            return str(error)
        finally:
            reader.close()
        return array.dtype, array.shape, array.tobytes()

    for position in range(160):
        for both in (True, False):
            changed = bytearray(content)
            for header in headers if both else headers[1:]:
                changed[header + position] ^= 2 if both else 1
            file.write_bytes(changed)
            knowing = hdf5_file.Hdf5File(file)
            try:
                knowing.whole("0")
            except UserError:
                continue
            assert outcome(knowing) == outcome(hdf5_file.Hdf5File(file)), position


@pytest.mark.parametrize("recent", [1, 3, 100])
@given(
    places=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=40),
)
def test_no_two_arrays_are_read_from_one_place(places: list[tuple[int, int]], recent: int) -> None:
    taken, claimed = hdf5_file.Places(recent), list[tuple[int, int]]()
    for start, size in places:
        free = all(start >= stop or start + size <= begin for begin, stop in claimed)
        if free:
            taken.claim(start, start + size, "features", Path("in.h5"))
            claimed.append((start, start + size))
        else:
            with pytest.raises(UserError, match="features lies where another array lies"):
                taken.claim(start, start + size, "features", Path("in.h5"))

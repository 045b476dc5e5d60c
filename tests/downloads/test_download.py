"""`python -m vinvl.download` against a server on this machine that does what servers do."""

import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.door_runs import DoorProcess, door_environment
from tests.downloads.archives import tar_of, zip_of
from tests.downloads.server import Served, Server, serving
from vinvl.download import main
from vinvl.downloads.transfer import PIECE, Transfer

CONTENT = bytes(range(256)) * 800  # 204,800 bytes


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinvl.downloads.transfer.sleep", lambda seconds: None)


def listed(folder: Path, *files: dict[str, Any], **more: Any) -> str:
    """A list of one's own with one part that goes to `set`, as a file."""
    part = {"what": "files", "to": "set", "files": list(files)}
    content = {"what": "a set", "page": "a page", "known": "Known to be a test.", "parts": {"all_of_it": part}} | more
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a command that fails."""
    capsys.readouterr()
    assert main(words) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def below(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_and_archives_are_put_in_place_and_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    zipped = zip_of(
        {"deep/train/1.jpg": b"1", "deep/train/a/2.jpg": b"2", "__MACOSX/train/1.jpg": b"x", "b.json": b"[]"}
    )
    server.files = {
        "/plain.json": Served(CONTENT, kind="text/plain"),
        "/pictures.zip": Served(zipped),
        "/more.tar.gz": Served(tar_of({"val/3.jpg": b"3", "other": b""})),
    }
    name = listed(
        tmp_path,
        {"url": f"{server.url}/plain.json", "bytes": len(CONTENT), "hash": digest(CONTENT)},
        {"url": f"{server.url}/pictures.zip", "makes": ["train", "b.json"]},
        {"url": f"{server.url}/more.tar.gz", "makes": ["val"], "to": "set/more"},
        then={"set/regions": "make {data}/set/regions", "set/plain.json": "not said"},
    )
    to = tmp_path / "data"
    assert main([name, "--to", str(to)]) == 0
    assert below(to) == ["set/b.json", "set/more/val/3.jpg", "set/plain.json", "set/train/1.jpg", "set/train/a/2.jpg"]
    assert (to / "set" / "plain.json").read_bytes() == CONTENT and (to / "set" / "train" / "1.jpg").read_bytes() == b"1"
    asked = len(server.asked)
    assert main([name, "--to", str(to)]) == 0 and len(server.asked) == asked == 3


def test_what_to_do_next_is_said_and_a_plan_asks_nobody(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/a.zip"] = Served(zip_of({"a": b"1"}))
    file = {"url": f"{server.url}/a.zip", "makes": ["a"], "bytes": 1_500_000}
    name = listed(tmp_path, file, then={"set/regions": "extract {data}/set"})
    assert main([name, "--to", str(tmp_path / "data"), "--plan"]) == 0
    told = capsys.readouterr().out
    assert f"a.zip (1.5 MB): {server.url}/a.zip" in told and f"→ {tmp_path}/data/set/a" in told
    assert "Known to be a test." in told and server.asked == [] and not (tmp_path / "data").exists()
    assert main([name, "--to", str(tmp_path / "data"), "--unchecked", "--keep"]) == 0
    assert below(tmp_path / "data") == ["set/a", "set/a.zip"]
    assert f"own then needs {tmp_path}/data/set/regions: extract {tmp_path}/data/set" in capsys.readouterr().out


@given(
    cuts=st.lists(st.integers(0, 60_000), max_size=4),
    ranges=st.booleans(),
    mark=st.sampled_from([None, '"a"', 'W/"a"']),
)
def test_however_a_file_is_cut_it_comes_whole(
    cuts: list[int], ranges: bool, mark: str | None, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with serving() as server:
        server.files["/f"] = Served(CONTENT, cuts=list(cuts), ranges=ranges, mark=mark)
        transfer = Transfer(folder / "part", len(CONTENT))
        transfer(f"{server.url}/f", str(folder / "whole"), None)
        assert (folder / "whole").read_bytes() == CONTENT and below(folder) == ["whole"]
        begun = 0
        for cut, at in zip([0, *cuts], server.begun, strict=False):
            assert begun + cut - PIECE < at <= begun + cut if ranges else at == 0
            begun = at


def test_a_file_that_has_changed_in_the_meantime_begins_anew(server: Server, tmp_path: Path) -> None:
    name = listed(tmp_path, {"url": f"{server.url}/f.bin"})
    for mark in ('"a"', None):  # without a mark the size tells
        server.files["/f.bin"] = Served(b"old" * 30_000, cuts=[2 * PIECE] + [0] * 9, mark=mark)
        assert main([name, "--to", str(tmp_path / "data")]) == 1
        server.files["/f.bin"] = Served(CONTENT, mark=mark and '"b"')
        assert main([name, "--to", str(tmp_path / "data")]) == 0
        assert server.asked[-1 if mark else -2][1] == f"bytes={2 * PIECE}-"
        assert (tmp_path / "data" / "set" / "f.bin").read_bytes() == CONTENT
        (tmp_path / "data" / "set" / "f.bin").unlink()


def test_mirrors_are_tried_in_order_and_the_others_of_a_list_do_not_wait(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files = {
        "/403/f": Served(code=403),
        "/cut/f": Served(CONTENT, cuts=[0] * 9),
        "/page/f": Served(b"<html>", kind="text/html; charset=utf-8"),
        "/short/f": Served(CONTENT[:-1]),
        "/other/f": Served(CONTENT[::-1]),
        "/good/f": Served(CONTENT),
        "/g": Served(b"g"),
    }
    hosts = ["403", "404", "cut", "page", "short", "other", "good"]
    urls = [f"{server.url}/{host}/f" for host in hosts]
    wanted = {"bytes": len(CONTENT), "hash": digest(CONTENT)}
    name = listed(tmp_path, {"url": [*urls[:-1], "http://127.0.0.1:9/f"], **wanted}, {"url": f"{server.url}/g"})
    told = refused(capsys, name, "--to", str(tmp_path / "data"))
    reasons = (
        "403/f refuses (403 Forbidden)", "404/f has no such file (404 Not Found)", "cut/f is cut off or not reached",
        "page/f sends a web page", f"short/f has another file: {len(CONTENT) - 1:,} bytes, not {len(CONTENT):,}",
        "other/f has another file, not that of sha256:", "127.0.0.1:9/f is cut off or not reached",
        "Known to be a test.",
    )  # fmt: skip
    assert all(reason in told for reason in reasons), told
    assert [path.name for path in (tmp_path / "data" / "set").iterdir()] == ["g"]
    assert [path for path, _ in server.asked].count("/other/f") == 1
    assert main([listed(tmp_path, {"url": urls, **wanted}), "--to", str(tmp_path / "data")]) == 0
    assert below(tmp_path / "data") == ["set/f", "set/g"]


def test_halves_of_two_files_are_noticed_by_the_hash_and_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = Served(b"old" + CONTENT[3:], cuts=[5 * PIECE] + [0] * 9, mark=None)
    file = {"url": f"{server.url}/f", "hash": digest(CONTENT)}
    assert main([listed(tmp_path, file), "--to", str(tmp_path / "data")]) == 1
    server.files["/f"] = Served(CONTENT, mark=None)
    assert main([listed(tmp_path, file), "--to", str(tmp_path / "data")]) == 0
    assert [span for _, span in server.asked[-2:]] == [f"bytes={5 * PIECE}-", ""]
    assert (tmp_path / "data" / "set" / "f").read_bytes() == CONTENT


def test_another_size_or_hash_is_taken_where_a_person_says_so(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/f"] = Served(CONTENT, sized=False)
    name = listed(tmp_path, {"url": f"{server.url}/f", "bytes": 3, "hash": digest(b"abc")})
    assert "another file, of more than 3 bytes" in refused(capsys, name, "--to", str(tmp_path / "data"))
    server.files["/f"].content = b"ab"
    assert "another file, not of 3 bytes" in refused(capsys, name, "--to", str(tmp_path / "data"))
    assert below(tmp_path / "data") == []
    assert main([name, "--to", str(tmp_path / "data"), "--unchecked"]) == 0


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Sets how large a file may become, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_what_came_and_goes_on_from_there(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_files: Callable[[int], None]
) -> None:
    content, zeros = os.urandom(400_000), zip_of({"zeros": bytes(400_000)}, packed=True)
    server.files = {"/f": Served(content), "/zeros.zip": Served(zeros)}
    to = str(tmp_path / "data")
    for file, at in (({}, 300_000), ({"makes": ["zeros"]}, len(zeros))):
        name = listed(tmp_path, {"url": f"{server.url}/{'zeros.zip' if file else 'f'}", **file})
        server.begun.clear()
        small_files(300_000)
        told = refused(capsys, name, "--to", to)
        small_files(0)
        assert "cannot be written (File too large)" in told and "make room" in told
        assert main([name, "--to", to]) == 0
        assert server.begun == ([0] if file else [0, at])  # an archive that had come is not asked for again
    assert (
        below(tmp_path / "data") == ["set/f", "set/zeros"] and (tmp_path / "data" / "set" / "f").read_bytes() == content
    )


def test_a_damaged_archive_is_not_kept(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = listed(tmp_path, {"url": f"{server.url}/f.zip", "makes": ["f"]})
    whole = zip_of({"f": CONTENT})
    server.files["/f.zip"] = Served(whole.replace(CONTENT[:20], b"?" * 20, 1))
    assert "is damaged" in refused(capsys, name, "--to", str(tmp_path / "data"))
    server.files["/f.zip"] = Served(whole)
    assert main([name, "--to", str(tmp_path / "data")]) == 0 and below(tmp_path / "data") == ["set/f"]


def test_what_an_archive_lacks_is_said_and_it_is_kept_to_be_looked_at(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/f.zip"] = Served(zip_of({"f": b"f", "h": b"h"}))
    name = listed(tmp_path, {"url": f"{server.url}/f.zip", "makes": ["f", "g"]})
    for _ in range(2):
        told = refused(capsys, name, "--to", str(tmp_path / "data"))
        assert f"f.zip does not hold g, but f, h: see what {tmp_path}/data/set/f.zip is" in told
        assert below(tmp_path / "data") == ["set/f", "set/f.zip"] and len(server.asked) == 1


def test_room_is_looked_for_before_anything_is_asked(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = listed(tmp_path, {"url": f"{server.url}/f.zip", "makes": ["f"], "bytes": 6 * 10**9})
    monkeypatch.setattr("vinvl.downloads.plan.free_room", lambda folder: 10**10)
    told = refused(capsys, name, "--to", str(tmp_path / "data"))
    assert "has 10.00 GB free, and 12.00 GB are needed" in told and server.asked == []
    server.files["/g"] = Served(CONTENT)
    monkeypatch.setattr("vinvl.downloads.transfer.free_room", lambda folder: 10**4)
    told = refused(capsys, listed(tmp_path, {"url": f"{server.url}/g"}), "--to", str(tmp_path / "data"))
    assert "0.00 GB are to come, and 0.00 GB are free: make room" in told


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_and_given_again(server: Server, tmp_path: Path, number: int) -> None:
    server.files["/f.zip"] = Served(content := zip_of({"f/1": CONTENT, "f/2": os.urandom(300_000)}), seconds=0.005)
    name = listed(tmp_path, {"url": f"{server.url}/f.zip", "makes": ["f"], "hash": digest(content)})
    command = ("vinvl.download", name, "--to", "data")
    first = DoorProcess(tmp_path, *command, environment=door_environment(tmp_path))
    part = tmp_path / "data" / "set" / ".f.zip.download" / ".part"
    first.wait_until(lambda: part.exists() and part.stat().st_size > 50_000)
    assert main([name, "--to", str(tmp_path / "data")]) == 1  # one at a time
    assert first.signalled(number) == (75 if number == signal.SIGTERM else -number)
    server.files["/f.zip"].seconds = 0
    assert DoorProcess(tmp_path, *command, environment=door_environment(tmp_path)).wait() == 0
    assert [bool(span) for _, span in server.asked] == [False, True]
    assert below(tmp_path / "data") == ["set/f/1", "set/f/2"]
    assert [path.name for path in (tmp_path / "data" / "set").iterdir()] == ["f"]


def test_what_is_had_by_hand(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = zip_of({"pictures/1.jpg": b"1"})
    file = {"named": "p.zip", "makes": ["pictures"], "by_hand": "Fill in the form.", "hash": digest(archive)}
    name, to, own = listed(tmp_path, file), tmp_path / "data", tmp_path / "own"
    own.mkdir()
    told = refused(capsys, name, "--to", str(to))
    assert "p.zip: Fill in the form." in told and f"Put it into {to}/set, or pass --from FOLDER" in told
    assert "--from nowhere is no folder" in refused(capsys, name, "--to", str(to), "--from", "nowhere")
    (own / "p.zip").write_bytes(archive[:-1])
    told = refused(capsys, name, "--to", str(to), "--from", str(own))
    assert f"{own}/p.zip is not the file with sha256:" in told and "--unchecked" in told
    (own / "p.zip").write_bytes(archive)
    assert main([name, "--to", str(to), "--from", str(own)]) == 0
    assert below(to) == ["set/pictures/1.jpg"] and below(own) == ["p.zip"]


def test_mirrors_of_ones_own_come_first(server: Server, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "f").write_bytes(b"lying there")
    server.files["/mirror/g%"] = Served(b"mirrored")
    name = listed(tmp_path, {"url": f"{server.url}/f"}, {"url": f"{server.url}/g%25"})
    mirrors = ["--from", str(tmp_path / "own"), "--from", f"{server.url}/mirror/"]
    assert main([name, "--to", str(tmp_path / "data"), *mirrors]) == 0
    assert [(tmp_path / "data" / "set" / name).read_bytes() for name in ("f", "g%")] == [b"lying there", b"mirrored"]
    assert [path for path, _ in server.asked] == ["/mirror/g%"]


def blobs(*named: tuple[str, bytes], marker: str = "") -> Served:
    """A page of a listing, as Azure's storage answers."""
    from base64 import b64encode

    rows = "".join(
        f"<Blob><Name>{name}</Name><Properties><Content-Length>{len(content)}</Content-Length>"
        f"<Content-MD5>{b64encode(hashlib.md5(content).digest()).decode()}</Content-MD5></Properties></Blob>"
        for name, content in named
    )
    text = f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
    return Served(text.encode(), kind="application/xml")


def test_a_folder_of_azures_storage(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "/box?restype=container&comp=list&prefix=sets/vqa/&marker="
    server.files = {
        asked: blobs(("sets/vqa/a.json", b"a"), ("sets/vqa/cache/b c.pkl", b"b"), marker="2!"),
        f"{asked}2!": blobs(("sets/vqa/broken", b"sent")),
        "/box/sets/vqa/a.json": Served(b"a"),
        "/box/sets/vqa/cache/b c.pkl": Served(b"b"),
        "/box/sets/vqa/broken": Served(b"else"),
    }
    name, to = listed(tmp_path, {"url": f"{server.url}/box/sets/vqa", "folder": True}), tmp_path / "data"
    assert "broken has another file, not that of md5:" in refused(capsys, name, "--to", str(to))
    assert below(to) == ["set/a.json", "set/cache/b c.pkl"]
    server.files[asked] = blobs(("sets/vqa/../../../x", b"a"))
    assert "a place outside of it" in refused(capsys, name, "--to", str(to))
    server.files[asked] = blobs()
    assert "is empty, or is no folder" in refused(capsys, name, "--to", str(to))
    server.files[asked] = Served(code=403)
    told = refused(capsys, name, "--to", str(to))
    assert "is not listed by its server (403 Forbidden)" in told and "Known to be a test." in told
    server.files[asked] = Served(b"<not", kind="application/xml")
    assert "is not listed by its server (ParseError)" in refused(capsys, name, "--to", str(to))


def test_pictures_that_a_list_names(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"file_name": f"{number}.jpg", "coco_url": f"{server.url}/{number}"} for number in range(20)]
    server.files = {"/list.json": Served(json.dumps({"images": images}).encode())}
    server.files |= {f"/{number}": Served(b"%d" % number) for number in range(19)}
    name = listed(tmp_path, {"url": f"{server.url}/list.json"}, {"named": "val", "pictures_of": "list.json"})
    to = tmp_path / "data"
    told = refused(capsys, name, "--to", str(to))
    assert f"1 of 20 pictures of {to}/set/list.json were not had, such as {server.url}/19" in told
    assert not (to / "set" / "val").exists()
    server.files["/19"] = Served(b"19")
    server.asked.clear()
    assert main([name, "--to", str(to)]) == 0 and [path for path, _ in server.asked] == ["/19"]
    assert below(to) == sorted(["set/list.json", *(f"set/val/{number}.jpg" for number in range(20))])
    for bad in ("../1.jpg", "a/1.jpg", ""):
        (to / "set" / "list.json").write_text(json.dumps({"images": [{"file_name": bad, "coco_url": server.url}]}))
        name = listed(tmp_path, {"named": "test", "pictures_of": "list.json"})
        assert "which is no name of a file" in refused(capsys, name, "--to", str(to))
    (to / "set" / "list.json").write_text('{"images": 3}')
    assert "has no images with file_name and coco_url" in refused(capsys, name, "--to", str(to))

"""Files by name on the Hugging Face hub, against a hub on this machine."""

import re
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.hub_server import Hub
from vinvl.run.errors import UserError
from vinvl.run.hub import fetch, may_be_name

FILES = {"config.json": b"{}", "weights.bin": bytes(range(256)) * 40, "big.zip": b"not wanted"}


def wanted(names: Sequence[str]) -> list[str]:
    return [name for name in ("config.json", "weights.bin") if name in names] if "weights.bin" in names else []


def get(name: str | Path) -> tuple[str, dict[str, bytes]]:
    found = fetch(name, "thing", "weights.bin", wanted)
    return found.name, {path.name: path.read_bytes() for path in found.folder.iterdir()}


def test_files_come_once_and_keep_their_commit(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    there = hub.add("someone/model", FILES)
    first = there.refs["main"]
    name, files = get("someone/model")
    assert name == f"someone/model@{first}" and files == {one: FILES[one] for one in ("config.json", "weights.bin")}
    assert sorted(hub.downloads()) == ["config.json", "weights.bin"]
    printed = capsys.readouterr()
    assert printed.err.count(f"{name}: 2 files, 0.0 MB, from the Hugging Face hub") == 1 and printed.out == ""
    hub.asked.clear()
    assert get("someone/model") == (name, files) and get(name) == (name, files)
    assert hub.asked == ["GET /api/models/someone/model/revision/main"]  # nothing for the whole commit
    assert capsys.readouterr() == ("", "")
    second = there.commit({"weights.bin": b"newer"})
    assert get("someone/model") == (f"someone/model@{second}", {"config.json": b"{}", "weights.bin": b"newer"})
    assert get(f"someone/model@{first}")[1] == files and get("someone/model@main")[0].endswith(second)


def test_without_a_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add("someone/model", FILES)
    name, files = get("someone/model")
    capsys.readouterr()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get("someone/model") == (name, files)
    told = f"The hub is not asked (HF_HUB_OFFLINE is set): {name} is taken as it was downloaded before.\n"
    assert capsys.readouterr().err == told
    with pytest.raises(
        UserError, match=r"'someone/other' is no thing here and not in the cache .*HF_HUB_OFFLINE is set"
    ):
        get("someone/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.status = 503
    assert get("someone/model") == (name, files)
    assert "The Hugging Face hub cannot be reached (Server error '503" in capsys.readouterr().err
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert get("someone/model") == (name, files)
        with pytest.raises(UserError, match=r"the Hugging Face hub cannot be reached .*refused"):
            get("someone/other")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"refused": (401, "RepoNotFound")}, "'a/b' is not a folder here and is not on the .* HF_TOKEN"),
        ({"refused": (404, "RepoNotFound")}, "'a/b' is not a folder here and is not on the .* HF_TOKEN"),
        ({"refused": (403, "")}, "'a/b' on the Hugging Face hub is refused .*403"),
        ({"gated": True}, "'a/b' on the Hugging Face hub is gated: agree to its terms at https://huggingface.co/a/b"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, said: dict[str, object], sentence: str) -> None:
    hub.add("a/b", FILES, **said)
    with pytest.raises(UserError, match=sentence):
        get("a/b")
    with pytest.raises(UserError, match="'nobody/nothing' is not a folder here"):
        get("nobody/nothing")


def test_revisions_and_repositories_without_what_is_needed(hub: Hub) -> None:
    hub.add("a/b", FILES)
    with pytest.raises(UserError, match="'a/b' on the Hugging Face hub has no revision 'v9': give a branch"):
        get("a/b@v9")
    hub.add("a/pictures", {"one.png": b"", "../../weights.bin": b"evil"})
    with pytest.raises(UserError, match=r"a/pictures on .* is no thing: it needs weights.bin, and it holds one.png\.$"):
        get("a/pictures")


PATHS = (
    "model.pth",
    "a/model.ckpt",
    "runs/a/b",
    "./a",
    "~/a",
    "/a",
    "a/b/",
    "here/nothing",
    "a--b",
    "a@b@c",
    "a b",
    "",
)


@pytest.mark.parametrize("path", PATHS)
def test_what_cannot_be_a_repository_is_not_asked_for(
    hub: Hub, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=f"There is no thing {re.escape(path)}: give one that exists, or a name"):
        get(path)
    assert hub.asked == [] and not may_be_name(Path("a/b"))
    assert may_be_name("bert-base-uncased") and may_be_name("here/nothing@main") and may_be_name("a.b/c_d-1.2")


def test_a_connection_that_breaks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.add("a/b", FILES)
    hub.cut["weights.bin"] = 1
    assert get("a/b")[1]["weights.bin"] == FILES["weights.bin"]
    assert any("bytes=" in one for one in hub.asked)  # it went on where it was
    hub.repositories["a/b"].commit({"weights.bin": b"new" * 1000})
    hub.cut["weights.bin"] = 99
    with pytest.raises(UserError, match=r"a/b did not come whole \(.*\): give the same command again"):
        get("a/b")
    hub.cut.clear()
    assert get("a/b")[1]["weights.bin"] == b"new" * 1000


def test_a_size_that_is_wrong(hub: Hub, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    hub.wrong_size.add("weights.bin")
    with pytest.raises(UserError, match=r"a/b did not come whole \(Consistency check failed"):
        get("a/b")
    assert not list(tmp_path.rglob("weights.bin"))
    hub.wrong_size.clear()
    assert get("a/b")[1]["weights.bin"] == FILES["weights.bin"]


def test_a_full_disk(hub: Hub, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(FILES["weights.bin"]) - 1000, hard))
    try:
        with pytest.raises(UserError, match=r"There is no room for a/b in .*: make room, or set HF_HOME"):
            get("a/b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("weights.bin"))
    assert get("a/b")[1]["weights.bin"] == FILES["weights.bin"]

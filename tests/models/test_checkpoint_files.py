"""Opening weight files of others: sound ones give their tensors, all others one sentence."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from vinvl.models import load_published_state_dict
from vinvl.run.errors import UserError


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("owned"),)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "best.ckpt"])
def test_weight_files_that_are_not_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    torch.save({"a": torch.zeros(1000)}, path)
    cut = path.read_bytes()[:-500]
    torch.save({"a": Hostile()}, path)
    for content in (path.read_bytes(), pickle.dumps({"a": Hostile()}, protocol=2), cut, b"not weights", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is damaged or holds more than tensors"):
            load_published_state_dict(path)
        assert not (tmp_path / "owned").exists()


def test_other_unsound_weight_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no weight file .*gone.bin"):
        load_published_state_dict(tmp_path / "gone.bin")
    (tmp_path / "a.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match=r"a.safetensors is not a sound safetensors file"):
        load_published_state_dict(tmp_path / "a.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.bin")
    with pytest.raises(UserError, match="table of named tensors"):
        load_published_state_dict(tmp_path / "nested.bin")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.eye(3).to_sparse(), "sparse or quantised"),
        (torch.eye(3).to_sparse_csr(), "sparse or quantised"),
        (torch.zeros(1).expand(10**9), "1,000,000,000 numbers, and the file holds fewer"),
        (torch.zeros(2, dtype=torch.complex64), "of the kind torch.complex64"),
        (3.0, "table of named tensors"),
    ],
    ids=["sparse", "csr", "expanded", "complex", "number"],
)
def test_tensors_that_are_no_weights(value: Any, words: str, zipped: bool, tmp_path: Path) -> None:
    torch.save({"a": value}, tmp_path / "weights.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"weights.bin.*{words}"):
        load_published_state_dict(tmp_path / "weights.bin")


def test_a_packed_file_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as plain, zipfile.ZipFile(tmp_path / "a.bin", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"a\.bin is damaged or holds more than tensors"):
        load_published_state_dict(tmp_path / "a.bin")


def test_a_deep_tuple_as_a_key_does_not_end_the_interpreter(tmp_path: Path) -> None:
    """Torch's loader hashes it, and a hash of a million tuples within each other overflows the stack."""
    deep = b"\x80\x02}N" + b"\x85" * 1_000_000 + b"K\x01s."
    torch.save({"a": torch.zeros(1)}, tmp_path / "sound.bin")
    with zipfile.ZipFile(tmp_path / "sound.bin") as sound, zipfile.ZipFile(tmp_path / "new.bin", "w") as hostile:
        for name in sound.namelist():
            hostile.writestr(name, deep if name.endswith("data.pkl") else sound.read(name))
    heads = (torch.serialization.MAGIC_NUMBER, 1001, {})
    (tmp_path / "old.bin").write_bytes(b"".join(pickle.dumps(head, 2) for head in heads) + deep + pickle.dumps([], 2))
    program = (
        "import sys\nfrom vinvl.run.errors import UserError\nfrom vinvl.models import load_published_state_dict\n"
        "for path in sys.argv[1:]:\n    try: load_published_state_dict(path)\n"
        "    except UserError as error: print(error)\n"
    )
    paths = [str(tmp_path / "new.bin"), str(tmp_path / "old.bin")]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("is damaged or holds more than tensors") == 2, done.stderr


@pytest.mark.parametrize(
    "content",
    [{}, {"weight_map": []}, {"weight_map": {"a": "a" * 300}}, {"weight_map": {"a": "model.safetensors.index.json"}}],
)
def test_an_index_of_nothing_or_of_itself(content: dict, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not an index of weight files"):
        load_published_state_dict(path)

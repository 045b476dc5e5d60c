"""Opening weight files of others: sound ones give their tensors, all others one sentence."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vinvl.errors import UserError
from vinvl.models import load_published_state_dict

GOLDEN = Path(__file__).parent / "data" / "golden" / "oscar"


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("owned"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", ["pickle", "torch", "text", "empty", "cut"])
def test_weight_files_that_are_not_opened(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    if content == "pickle":
        path.write_bytes(pickle.dumps({"a": Hostile()}, protocol=2))
    elif content == "torch":
        torch.save({"a": Hostile()}, path)
    elif content == "cut":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-500])
    else:
        path.write_bytes(b"not weights" if content == "text" else b"")
    with pytest.raises(UserError, match=r"pytorch_model.bin is damaged or holds more than tensors"):
        load_published_state_dict(path)
    assert not (tmp_path / "owned").exists()


def test_other_unsound_weight_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no weight file .*gone.bin"):
        load_published_state_dict(tmp_path / "gone.bin")
    (tmp_path / "a.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match=r"a.safetensors is not a sound safetensors file"):
        load_published_state_dict(tmp_path / "a.safetensors")
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "nested.bin")
    with pytest.raises(UserError, match="no table of named tensors"):
        load_published_state_dict(tmp_path / "nested.bin")


def test_bin_and_safetensors_hold_the_same(tmp_path: Path) -> None:
    tensors = load_published_state_dict(GOLDEN / "train_vqa6.weights.safetensors")
    torch.save(tensors, tmp_path / "weights.bin")
    again = load_published_state_dict(str(tmp_path / "weights.bin"))
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)

"""Checkpoints that are none, not whole, or somebody's attempt to have code run."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vinvl.errors import UserError
from vinvl.runs import task_class
from vinvl.tasks.checkpoints import read_checkpoint
from vinvl.tasks.vqa import VQATask


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


OURS: dict[str, Any] = {
    "vinvl": {"task_class": "vinvl.tasks.vqa.VQATask", "batches_seen": 0, "run_config": {}},
    "state_dict": {"weight": torch.zeros(1)},
    "hyper_parameters": {},
}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("form", ["torch", "torch_legacy", "pickle", "within"])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, form: str) -> None:
    path, traces = tmp_path / "hostile.ckpt", tmp_path / "owned"
    attack = Attack(traces)
    if form == "pickle":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    elif form == "within":
        torch.save(OURS | {"callbacks": attack}, path)
    else:
        torch.save(attack, path, _use_new_zipfile_serialization=form == "torch")
    assert "cannot be read as a checkpoint" in refused(path)
    assert not traces.exists()
    with contextlib.suppress(Exception):  # the attack is a real one:
        torch.load(path, weights_only=False)
    assert traces.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02.",
        b"not a checkpoint\n" * 9,
        b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
    ],
)
def test_files_of_other_programs_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.ckpt").write_bytes(content)
    refused(tmp_path / "foreign.ckpt")


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save(OURS, path)
    assert read_checkpoint(path)["vinvl"] == OURS["vinvl"]
    path.write_bytes(path.read_bytes()[:-200])
    refused(path)
    refused(tmp_path)  # a folder
    assert "does not exist" in refused(tmp_path / "missing.ckpt")


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1, 2],
        torch.zeros(3),
        {"state_dict": {}, "pytorch-lightning_version": "2.0.0"},
        OURS | {"vinvl": "yes"},
        OURS | {"vinvl": {"task_class": "vinvl.tasks.vqa.VQATask"}},
        OURS | {"vinvl": OURS["vinvl"] | {"run_config": [1]}},
        {key: value for key, value in OURS.items() if key != "state_dict"},
        OURS | {"state_dict": [torch.zeros(1)]},
        {key: value for key, value in OURS.items() if key != "hyper_parameters"},
    ],
)
def test_checkpoints_of_other_programs_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    assert "checkpoint of vinvl.train" in refused(tmp_path / "other.ckpt")


def test_only_task_classes_are_taken_from_a_checkpoint() -> None:
    path = Path("some.ckpt")
    assert task_class(OURS, path) is VQATask
    for name in (
        "os.system",
        "vinvl.tasks.vqa.torch",
        "vinvl.tasks.vqa.Prediction",
        "vinvl.tasks.base.read_checkpoint",
        "vinvl.tasks.nothing.Task",
        "vinvl.tasks.vqa.nothing",
        "vinvl.tasks..vqa.VQATask",
        "vinvl.tasks.",
        "",
        None,
        7,
    ):
        with pytest.raises(UserError, match="which this version of vinvl has not"):
            task_class({"vinvl": {"task_class": name}}, path)

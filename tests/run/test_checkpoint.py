"""Checkpoints that are none, not whole, or somebody's attempt to have code run."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vinvl.restore import task_class
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError
from vinvl.vqa.task import VQATask


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


OURS: dict[str, Any] = {
    "vinvl": {"task_class": "vinvl.vqa.task.VQATask", "batches_seen": 0, "run_config": {}},
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


def test_truncated_checkpoints_and_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save(OURS, path)
    assert read_checkpoint(path)["vinvl"] == OURS["vinvl"]
    cut = path.read_bytes()[:-200]
    foreign = [b"", b"PK", b"PK\x03\x04" + b"\0" * 99, b"\x80\x02.", b"not one\n" * 9, b"\x89HDF\r\n\x1a\n" + b"\0" * 9]
    for content in (cut, *foreign):
        path.write_bytes(content)
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
        OURS | {"vinvl": {"task_class": "vinvl.vqa.task.VQATask"}},
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
    ours = (
        "nothing.task.Task",
        "vqa.task.nothing",
        ".task.VQATask",
        "vqa.task.",
        "vqa.task.torch",
        "vqa.task.Prediction",
    )
    for name in ("os.system", "vinvl.task.read_checkpoint", *(f"vinvl.{one}" for one in ours), "", None, 7):
        with pytest.raises(UserError, match="unknown to this version"):
            task_class({"vinvl": {"task_class": name}}, path)


SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 20, "type_vocab_size": 2, "img_feature_dim": 14, "loss_type": "ce",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    task = VQATask(answers=["yes", "no", "left"], model_config=SIZES, init=None)
    return OURS | {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 10**9, "must be a whole number of at least 1, and of 1,000 at most"),
        ("num_hidden_layers", 900, "another number of layers than the 2 of its tensors"),
        ("hidden_size", 2**15, "no tensor of that size"),
        ("vocab_size", 2**24, "no tensor of that size"),
        ("intermediate_size", 2**18, "no tensor of that size"),
        ("hidden_size", "16", "must be a whole number"),
        ("num_attention_heads", [2], "num_attention_heads a list"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps nan, which is no such number"),
        ("hidden_dropout_prob", -0.1, "no such number"),
        ("hidden_act", ["gelu"], "hidden_act a list; choose one of"),
        ("classifier", {"mlp": 1}, "classifier a dict; choose one of"),
        ("loss_type", [], r"loss_type is \[\]"),
        ("attn_implementation", "some-one/kernel", "attn_implementation 'some-one/kernel'; choose one of"),
        ("_attn_implementation_internal", "some-one/kernel", "not a setting of a model"),
    ],
)
def test_sizes_are_held_against_the_tensors(trained: dict[str, Any], field: str, value: Any, words: str) -> None:
    assert VQATask.from_checkpoint(trained, "best.ckpt").config.num_labels == 3
    parameters = trained["hyper_parameters"]
    changed = parameters | {"model_config": parameters["model_config"] | {field: value}}
    with pytest.raises(UserError, match=words):
        VQATask.from_checkpoint(trained | {"hyper_parameters": changed}, "best.ckpt")


@pytest.mark.parametrize("given", [{"init": "some-one/model"}, {"model_config": None}, {"answers": 3}, {"more": 1}])
def test_what_else_a_checkpoint_may_say_of_its_model(trained: dict[str, Any], given: dict[str, Any]) -> None:
    changed = trained | {"hyper_parameters": trained["hyper_parameters"] | given}
    with pytest.raises(UserError, match=r"best.ckpt describes"):
        VQATask.from_checkpoint(changed, "best.ckpt")


def test_a_checkpoint_within_itself_and_half_characters(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["a"] = [endless]
    for parameters, words in ((endless, "it contains itself"), ({"answers": ["\ud800"]}, "half of a surrogate pair")):
        torch.save(OURS | {"hyper_parameters": parameters}, tmp_path / "last.ckpt")
        assert words in refused(tmp_path / "last.ckpt")


def test_a_deleted_option_of_an_earlier_version_is_passed_over(tmp_path: Path) -> None:
    decoding = {"num_beams": 3, "constraints": None}
    torch.save(OURS | {"hyper_parameters": {"decoding": decoding | {"use_cache": True}}}, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt")["hyper_parameters"]["decoding"] == decoding

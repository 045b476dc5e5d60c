"""`model.init=FILE.ckpt`: a model that starts from a run of another task."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from door_in_process import CAPTIONING, TINY, refused_in_process, run_in_process
from torch import Tensor

from vinvl.errors import UserError
from vinvl.models import (
    VinVLConfig,
    VinVLForAnswering,
    VinVLForCaptioning,
    VinVLForPairs,
    VinVLModel,
    initialise_with_report,
    load_published_state_dict,
)
from vinvl.models.checkpoint_files import find_checkpoint

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 20, "img_feature_dim": 14, "num_labels": 5,
}  # fmt: skip


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (Path("owned"),)


def saved(path: Path, **changes: Any) -> Path:
    """A training checkpoint of an answering model, as Lightning lays it out; `changes` replace parts of it."""
    torch.manual_seed(1)
    weights = VinVLForAnswering(VinVLConfig(**SIZES)).state_dict()
    content = {
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "hyper_parameters": {"model_config": dict(SIZES), "answers": ["a", "b", "c", "d", "e"]},
        "vinvl": {"task_class": "vinvl.tasks.gqa.GQATask", "batches_seen": 3, "run_config": {}},
    }
    torch.save({**content, **changes}, path)
    return path


def weights_of(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("model_class", [VinVLForPairs, VinVLForCaptioning])
def test_the_encoder_is_that_of_the_run_and_the_head_is_new(tmp_path: Path, model_class: type[Any]) -> None:
    start = saved(tmp_path / "best.ckpt")
    model, report = initialise_with_report(model_class, VinVLConfig(**{**SIZES, "num_labels": 2}), start)
    source, own = weights_of(start), model.state_dict()
    encoder = [name for name in source if name.startswith("bert.")]
    assert encoder and all(torch.equal(own[name], source[name]) for name in encoder)
    head = {name for name in own if not name.startswith("bert.")}
    assert head and head <= {*report.missing, *report.resized, "cls.predictions.decoder.weight"}
    assert not set(report.loaded) & {name for name in head if name.startswith("classifier")}
    assert report.source == str(start)


def test_the_same_task_takes_the_head_too_and_another_number_of_answers_does_not(tmp_path: Path) -> None:
    start = saved(tmp_path / "best.ckpt")
    source = weights_of(start)
    same, _ = initialise_with_report(VinVLForAnswering, VinVLConfig(**SIZES), start)
    assert all(torch.equal(tensor, source[name]) for name, tensor in same.state_dict().items())
    fewer, report = initialise_with_report(VinVLForAnswering, VinVLConfig(**{**SIZES, "num_labels": 4}), start)
    assert set(report.resized) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(fewer.bert.pooler.dense.weight, source["bert.pooler.dense.weight"])


def test_only_the_models_tensors_are_handed_out(tmp_path: Path) -> None:
    metric = {"accuracy.points": torch.zeros(3)}
    plain = weights_of(saved(tmp_path / "plain.ckpt"))
    content = {f"model.{name}": tensor for name, tensor in plain.items()} | metric
    assert load_published_state_dict(saved(tmp_path / "more.ckpt", state_dict=content)).keys() == plain.keys()


def test_sizes_of_the_run_are_read_from_it(tmp_path: Path) -> None:
    start = saved(tmp_path / "best.ckpt")
    assert find_checkpoint(start).config == SIZES
    other = VinVLConfig(**{**SIZES, "num_attention_heads": 4})  # no tensor tells the number of heads
    with pytest.raises(UserError, match=r"best\.ckpt does not fit .*num_attention_heads is 2 there and 4 here"):
        initialise_with_report(VinVLModel, other, start)


@pytest.mark.parametrize("content", ["pickle", "code", "text", "empty", "cut"])
def test_hostile_and_damaged_files_are_not_opened(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best.ckpt"
    if content == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Hostile()}, protocol=2))
    elif content == "code":
        saved(path, callbacks=Hostile())
    elif content == "cut":
        saved(path).write_bytes(path.read_bytes()[:-700])
    else:
        path.write_bytes(b"not weights" if content == "text" else b"")
    objects = r" \(objects of builtins.getattr, .*, which may run programs\)" if content == "code" else ""
    sentence = rf"best\.ckpt is damaged or holds more than tensors{objects}, so it was not opened"
    with pytest.raises(UserError, match=sentence):
        initialise_with_report(VinVLForPairs, VinVLConfig(**SIZES), path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"hyper_parameters": {}},
        {"hyper_parameters": {"model_config": "large"}},
        {"hyper_parameters": None},
        {"state_dict": ["model.bert"]},
        {"state_dict": None},
    ],
    ids=str,
)
def test_training_checkpoints_of_other_programs(changes: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "foreign.ckpt", **changes)
    with pytest.raises(UserError, match=r"foreign\.ckpt is no training checkpoint of vinvl\.train"):
        initialise_with_report(VinVLForPairs, VinVLConfig(**SIZES), path)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({}, "none of the 0 tensors is an encoder weight"),
        ({"encoder.weight": torch.zeros(2)}, "none of the 0 tensors is an encoder weight"),  # not under "model."
        ({"model.bert.encoder.layer.0.attention.self.query.weight": 3}, "no table of named tensors"),
        ({"model.bert.embeddings.word_embeddings.weight": torch.zeros(30, 8)}, "hidden_size is 8 there and 16 here"),
        ({"model.bert.embeddings.word_embeddings.weight": torch.zeros(30, 16)}, "foreign.ckpt"),  # part of an encoder
        ({3: torch.zeros(2)}, "foreign.ckpt"),
    ],
    ids=str,
)
def test_weights_that_are_no_whole_encoder(state: Any, sentence: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "foreign.ckpt", state_dict=state)
    with pytest.raises(UserError, match=re.escape(sentence)):
        initialise_with_report(VinVLForPairs, VinVLConfig(**SIZES), path)


@pytest.mark.slow
class TestThroughTheDoor:
    SHORT = (*TINY, "trainer.max_steps=1", "test_after_fit=false", "trainer.limit_val_batches=1")

    @pytest.fixture(scope="class")
    @classmethod
    def starts(cls, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        """Checkpoints of a run of VQA and one of GQA."""
        folder, found = tmp_path_factory.mktemp("starts"), {}
        for task in ("vqa", "gqa"):
            run_in_process(
                "train", demo_data, folder / task, f"task={task}", *cls.SHORT, f"data.answers={folder / task}.json"
            )
            found[task] = folder / task / "checkpoints" / "last.ckpt"
        return found

    @pytest.mark.parametrize(("start", "task"), [("vqa", "gqa"), ("gqa", "nlvr2"), ("vqa", "captioning")])
    def test_a_run_starts_from_the_run_of_another_task(
        self, starts: dict[str, Path], demo_data: Path, tmp_path: Path, start: str, task: str
    ) -> None:
        chosen = CAPTIONING if task == "captioning" else [f"task={task}"]
        still = ["optim=adamw_constant", "optim.optimizer.lr=0", f"model.init={starts[start]}"]
        run_in_process("train", demo_data, tmp_path / "run", *chosen, *self.SHORT, *still)
        source = weights_of(starts[start])
        after = weights_of(tmp_path / "run" / "checkpoints" / "last.ckpt")
        encoder = [name for name in source if name.startswith("bert.")]
        assert encoder and all(torch.equal(after[name], source[name]) for name in encoder)

    def test_another_size_of_model_is_refused(self, starts: dict[str, Path], demo_data: Path, tmp_path: Path) -> None:
        overrides = ["task=nlvr2", *self.SHORT, f"model.init={starts['vqa']}", "model.config.hidden_size=64"]
        sentence = refused_in_process("train", demo_data, tmp_path / "no", *overrides)
        assert "hidden_size is 32 there and 64 here" in sentence

    def test_a_file_that_is_not_there(self, demo_data: Path, tmp_path: Path) -> None:
        overrides = ["task=nlvr2", *self.SHORT, f"model.init={tmp_path / 'gone.ckpt'}"]
        assert "gone.ckpt" in refused_in_process("train", demo_data, tmp_path / "no", *overrides)

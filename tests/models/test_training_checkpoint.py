"""`model.init=FILE.ckpt`: a model that starts from a run of another task."""

import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.door_in_process import CAPTIONING, TINY, run_in_process
from tests.models.samples import initialise_with_report
from vinvl.models import (
    VinVLConfig,
    VinVLForAnswering,
    VinVLForCaptioning,
    VinVLForPairs,
    VinVLModel,
    load_published_state_dict,
)
from vinvl.models.weight_files import find_checkpoint
from vinvl.opening import start_model
from vinvl.run.errors import UserError

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
        "vinvl": {"task_class": "vinvl.gqa.task.GQATask", "batches_seen": 3, "run_config": {}},
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


def test_the_same_task_takes_the_head_too_and_the_sizes_are_those_of_the_run(tmp_path: Path) -> None:
    start = saved(tmp_path / "best.ckpt")
    source = weights_of(start)
    same, _ = initialise_with_report(VinVLForAnswering, VinVLConfig(**SIZES), start)
    assert all(torch.equal(tensor, source[name]) for name, tensor in same.state_dict().items())
    assert find_checkpoint(start).config == SIZES
    other = VinVLConfig(**{**SIZES, "num_attention_heads": 4})  # no tensor tells the number of heads
    with pytest.raises(UserError, match=r"best\.ckpt does not fit .*num_attention_heads is 2 there and 4 here"):
        initialise_with_report(VinVLModel, other, start)
    content = {f"model.{name}": tensor for name, tensor in source.items()} | {"accuracy.points": torch.zeros(3)}
    assert load_published_state_dict(saved(tmp_path / "more.ckpt", state_dict=content)).keys() == source.keys()


def test_a_checkpoint_that_would_run_a_program_is_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.ckpt", callbacks=Hostile())
    objects = r"objects of builtins.getattr, .*, which may run programs"
    with pytest.raises(UserError, match=rf"best\.ckpt is damaged or holds more than tensors \({objects}\), so it was"):
        initialise_with_report(VinVLForPairs, VinVLConfig(**SIZES), path)
    assert not Path("owned").exists()


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
    with pytest.raises(UserError, match=r"foreign\.ckpt is not a training checkpoint of vinvl\.train"):
        initialise_with_report(VinVLForPairs, VinVLConfig(**SIZES), path)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({}, "none of the 0 tensors is an encoder weight"),
        ({"encoder.weight": torch.zeros(2)}, "none of the 0 tensors is an encoder weight"),  # not under "model."
        ({"model.bert.encoder.layer.0.attention.self.query.weight": 3}, "table of named tensors"),
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
    def start(cls, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The checkpoint of a run of VQA."""
        folder = tmp_path_factory.mktemp("start")
        run_in_process("train", demo_data, folder / "vqa", *cls.SHORT, f"data.answers={folder}/vqa.json")
        return folder / "vqa" / "checkpoints" / "last.ckpt"

    def test_a_run_starts_from_the_run_of_another_task(self, start: Path, demo_data: Path, tmp_path: Path) -> None:
        still = ["optim=adamw_constant", "optim.optimizer.lr=0", f"model.init={start}"]
        run_in_process("train", demo_data, tmp_path / "run", *CAPTIONING, *self.SHORT, *still)
        source = weights_of(start)
        after = weights_of(tmp_path / "run" / "checkpoints" / "last.ckpt")
        encoder = [name for name in source if name.startswith("bert.")]
        assert encoder and all(torch.equal(after[name], source[name]) for name in encoder)

    def test_answers_in_another_order(self, start: Path, demo_data: Path, tmp_path: Path) -> None:
        """Each row follows its answer, and so does the baseline, which is no answer by its place in the file."""
        answers = json.loads((start.parents[2] / "vqa.json").read_text())["answers"]
        (tmp_path / "reversed.json").write_text(json.dumps([*answers[::-1], "aardvark"]))
        still = ["optim=adamw_constant", "optim.optimizer.lr=0", "trainer.max_steps=1", "trainer.limit_val_batches=1"]
        given = [*TINY, *still, f"model.init={start}", f"data.answers={tmp_path / 'reversed.json'}"]
        told = run_in_process("train", demo_data, tmp_path / "run", *given)
        assert f"most frequent training answer ('{answers[0]}')" in told
        source, after = (weights_of(path) for path in (start, tmp_path / "run" / "checkpoints" / "last.ckpt"))
        assert torch.equal(after["classifier.weight"][:-1], source["classifier.weight"].flip(0))


def as_folder(start: Path, folder: Path, **config: Any) -> Path:
    """The model of `saved` as `save_pretrained` writes it."""
    folder.mkdir()
    torch.save(weights_of(start), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**SIZES, **config}))
    return folder


def begun(init: Path, answers: list[str] | None, **more: Any) -> Any:
    """A task's model that starts from `init`."""
    fields = {**SIZES, "num_labels": len(answers or [0, 1]), **more.pop("config", {})}
    given: dict[str, Any] = {"init_answers": None, "words": None, "data": {}, **more}
    return start_model(VinVLForAnswering, fields, str(init), answers=answers, **given)


class TestHeads:
    """The rows of `saved`'s head are the answers a, b, c, d and e."""

    @pytest.mark.parametrize("kind", ["linear", "mlp", "mlp_gelu"])
    def test_rows_go_by_the_texts_of_their_answers(
        self, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        sizes: Any = {**SIZES, "classifier": kind}
        torch.manual_seed(1)
        weights = {f"model.{name}": one for name, one in VinVLForAnswering(VinVLConfig(**sizes)).state_dict().items()}
        prefix = "classifier." if kind == "linear" else "classifier.2."
        torch.nn.init.normal_(weights[f"model.{prefix}bias"])
        parameters = {"model_config": sizes, "answers": ["red", "yes", "2", "a cat", "no"]}
        start = saved(tmp_path / "best.ckpt", state_dict=weights, hyper_parameters=parameters)
        source = weights_of(start)
        with caplog.at_level(logging.INFO):
            own = begun(start, ["no", "two", "zebra", "The Cat"], config={"classifier": kind}).state_dict()
        assert "answers: 3 kept by their texts, 1 new, randomly initialised ('zebra'), 2 not used ('red', 'yes')" in (
            caplog.text
        )
        for name in ("weight", "bias"):
            assert torch.equal(own[prefix + name][[0, 1, 3]], source[prefix + name][[4, 2, 3]])
        assert own[f"{prefix}bias"][2] == 0 and not (source[f"{prefix}weight"] == own[f"{prefix}weight"][2]).any()
        rest = own.keys() - {f"{prefix}weight", f"{prefix}bias"}
        assert all(torch.equal(own[name], source[name]) for name in rest)

    @pytest.mark.parametrize("where", ["config", "json", "label2ans", "ans2label", "both", "setting"])
    def test_answers_are_found_wherever_they_are_said(self, where: str, tmp_path: Path) -> None:
        start = saved(tmp_path / "best.ckpt")
        names = {str(number): answer for number, answer in enumerate("abcde")}
        folder = as_folder(start, tmp_path / "model", **({"id2label": names} if where == "config" else {}))
        numbers = {"a": 3, "b": 0, "c": 4, "d": 1, "e": 2}  # Oscar's columns are in the order of the entries
        by_number = ["b", "d", "e", "a", "c"]
        setting = None
        if where == "json":
            (folder / "answers.json").write_text('["a", "b", "c", "d", "e"]')
        if where == "label2ans":
            (folder / "trainval_label2ans.pkl").write_bytes(pickle.dumps(list("abcde"), protocol=2))
        if where in ("ans2label", "both"):
            (folder / "trainval_ans2label.pkl").write_bytes(pickle.dumps(numbers))
        if where == "both":
            (folder / "trainval_label2ans.pkl").write_bytes(pickle.dumps(by_number))
        if where == "setting":
            setting = tmp_path / "mine.json"
            setting.write_text('["a", "b", "c", "d", "e"]')
        (folder / "testdev_label2ans.pkl").write_bytes(pickle.dumps(["x", "y"]))  # of another head
        model = begun(folder, ["e", "d", "c", "b", "a"], init_answers=None if setting is None else str(setting))
        assert torch.equal(model.classifier.weight, weights_of(start)["classifier.weight"].flip(0))

    def test_a_head_that_does_not_say_its_answers(self, tmp_path: Path) -> None:
        start = saved(tmp_path / "best.ckpt")
        folder = as_folder(start, tmp_path / "model", id2label={str(n): f"LABEL_{n}" for n in range(5)})
        with pytest.raises(
            UserError, match=r"model has a head of 5 answers and does not say which, .*init_answers=FILE"
        ):
            begun(folder, list("abcde"))
        taken = weights_of(start)["classifier.weight"]
        assert not (begun(folder, list("abcde"), init_answers="none").classifier.weight == taken).any()
        assert begun(folder, list("abcd")).classifier.weight.shape == (4, 16)
        with pytest.raises(UserError, match=r"few\.json lists 2 answers, and .*model has a head for 5"):
            (tmp_path / "few.json").write_text('["a", "b"]')
            begun(folder, list("abcde"), init_answers=str(tmp_path / "few.json"))
        with pytest.raises(UserError, match="holds the answer 'a' 2 times"):
            named = as_folder(start, tmp_path / "twice", id2label=dict(enumerate("aacde")))
            begun(named, list("abcde"))

    def test_two_classes_of_another_meaning_are_not_taken(self, tmp_path: Path) -> None:
        sizes: Any = {**SIZES, "num_labels": 2}
        state = {f"model.{n}": one for n, one in VinVLForAnswering(VinVLConfig(**sizes)).state_dict().items()}
        of_pairs: Any = {"state_dict": state, "hyper_parameters": {"model_config": sizes}}
        of_answers = {**of_pairs, "hyper_parameters": {"model_config": sizes, "answers": ["no", "yes"]}}
        pairs, answers = saved(tmp_path / "pairs.ckpt", **of_pairs), saved(tmp_path / "vqa.ckpt", **of_answers)
        taken = state["model.classifier.weight"]
        assert not (begun(answers, None).classifier.weight == taken).any()
        assert not (begun(pairs, ["no", "yes"]).classifier.weight == taken).any()
        assert torch.equal(begun(pairs, None).classifier.weight, taken)


WORDS = dict(enumerate(["[PAD]", "[unused0]", "[CLS]", "cat", "dog", "red"]))


class TestWords:
    def of_run(self, path: Path, words: dict[int, str] | None) -> Path:
        record = {"task_class": "vinvl.gqa.task.GQATask", "run_config": {}, "words": words}
        return saved(path, vinvl=record)

    @pytest.mark.parametrize(
        "here",
        [
            {**WORDS, 1: "kettle"},  # in place of one that BERT leaves free
            {**WORDS, 6: "kettle"},  # one more
            {number: word for number, word in WORDS.items() if number != 5},  # one less
        ],
    )
    def test_words_of_ones_own_beside_those_of_the_checkpoint(self, here: dict[int, str], tmp_path: Path) -> None:
        begun(self.of_run(tmp_path / "best.ckpt", WORDS), list("abcde"), words=here)

    def test_other_words_are_refused(self, tmp_path: Path) -> None:
        here = {**WORDS, 3: "dog", 4: "cat"}
        sentence = r"best.ckpt was trained with other words .*: 2 of 6 differ \(3 was 'cat' and is 'dog'; 4 was 'dog'"
        with pytest.raises(UserError, match=sentence):
            begun(self.of_run(tmp_path / "best.ckpt", WORDS), list("abcde"), words=here)
        begun(self.of_run(tmp_path / "old.ckpt", None), list("abcde"), words=here)  # not known there

    def test_the_vocabulary_beside_a_folders_weights(self, tmp_path: Path) -> None:
        folder = as_folder(saved(tmp_path / "best.ckpt"), tmp_path / "model", id2label=dict(enumerate("abcde")))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (folder / "vocab.txt").write_text("\n".join([*special, "cat", "dog"]) + "\n")
        begun(folder, list("abcde"), words=dict(enumerate([*special, "cat", "dog"])))
        with pytest.raises(UserError, match=r"model was trained with other words .*: 1 of 6 differ \(5 was 'cat'"):
            begun(folder, list("abcde"), words=dict(enumerate([*special, "dog"])))

"""Our own checkpoints through `python -m vinvl.convert`: task, answers, tokenizer, data and metrics go along."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_convert_weights import run
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.models.weight_files import find_checkpoint
from vinvl.opening import results_of
from vinvl.predictor.trained import published_inputs
from vinvl.run.errors import UserError
from vinvl.run.files import new_folder

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 20, "img_feature_dim": 14, "num_labels": 3, "loss_type": "ce",
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The best checkpoint of a GQA run, as training lays it out, with its results and its tokenizer."""
    torch.manual_seed(1)
    words = tmp_path / "words"
    words.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(25))]
    (words / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    data = {
        "_target_": "vinvl.gqa.data.GQADataModule", "tokenizer": str(words),
        "regions": ["/secret/home/gqa.h5", {"from": "/secret/feats.pt", "to": "/secret/home/more.h5"}],
        "stores": {"val": "/secret/home/gqa.h5"},
        "max_tokens": 20, "use_tags": False, "tags": "/secret/home/tags.json",
    }  # fmt: skip
    content = {
        "state_dict": {f"model.{n}": t for n, t in VinVLForAnswering(VinVLConfig(**SIZES)).state_dict().items()},
        "hyper_parameters": {"model_config": SIZES, "answers": ["yes", "no", "left"]},
        "vinvl": {
            "task_class": "vinvl.gqa.task.GQATask", "batches_seen": 3, "run_config": {"name": "my_gqa", "data": data},
            "features": {"detector": "X152", "feature_dtype": "float16", "provenance": {"boxes": "regressed"}},
        },
    }  # fmt: skip
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    write_results(path, str(path))
    return path


def write_results(checkpoint: Path, scored: Any) -> None:
    results = {"split": "testdev", "checkpoint": scored, "scores": {"accuracy": 64.25}}
    (checkpoint.parents[1] / "results.json").write_text(json.dumps(results))


def test_what_is_written(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = run(checkpoint, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "VinVLForAnswering" in printed and "conversion.txt" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "words"]
    model = VinVLForAnswering.from_pretrained(there)
    tensors = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, tensors[f"model.{name}"]) for name, tensor in model.state_dict().items())
    assert model.config.id2label == {0: "yes", 1: "no", 2: "left"}
    assert json.loads((there / "answers.json").read_text()) == ["yes", "no", "left"]
    use = json.loads((there / "vinvl.json").read_text())
    assert use["task"] == "gqa" and use["features"]["provenance"] == {"boxes": "regressed"}
    assert use["inputs"] == published_inputs("gqa") | {"max_tokens": 20, "use_tags": False, "tags": "tags.json"}
    card = (there / "README.md").read_text()
    assert "question answering on GQA" in card and "| accuracy | 64.25 |" in card and "`testdev`" in card
    assert "- data: `my_gqa`" in card and "- regions: `gqa.h5, more.h5`\n- stores: `gqa.h5`" in card
    assert "secret" not in card


def test_with_a_task_and_the_other_format(checkpoint: Path, tmp_path: Path) -> None:
    there = run(checkpoint, tmp_path / "out", "task=vqa", "format=oscar")
    config = json.loads((there / "config.json").read_text())
    assert config["loss_type"] == "xe" and config["num_labels"] == 3 and config["finetuning_task"] == "vqa"


def test_answers_in_another_order_take_their_rows_along(checkpoint: Path, tmp_path: Path) -> None:
    given = tmp_path / "mine.json"
    given.write_text('["left", "kettle", "Yes"]')
    there = run(checkpoint, tmp_path / "out", f"answers={given}")
    model: Any = VinVLForAnswering.from_pretrained(there)
    assert model.config.id2label == {0: "left", 1: "kettle", 2: "Yes"}
    weight = torch.load(checkpoint, weights_only=True)["state_dict"]["model.classifier.weight"]
    assert torch.equal(model.classifier.weight[[0, 2]], weight[[2, 0]])
    assert not (model.classifier.weight[1] == weight[1]).any()
    lines = (there / "conversion.txt").read_text().splitlines()
    assert lines[-2:] == ["new answer\tkettle", "answer not used\tno"]
    given.write_text('["oui", "non", "gauche"]')  # none of them known: other names for the same
    renamed: Any = VinVLForAnswering.from_pretrained(run(checkpoint, tmp_path / "renamed", f"answers={given}"))
    assert renamed.config.id2label[1] == "non" and torch.equal(renamed.classifier.weight, weight)


@pytest.mark.parametrize("asked", [[], ["tokenizer=HERE"]])
def test_a_tokenizer_of_other_words_is_refused(asked: list[str], checkpoint: Path, tmp_path: Path) -> None:
    """Also where the one that the run names has been changed since."""
    words = tmp_path / ("other" if asked else "words") / "vocab.txt"
    if asked:
        words.parent.mkdir()
    else:
        content = torch.load(checkpoint, weights_only=True)
        content["vinvl"]["words"] = dict(enumerate((tmp_path / "words" / "vocab.txt").read_text().split()))
        torch.save(content, checkpoint)
    vocabulary = (tmp_path / "words" / "vocab.txt").read_text().replace("w24\n", "").replace("w3\n", "new\nw3\n")
    words.write_text(vocabulary)
    given = [one.replace("HERE", str(words.parent)) for one in asked]
    with pytest.raises(UserError, match=r"other words .*: 22 of 30 differ \(8 was 'w3' and is 'new'"):
        run(checkpoint, tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_what_is_refused_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="words exists already, and nothing is overwritten"):
        run(checkpoint, tmp_path / "words")
    with pytest.raises(UserError, match="has no head for this task"):
        run(checkpoint, tmp_path / "out", "task=captioning")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "words"]


def test_metrics_of_another_checkpoint_are_not_claimed(checkpoint: Path) -> None:
    assert results_of(checkpoint)["scores"] == {"accuracy": 64.25}
    for scored in ("/elsewhere/last.ckpt", None):
        write_results(checkpoint, scored)
        assert results_of(checkpoint) == {}
    (checkpoint.parents[1] / "results.json").write_text("[1]")
    assert results_of(checkpoint) == {}
    (checkpoint.parents[1] / "results.json").write_text("[")
    with pytest.raises(UserError, match=r"results\.json"):
        results_of(checkpoint)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"net.weight": torch.zeros(2)}}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"training checkpoint of vinvl\.train"):
        find_checkpoint(tmp_path / "best.ckpt")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), new_folder(tmp_path / "a" / "out") as folder:
            (folder / "part").write_text("half")
            raise error
        assert list((tmp_path / "a").iterdir()) == []
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "part").write_text("whole")
        assert not (tmp_path / "a" / "out").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "b") as folder:
        (folder / "part").write_text("new")
        (tmp_path / "b").mkdir()  # it has come up in the meantime, and is kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"] and not any((tmp_path / "b").iterdir())

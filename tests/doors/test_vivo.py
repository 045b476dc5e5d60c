"""VIVO by the doors: pre-trained, evaluated, killed and resumed, exported; captions start from it."""

import signal
from pathlib import Path

import pytest
import torch

from tests.door_in_process import CAPTIONING, TINY, WORLD, checkpoint, run_in_process, scores
from tests.models.test_convert_weights import run as convert
from tests.run.struck import Kill
from tests.run.survival_runs import KILLED, PRETRAINING, assert_same_run, run, write_corpora
from vinvl.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow
VIVO = ["experiment=demo_vivo", *TINY, "data.batch_size=8", "trainer.max_epochs=2", "data.num_workers=0"]


def test_pre_trained_evaluated_and_captions_from_it(demo_data: Path, tmp_path: Path) -> None:
    printed = run_in_process("train", demo_data, tmp_path / "vivo", *VIVO)
    assert "hidden tokens guessed" in printed and "triplets told apart" not in printed
    own_data = ["data=demo_vivo", *WORLD, "trainer.accelerator=cpu"]
    run_in_process("evaluate", demo_data, tmp_path / "scored", checkpoint(tmp_path / "vivo"), *own_data)
    assert scores(tmp_path / "scored") == scores(tmp_path / "vivo")
    assert scores(tmp_path / "vivo").keys() == {
        "mean_accuracy",
        "loss",
        "masked_accuracy",
        "masked_accuracy/tags",
        "masked_loss",
    }
    weights = read_checkpoint(tmp_path / "vivo/checkpoints/last.ckpt")["state_dict"]
    convert(tmp_path / "vivo/checkpoints/last.ckpt", tmp_path / "oscar", "task=pretraining", "format=oscar")
    published = torch.load(tmp_path / "oscar/pytorch_model.bin", weights_only=True)
    names = {"bert.img_embedding.weight", "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    assert names <= published.keys() and all(name.startswith(("bert.", "cls.")) for name in published)
    assert torch.equal(published["cls.predictions.bias"], weights["model.cls.predictions.bias"])
    start = f"model.init={tmp_path / 'vivo/checkpoints/last.ckpt'}"
    still = ["optim.optimizer.lr=0.0", "trainer.limit_train_batches=1", "test_after_fit=false"]
    run_in_process("train", demo_data, tmp_path / "captions", *CAPTIONING, "data=demo_nocaps", start, *still)
    captions = read_checkpoint(tmp_path / "captions/checkpoints/last.ckpt")["state_dict"]
    assert weights.keys() - captions.keys() == {f"model.cls.seq_relationship.{one}" for one in ("weight", "bias")}
    assert all(torch.equal(weights[name], captions[name]) for name in weights.keys() & captions.keys())


def test_in_the_order_in_which_they_stand(demo_data: Path, tmp_path: Path) -> None:
    for match in ("true", "false"):
        words = [*VIVO, f"task.options.match_tags={match}", "data.mask_probability=0.9", "trainer.max_epochs=1"]
        run_in_process("train", demo_data, tmp_path / match, *words)
    assert scores(tmp_path / "true")["masked_loss"] < scores(tmp_path / "false")["masked_loss"]


def test_killed_and_resumed(demo_data: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path, demo_data)
    words = [*PRETRAINING, "data.variant=vivo"]
    assert run(tmp_path / "whole", demo_data, *words) == 0
    assert run(tmp_path / "struck", demo_data, *words, kill=Kill(signal.SIGKILL, "train", 13)) == KILLED
    assert run(tmp_path / "struck", demo_data, *words) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "struck")

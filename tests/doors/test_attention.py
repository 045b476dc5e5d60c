"""model.attention: every way trains the same model."""

from pathlib import Path

import pytest
import torch

from tests.door_in_process import TINY, run_in_process, scores
from vinvl.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "ways"), [("vqa", ["auto", "sdpa"]), ("captioning", ["auto"]), ("pretraining", ["auto"])]
)
def test_all_ways_end_with_the_same_weights(task: str, ways: list[str], demo_data: Path, tmp_path: Path) -> None:
    short = ["trainer.max_steps=3", "trainer.max_epochs=-1", "data.num_workers=0", "test_after_fit=false"]
    weights = {}
    for attention in ("eager", *ways):
        run = tmp_path / attention
        run_in_process("train", demo_data, run, f"task={task}", *TINY, *short, f"model.attention={attention}")
        weights[attention] = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    for attention in ways:
        for name, expected in weights["eager"].items():
            # The gradient of a key bias is 0 but for rounding, which Adam makes a whole step of.
            if not name.endswith("attention.self.key.bias"):
                torch.testing.assert_close(weights[attention][name], expected, rtol=1e-3, atol=2e-4, msg=name)


def test_a_checkpoint_scores_the_same_by_all_of_them(demo_data: Path, tmp_path: Path) -> None:
    run_in_process("train", demo_data, tmp_path / "run", *TINY, "data.num_workers=0")
    found = scores(tmp_path / "run")
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    checkpoint["hyper_parameters"]["model_config"]["attn_implementation"] = "eager"
    torch.save(checkpoint, tmp_path / "eager.ckpt")
    run_in_process("evaluate", demo_data, tmp_path / "eager", f"ckpt_path={tmp_path / 'eager.ckpt'}")
    assert scores(tmp_path / "eager") == pytest.approx(found, rel=1e-4, abs=1e-4)

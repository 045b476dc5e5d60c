"""Pre-training on the demo world: what the data decide, and the doors."""

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from tests.door_in_process import TINY, WORLD, checkpoint, composed, refused_in_process, run_in_process, scores
from vinvl.pretraining.task import PretrainingTask
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow


def made(demo_data: Path, folder: Path, *overrides: str) -> tuple[PretrainingTask, Any]:
    """Task and data of a configuration, as `vinvl.train` makes them."""
    with composed("train", demo_data, folder / "unused", "task=pretraining", *TINY, *overrides) as config:
        datamodule = instantiate(config.data)
        datamodule.prepare_data()
        datamodule.setup("fit")
        return instantiate(config.task, datamodule=datamodule), datamodule


def test_the_data_decide_variant_and_classes(demo_data: Path, tmp_path: Path) -> None:
    three, data = made(demo_data, tmp_path)
    two, other = made(demo_data, tmp_path, "data.variant=mmf", "data.texta_false_prob=0.0")
    assert (three.variant, three.config.num_labels) == ("oscar", 3)
    assert (two.variant, two.config.num_labels) == ("mmf", 2)
    with pytest.raises(UserError, match=r"data.variant is mmf, and the model was trained with oscar"):
        three.check_datamodule(other)
    other.variant = "oscar"
    with pytest.raises(UserError, match=r"contrast has 2 classes, and the model was trained with 3"):
        three.check_datamodule(other)
    three.check_datamodule(data)


@pytest.mark.parametrize("variant", ["oscar", "mmf", "matched"])
def test_trained_and_evaluated_by_the_doors(demo_data: Path, tmp_path: Path, variant: str) -> None:
    brief = ["trainer.limit_val_batches=5", "trainer.limit_test_batches=20"]
    given = ["task=pretraining", *TINY, *brief, f"data.variant={variant}", "trainer.limit_train_batches=3"]
    printed = run_in_process("train", demo_data, tmp_path / "run", *given)
    assert "hidden tokens guessed" in printed and ("triplets told apart" in printed) == (variant != "matched")
    own_data = ["data=demo_pretraining", *WORLD, *brief, f"data.variant={variant}", "trainer.accelerator=cpu"]
    run_in_process("evaluate", demo_data, tmp_path / "scored", checkpoint(tmp_path / "run"), *own_data)
    assert scores(tmp_path / "scored") == scores(tmp_path / "run")
    if variant == "oscar":
        two_way = [checkpoint(tmp_path / "run"), *own_data, "data.texta_false_prob=0.0"]
        sentence = refused_in_process("evaluate", demo_data, tmp_path / "other", *two_way)
        assert "contrast has 2 classes, and the model was trained with 3" in sentence
    assert scores(tmp_path / "run")["masked_loss"] > 0

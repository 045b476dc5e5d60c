"""Pre-training on the demo world: what the data decide, and the doors."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from tests.door_in_process import (
    CAPTIONING,
    TINY,
    WORLD,
    checkpoint,
    composed,
    refused_in_process,
    run_in_process,
    scores,
)
from tests.door_runs import succeed
from tests.pretraining.raw import every_kind
from vinvl.pretraining.command import main
from vinvl.pretraining.making import KINDS
from vinvl.pretraining.task import PretrainingTask
from vinvl.run import door
from vinvl.run.errors import UserError
from vinvl.task import VinVLTask

pytestmark = pytest.mark.slow


def made(demo_data: Path, folder: Path, *overrides: str) -> tuple[PretrainingTask, Any]:
    """Task and data of a configuration, as `vinvl.train` makes them."""
    with composed("train", demo_data, folder / "unused", "task=pretraining", *TINY, *overrides) as config:
        datamodule = instantiate(config.data)
        datamodule.prepare_data()
        datamodule.setup("fit")
        return door.made(VinVLTask, config.task, "task", datamodule=datamodule), datamodule


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


def test_from_downloads_of_every_kind_to_a_step(demo_data: Path, tmp_path: Path) -> None:
    """The web's pictures are called by their rows: a list calls them as the store does."""
    world, images = demo_data / "demo", [100001, 100002]
    (tmp_path / "ids.tsv").write_text("0\t100001\n1\t100002\n")
    for kind, files in every_kind(tmp_path / "raw", images).items():
        ids = ["--ids", str(tmp_path / "ids.tsv")] if kind in ("conceptual_captions", "sbu") else []
        where = ["--output", str(tmp_path / "corpus"), "--store", str(world / "train.h5"), "--prefix", ""]
        assert main(["make", kind, *map(str, files), *where, *ids]) == 0
    assert {path.stem for path in (tmp_path / "corpus" / "train").iterdir()} == KINDS.keys()
    printed = run_in_process(
        "train", demo_data, tmp_path / "run", "task=pretraining", "data=oscarplus_corpus",
        f"data.splits={{train: {tmp_path / 'corpus' / 'train'}, val: {tmp_path / 'corpus' / 'train'}}}",
        f"data.regions={world / 'train.h5'}", f"data.tokenizer={world / 'tokenizer'}", "data.num_workers=0",
        *[one for one in TINY if not one.startswith("data.prepare")],
    )  # fmt: skip
    assert "hidden tokens guessed" in printed and scores(tmp_path / "run")["masked_loss"] > 0


def test_captions_of_our_own_captioner_become_a_corpus(demo_data: Path, tmp_path: Path) -> None:
    """Tags of images, predict, make: the two commands of docs/tasks.md."""
    run_in_process("train", demo_data, tmp_path / "run", *CAPTIONING, "trainer.limit_train_batches=1")
    world, tagged = demo_data / "demo", tmp_path / "tags.jsonl"
    tagged.write_text('{"image_id": "100001", "tags": ["star"]}\n{"image_id": "100002", "tags": ["circle", "star"]}\n')
    succeed(
        tmp_path, demo_data, "predict", checkpoint(tmp_path / "run"), f"data.splits.predict={{jsonl: {tagged}}}",
        "data.predict_split=predict", f"data.regions={world / 'train.h5'}", "hydra.run.dir=said",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    said = str(tmp_path / "said" / "predictions.jsonl")
    assert main(["make", "open_images", said, "--tags", str(tagged), "--output", str(tmp_path / "corpus")]) == 0
    lines = (tmp_path / "corpus" / "train" / "open_images.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["image_id"], row["tags"]) for row in rows] == [("100001", ["star"]), ("100002", ["circle", "star"])]
    best = [json.loads(line)["top"][0]["caption"] for line in Path(said).read_text().splitlines()]
    assert [row["text"] for row in rows] == [one.strip() for one in best]

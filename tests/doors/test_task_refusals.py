"""Bad input to the tasks at the doors: exit code 1, one sentence, nothing left of the run."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Door, refusal
from tests.door_in_process import CAPTIONING, TINY, checkpoint, refused_in_process, run_in_process, scores
from vinvl.regions import Regions, RegionStore, RegionStoreWriter

pytestmark = pytest.mark.slow

SHORT = ["trainer.max_steps=1", "test_after_fit=false", "trainer.limit_val_batches=1"]
Refused = Callable[..., str]


@pytest.fixture
def refused(demo_data: Path, tmp_path: Path) -> Refused:
    """The sentence of a training run that is refused."""

    def run(*overrides: str) -> str:
        return refused_in_process("train", demo_data, tmp_path / "refused", *overrides)

    return run


def karpathy(demo_data: Path, path: Path, change: Callable[[list[Any]], object]) -> list[str]:
    """Overrides that train on a changed copy of the demo world's captions."""
    content = json.loads((demo_data / "demo" / "dataset_demo.json").read_text())
    change([image for image in content["images"] if image["split"] in ("train", "restval")])
    path.write_text(json.dumps(content))
    return [*CAPTIONING, f"data.splits.train.karpathy={path}"]


def test_a_new_process_exits_with_one_sentence_and_leaves_nothing(door: Door, tmp_path: Path) -> None:
    sentence = refusal(door("train", "task=nlvr2", "data=demo_vqa", *TINY))
    assert "NLVR2Task needs data of the kind NLVR2DataModule, and data is a VQADataModule" in sentence
    assert not any(path.is_file() for path in tmp_path.glob("runs/**/*"))


@pytest.mark.parametrize(
    ("task", "data", "needed", "found"),
    [
        ("vqa", "demo_gqa", "VQADataModule", "GQADataModule"),
        ("gqa", "demo_vqa", "GQADataModule", "VQADataModule"),
        ("nlvr2", "demo_captioning", "NLVR2DataModule", "CaptioningDataModule"),
    ],
)
def test_data_of_another_task(refused: Refused, task: str, data: str, needed: str, found: str) -> None:
    sentence = refused(f"task={task}", f"data={data}", *TINY)
    assert needed in sentence and f"is a {found}" in sentence and "choose data=NAME to fit task=NAME" in sentence


def test_evaluating_on_the_data_of_another_task(demo_data: Path, tmp_path: Path) -> None:
    run_in_process("train", demo_data, tmp_path / "run", "task=nlvr2", *TINY, *SHORT)
    given = [checkpoint(tmp_path / "run", "last"), "data=demo_gqa", *TINY[:4], "trainer.accelerator=cpu"]
    sentence = refused_in_process("evaluate", demo_data, tmp_path / "no", *given)
    assert "NLVR2Task needs data of the kind NLVR2DataModule" in sentence


def strangers(task: str, world: Path, folder: Path) -> list[str]:
    """Overrides that train on a copy of the demo world's file, three of whose records are of unknown images."""
    path, stranger = folder / "train.json", "424242"
    if task == "gqa":
        content = json.loads((world / "gqa_train_balanced_questions.json").read_text())
        for question in list(content.values())[:3]:
            question["imageId"] = stranger
        path.write_text(json.dumps(content))
        return ["task=gqa", *TINY, f"data.splits.train_balanced={path}"]
    if task == "nlvr2":
        records = [json.loads(line) for line in (world / "nlvr2_train.json").read_text().splitlines()]
        for record, side in zip(records[:3], ("left", "right", "left"), strict=True):
            record[f"{side}_image_id"] = stranger
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return ["task=nlvr2", *TINY, f"data.splits.train={path}"]
    return karpathy(world.parent, path, lambda images: [images[n].update(cocoid=int(stranger) + n) for n in range(3)])


@pytest.mark.parametrize("task", ["gqa", "nlvr2", "captioning"])
def test_missing_images_are_named_counted_and_skipped_on_request(
    refused: Refused, demo_data: Path, tmp_path: Path, task: str
) -> None:
    chosen = strangers(task, demo_data / "demo", tmp_path)
    sentence = refused(*chosen)
    for words in ("424242", "train.json", "data.on_missing=skip", "records in all lack theirs"):
        assert words in sentence
    told = run_in_process("train", demo_data, tmp_path / "run", *chosen, *SHORT, "data.on_missing=skip")
    assert "left out 3 of " in told and "train.json" in told


def test_images_without_captions(refused: Refused, demo_data: Path, tmp_path: Path) -> None:
    def change(images: list[Any]) -> None:
        images[0]["sentences"], images[0]["sentids"] = [], []
        images[1]["sentences"][0]["raw"] = "  "

    chosen = karpathy(demo_data, tmp_path / "some.json", change)
    sentence = refused(*chosen)
    assert "some.json" in sentence and "has no captions" in sentence and "skip" in sentence
    told = run_in_process("train", demo_data, tmp_path / "run", *chosen, *SHORT, "data.on_missing_captions=skip")
    assert "split 'train' goes without 1 image without captions" in told and "1 blank caption" in told


def blank(images: list[Any]) -> None:
    images[2]["sentences"][1]["raw"] = "\t"


def wordless(images: list[Any]) -> None:
    for sentence in (sentence for image in images for sentence in image["sentences"]):
        sentence["raw"] = "\N{CAT FACE} …"


def numbered_twice(images: list[Any]) -> None:
    images[3]["sentences"][0]["sentid"] = images[0]["sentences"][0]["sentid"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (blank, ["own.json", "is blank"]),
        (wordless, ["No reference caption has a letter or a digit of any script (the first is '\\U0001f431"]),
        (numbered_twice, ["own.json", "give every caption an id of its own"]),
    ],
)
def test_captions_that_cannot_be_used(
    refused: Refused, demo_data: Path, tmp_path: Path, change: Callable[[list[Any]], None], words: list[str]
) -> None:
    sentence = refused(*karpathy(demo_data, tmp_path / "own.json", change))
    assert all(word in sentence for word in words)


def test_references_of_one_domain_without_words(refused: Refused, demo_data: Path, tmp_path: Path) -> None:
    lines = [
        {"image_id": image["id"], "captions": ["a cat"] if number else ["…"], "domain": f"{number == 0}"}
        for number, image in enumerate(json.loads((demo_data / "demo" / "nocaps_val.json").read_text())["images"])
    ]
    (tmp_path / "domains.jsonl").write_text("\n".join(map(json.dumps, lines)))
    own = f"+data.splits.own={{jsonl:{tmp_path / 'domains.jsonl'}}}"
    assert "No reference caption of domain 'True' has a letter" in refused(*CAPTIONING, own, "data.val_split=own")


@pytest.mark.parametrize("items", ["captions", "images"])
def test_images_only_cannot_be_trained_on_or_scored(refused: Refused, tmp_path: Path, items: str) -> None:
    (tmp_path / "images.jsonl").write_text('{"image_id": 100001}\n{"image_id": 100002}\n')
    chosen = [f"data.training_items={items}", f"+data.splits.own={{jsonl:{tmp_path / 'images.jsonl'}}}"]
    assert "Split 'own' has no annotations" in refused(*CAPTIONING, *chosen, "data.train_split=own")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+data.splits.own=nowhere", "data.train_split=own"], r"data\.splits\.own is .*: give \{karpathy: FILE"),
        (["+data.splits.own={coco:[a]}", "data.train_split=own"], r"data\.splits\.own is .*: give \{karpathy: FILE"),
        (["data.on_missing_captions=maybe"], "choose error or skip"),
        (["data.training_items=words"], "choose one of captions, images"),
    ],
)
def test_forms_and_ways_that_there_are_not(refused: Refused, overrides: list[str], words: str) -> None:
    assert re.search(words, refused(*CAPTIONING, *overrides))


def test_a_tokenizer_without_a_mask_token(refused: Refused, demo_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_data / "demo" / "tokenizer", tmp_path / "maskless"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # BERT's own would put it back
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sentence = refused(*CAPTIONING, f"data.tokenizer={folder}")
    assert "maskless' has no mask_token" in sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["decoding.max_length=99"], "may take 129 positions, and the model knows 128: lower data.max_tokens or decod"),
        (["decoding.num_beams=0"], "num_beams=0 cannot be"),
        (["task.options.validation_beams=0"], "num_beams=0 cannot be"),
        (["task.options.label_smoothing=1.0"], "task.options.label_smoothing is 1.0; give a share"),
        (["task.options.drop_worst_ratio=1.5"], "task.options.drop_worst_ratio is 1.5; give a share"),
        (["task.options.scst_baseline=beam"], "scst_baseline is 'beam': choose one of greedy, sample"),
        (["task.options.scst_samples=1", "task.options.scst_baseline=sample"], "the sample baseline needs 2 or more"),
        (["decoding=constrained", "decoding.num_return_sequences=2"], "Constrained search gives one caption per image"),
        (["decoding=constrained", "decoding.constraints.max_constraints=7"], "max_constraints=7 cannot be"),
        (["decoding=constrained", "decoding.constraints.hierarchy=nowhere.json"], "nowhere.json"),
        (["decoding=constrained", "decoding.constraints.regions=nowhere.h5"], "nowhere.h5"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_settings_of_captioning_that_cannot_work(refused: Refused, overrides: list[str], sentence: str) -> None:
    """All are refused before anything is trained, also what only the end of the run would need."""
    assert sentence in refused(*CAPTIONING, *overrides)


def test_constraints_of_a_store_whose_classes_have_no_names(refused: Refused, demo_data: Path, tmp_path: Path) -> None:
    """Only the test after the training would meet them."""
    named, path = RegionStore(demo_data / "demo" / "test.h5"), tmp_path / "nameless.h5"
    with RegionStoreWriter(path, feature_dim=named.feature_dim) as writer:
        for one in map(named.at, range(len(named))):
            writer.add(Regions(one.image_id, one.features, one.boxes, width=one.width, height=one.height))
    sentence = refused(*CAPTIONING, "decoding=constrained", f"+data.stores.test={path}")
    assert "has no names of classes, of which constraints are: give decoding.constraints.regions=FILE" in sentence


def test_more_tokens_than_the_model_has_positions(refused: Refused) -> None:
    sentence = refused("task=nlvr2", *TINY, "data.max_tokens=129")
    assert "may take 129 positions, and the model knows 128: lower data.max_tokens, or raise" in sentence


@pytest.mark.parametrize("value", ["???", "'${vinvl.required:model.init}'"])  # what a recipe may say
def test_weights_to_start_from_that_must_be_given(refused: Refused, value: str) -> None:
    sentence = refused("task=nlvr2", *TINY, f"model.init={value}")
    assert sentence == "error: model.init must be given: pass model.init=VALUE."


def test_splits_of_ones_own_must_be_given(refused: Refused) -> None:
    sentence = refused("task=captioning", "data=captions", "trainer=cpu")
    assert "data.splits" in sentence and "data.regions" in sentence and "must be given" in sentence


def test_an_nlvr2_split_without_labels_cannot_be_trained_on(refused: Refused, demo_data: Path, tmp_path: Path) -> None:
    for split in ("train", "dev"):
        records = [json.loads(line) for line in (demo_data / "demo" / f"nlvr2_{split}.json").read_text().splitlines()]
        path = tmp_path / f"{split}.json"
        path.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "label"}) + "\n" for r in records))
        sentence = refused("task=nlvr2", *TINY, f"data.splits.{split}={path}")
        assert f"Split '{split}' has no annotations" in sentence


def test_statements_whose_consistency_cannot_be_told(demo_data: Path, tmp_path: Path) -> None:
    """They are trained on and scored by accuracy alone, and that is said."""
    lines = (demo_data / "demo" / "nlvr2_dev.json").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[3]["identifier"] = "my-own"
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = ["task=nlvr2", *TINY, "trainer.max_steps=1", f"data.splits.dev={path}", "data.test_split=dev"]
    told = run_in_process("train", demo_data, tmp_path / "run", *given)
    assert "consistency is not computed, for " in told and "line 4 (identifier my-own)" in told
    assert scores(tmp_path / "run").keys() == {"accuracy", "loss"}


def test_a_test_split_that_cannot_be_scored_is_told_before_the_training(refused: Refused) -> None:
    sentence = refused("task=retrieval", *TINY, "data.test_candidates=1k", "data.test_images=null")
    assert "test_candidates=1k asks for 1,000 images" in sentence and "pass test_after_fit=false" in sentence
    sentence = refused("task=nlvr2", *TINY, "data.splits.test1=gone.json")
    assert "gone.json does not exist" in sentence and "pass test_after_fit=false" in sentence

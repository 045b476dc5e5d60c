"""VQA, GQA and NLVR2 as released: data modules on small replicas give what Oscar's dataset classes gave."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import vinvl
from tests import golden
from vinvl.data.sampling import Draw
from vinvl.run.folders import config_directory, register_resolvers

REPLICA = golden.FOLDER / "published/replica"
TASKS = {"vqa": "vqa2", "gqa": "gqa", "nlvr2": "nlvr2"}
SPLITS = {  # Oscar's name → ours
    "vqa": {"train": "train", "val": "val", "test-dev2015": "test-dev", "test2015": "test"},
    "gqa": {"train": "train_all", "val": "val", "test-dev": "testdev_all", "test": "submission"},
    "nlvr2": {"train": "train", "val": "dev", "test1": "test1"},
}
FACTS = {task: golden.facts(f"published/expected/{task}") for task in TASKS}
ARRAYS = {task: golden.arrays(f"published/expected/{task}") for task in TASKS}
SETTINGS = [
    (task, name)
    for task in TASKS
    for name in FACTS[task]["datasets"]
    if not name.startswith("one_sequence")  # without --use_pair: both images in one sequence, which is not offered
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


def datamodule(task: str, stores: Path, *overrides: str, root: Path = REPLICA) -> Any:
    register_resolvers()
    given = [
        f"task={task}", f"data={TASKS[task]}_published", f"published.root={root}", f"published.stores={stores}",
        f"data.tokenizer={REPLICA / 'vocabulary'}", "data.num_workers=0", "data.token_cache=null", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        return instantiate(compose("train", overrides=given).data)


def prepared(task: str, split: str, stage: str, stores: Path, *overrides: str) -> Any:
    """The dataset of a split, as a door would make it."""
    chosen = [f"data.{one}_split={split}" for one in ("train", "val", "test", "predict")]
    data = datamodule(task, stores, *chosen, *overrides)
    data.prepare_data()
    data.setup(stage)
    return data


def joint_mask(item: Any, tokens: int, regions: int) -> list[int]:
    text, seen = len(item.input_ids), len(item.regions)
    return [1] * text + [0] * (tokens - text) + [1] * seen + [0] * (regions - seen)


def padded(ids: np.ndarray, length: int) -> list[int]:
    return [*ids.tolist(), *[0] * (length - len(ids))]


@pytest.mark.parametrize(("task", "name"), SETTINGS, ids=str)
def test_rows_are_those_of_oscar(task: str, name: str, stores: Path) -> None:
    split = name.rpartition(".")[2]
    facts, arrays = FACTS[task]["datasets"][name], ARRAYS[task]
    tokens, regions = facts["max_seq_length"], facts["max_img_seq_length"]
    tags = facts.get("use_label_seq", True)
    limits = [f"data.max_tokens={tokens}", f"data.max_regions={regions}", f"data.use_tags={tags}"]
    unannotated = facts["examples"][0]["label"] is None
    data = prepared(task, SPLITS[task][split], "predict" if unannotated else "validate", stores, *limits)
    dataset = data.datasets["predict" if unannotated else "val"]
    assert len(dataset) == len(facts["examples"])
    for row, example in enumerate(facts["examples"]):
        item = dataset[Draw(0, row)]
        recorded = {key.rpartition(".")[2]: arrays[key] for key in arrays if key.startswith(f"{name}.{row}.")}
        sides = item if task == "nlvr2" else (item,)
        for side, one in enumerate(sides):
            sided = [key for key in recorded if key not in ("label", "q_id")]
            rows = {key: recorded[key][side] if task == "nlvr2" else recorded[key] for key in sided}
            assert padded(one.input_ids, tokens) == rows["input_ids"].tolist()
            assert padded(one.token_type_ids, tokens) == rows["segment_ids"].tolist()
            assert joint_mask(one, tokens, regions) == rows["input_mask"].tolist()
            if "img_feat_rows" in rows:
                assert len(one.regions) == rows["img_feat_rows"]
        check_record(task, dataset.records.row(row), example, recorded)
        if "text_b" in example and task == "vqa":
            assert example["text_b"] == " ".join(dataset.records["tags"][row])
        if not unannotated:
            check_labels(task, sides[0], recorded, data)


def check_record(task: str, record: dict[str, Any], example: Any, recorded: dict[str, Any]) -> None:
    if task == "nlvr2":
        images = [example["img_key"][side] for side in ("left", "right")]
        assert [record["left_image_id"], record["right_image_id"]] == images
        assert record["sentence"] == example["text_a"] and record["label"] == example["label"]
        if example["text_b"] is not None:
            given = [example["text_b"][side] for side in ("left", "right")]
            assert [";".join(record[f"{side}_tags"]) for side in ("left", "right")] == given
        assert recorded["q_id"].tolist() == [0]
        return
    assert record["question"] == example["text_a"] and record["image_id"] == str(example["img_key"])
    assert record["tags"] == [tag for tag in example["text_b"].replace(";", " ").split(" ") if tag] or " " in str(
        record["tags"]
    )
    if example["q_id"]:  # Oscar writes 0 where it does not read the id
        assert int(record["question_id"]) == example["q_id"] == recorded["q_id"].item()
    else:
        assert recorded["q_id"].item() == 0


def check_labels(task: str, item: Any, recorded: dict[str, Any], data: Any) -> None:
    if task == "nlvr2":
        assert item.label_ids.tolist() == [int(recorded["label"])]
        return
    answers = data.vocabulary.answers
    if task == "gqa":
        assert item.label_ids.tolist() == recorded["label"].tolist() == recorded["label_again"].tolist()
        assert list(answers) == [FACTS["gqa"]["label2ans"][number] for number in FACTS["gqa"]["labels"]]
        return
    target = np.zeros(len(answers), dtype=np.float32)
    target[item.label_ids] = item.label_scores
    assert target.tolist() == recorded["target"].tolist()
    assert len(answers) == len(FACTS["vqa"]["labels"]) and recorded["label_first"].item() in item.label_ids


@pytest.mark.parametrize("task", TASKS)
def test_features_and_geometry_are_those_of_the_files(task: str, stores: Path) -> None:
    arrays, seen = ARRAYS[task], 0
    for oscar, split in SPLITS[task].items():
        data = prepared(task, split, "predict", stores)
        start = f"features.{oscar}." if task == "vqa" else "features."
        for key in (key for key in arrays if key.startswith(start)):
            image_id = key.removeprefix(start)
            regions = data.store[image_id]
            assert np.array_equal(regions.features, arrays[key])
            rows = regions.rows(len(regions))[:, -6:]
            np.testing.assert_allclose(rows, arrays[key.replace("features", "geometry", 1)], rtol=0, atol=1e-4)
            seen += 1
    assert seen


def logits_of(task: str, split: str, stores: Path) -> torch.Tensor:
    data = prepared(task, SPLITS[task][split], "predict", stores)
    folder = REPLICA / f"model_ckpts/{task}/base/best"
    answers = {} if task == "nlvr2" else {"answers": data.answers_path}
    for file in ("pytorch_model.bin", "vocab.txt"):
        golden.whole(f"published/replica/model_ckpts/{task}/base/best/{file}")
    loaded = vinvl.load(folder, task=task, **answers)
    items = [data.datasets["predict"][Draw(0, row)] for row in range(len(data.datasets["predict"]))]
    batch = data.datasets["predict"].collate(items)
    with torch.no_grad():
        logits: torch.Tensor = loaded.trained.model(**batch.inputs()).logits
    return logits


@pytest.mark.parametrize(
    ("task", "split"),
    [(task, key.split(".")[1]) for task in TASKS for key in ARRAYS[task] if key.startswith("checkpoint.")],
)
def test_released_checkpoints_give_the_recorded_logits(task: str, split: str, stores: Path) -> None:
    expected = ARRAYS[task][f"checkpoint.{split}.logits"]
    np.testing.assert_allclose(logits_of(task, split, stores).numpy(), expected, rtol=0, atol=1e-5)

"""VQA, GQA and NLVR2 as released: data modules on small replicas give what Oscar's dataset classes gave."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import vinvl
from tests import golden
from tests.door_in_process import examples, refused_in_process, run_in_process, scores
from tests.models.test_convert_weights import HeadOfMMF, as_mmf
from tests.models.test_convert_weights import run as convert_weights
from vinvl.data.sampling import Draw
from vinvl.published import convert_published
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory, register_resolvers
from vinvl.vqa.answers import read_answers, warn_of_other_splits

REPLICA = golden.FOLDER / "published/replica"
TASKS = {"vqa": "vqa2", "gqa": "gqa", "nlvr2": "nlvr2"}
SPLITS = {  # Oscar's name → ours
    "vqa": {"train": "train", "val": "val", "test-dev2015": "test-dev", "test2015": "test"},
    "gqa": {"train": "train_all", "val": "val", "test-dev": "testdev_all", "test": "submission"},
    "nlvr2": {"train": "train", "val": "dev", "test1": "test1"},
}
FACTS = {task: golden.facts(f"published/expected/{task}") for task in TASKS}
ARRAYS = {task: golden.arrays(f"published/expected/{task}") for task in TASKS}
SETTINGS = [(task, name) for task in TASKS for name in FACTS[task]["datasets"]]


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


def regions_of(item: Any) -> int:
    return sum(map(len, (item.regions, *item.more_regions)))


def joint_mask(item: Any, tokens: int, regions: int) -> list[int]:
    text, seen = len(item.input_ids), regions_of(item)
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
    one_sequence = not facts.get("use_pair", True)
    limits += ["data.one_sequence=true"] if one_sequence else []
    regions *= 1 + one_sequence
    unannotated = facts["examples"][0]["label"] is None
    data = prepared(task, SPLITS[task][split], "predict" if unannotated else "validate", stores, *limits)
    dataset = data.datasets["predict" if unannotated else "val"]
    assert len(dataset) == len(facts["examples"])
    assert one_sequence == name.startswith("one_sequence")
    for row, example in enumerate(facts["examples"]):
        item = dataset[Draw(0, row)]
        recorded = {key.rpartition(".")[2]: arrays[key] for key in arrays if key.startswith(f"{name}.{row}.")}
        if "names" in FACTS[task]:
            assert recorded.keys() <= {*FACTS[task]["names"]}  # img_feat is compared as features and geometry
        sides = item if task == "nlvr2" else (item,)
        for side, one in enumerate(sides):
            sided = [key for key in recorded if key not in ("label", "q_id")]
            rows = {key: recorded[key][side] if len(sides) > 1 else recorded[key] for key in sided}
            assert padded(one.input_ids, tokens) == rows["input_ids"].tolist()
            assert padded(one.token_type_ids, tokens) == rows["segment_ids"].tolist()
            assert joint_mask(one, tokens, regions) == rows["input_mask"].tolist()
            if "img_feat_rows" in rows:
                assert regions_of(one) == rows["img_feat_rows"]
        check_record(task, dataset.records.row(row), example, recorded)
        if "text_b" in example and task == "vqa":
            assert example["text_b"] == " ".join(dataset.records["tags"][row])
        if not unannotated:
            check_labels(task, sides[0], recorded, data)


VQA_ANSWERS = read_answers(REPLICA / "vqa/cache/trainval_ans2label.pkl")


def rounded(numbers: list[float] | None) -> list[float] | None:
    """Of float32 what a file had."""
    return None if numbers is None else [round(number, 6) for number in numbers]


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
    if task == "vqa":  # numbers of answers and their scores, in the order of the file
        numbers = None if example["label"] is None else [VQA_ANSWERS[number] for number in example["label"]]
        assert (numbers, example["score"]) == (record.get("target_answers"), rounded(record.get("target_scores")))
    assert {"vqa": " ", "gqa": ";"}[task].join(record["tags"]) == example["text_b"]
    if example["q_id"]:  # Oscar writes 0 where it does not read the id
        assert int(record["question_id"]) == example["q_id"] == recorded["q_id"].item()
    else:
        assert recorded["q_id"].item() == 0


def check_labels(task: str, item: Any, recorded: dict[str, Any], data: Any) -> None:
    if task == "nlvr2":
        assert item.label_ids.tolist() == [recorded["label"].item()]
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


@pytest.mark.parametrize("most", [1, 2, 3, 40])
def test_regions_of_both_images_in_one_sequence_are_cut_together(most: int, stores: Path) -> None:
    limits = [f"data.max_regions={most}", "data.use_tags=true"]
    data = prepared("nlvr2", "train", "validate", stores, "data.one_sequence=true", *limits)
    dataset, arrays = data.datasets["val"], ARRAYS["nlvr2"]
    costs = dataset.lengths()
    batch = dataset.collate([dataset[Draw(0, row)] for row in range(len(dataset))])
    assert len(batch) == batch.num_items == len(batch.labels) == 3
    text, padded = batch.input_ids.shape[1], batch.region_features
    for row, record in enumerate(batch.records):
        images = dataset.records.image_ids[record["index"]]
        for name, columns in (("features", slice(-6)), ("geometry", slice(-6, None))):
            expected = np.concatenate([arrays[f"{name}.{image}"] for image in images])[: 2 * most]
            regions = padded[row, : len(expected), columns].numpy()
            np.testing.assert_allclose(regions, expected, rtol=0, atol=0 if name == "features" else 1e-4)
        assert batch.attention_mask[row, text:].sum() == len(expected) and not padded[row, len(expected) :].any()
        specials = 3  # [CLS] and two of [SEP]
        assert batch.attention_mask[row].sum() == costs[record["index"]] + specials


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


def door(name: str, task: str, stores: Path, output: Path, *overrides: str) -> None:
    weights = f"ckpt_path={REPLICA / f'model_ckpts/{task}/base/best'}"
    places = [f"published.root={REPLICA}", f"published.stores={stores}", "trainer=cpu", "data.num_workers=0"]
    run_in_process(name, output, output, f"data={TASKS[task]}_published", weights, *places, *overrides)


def test_a_head_of_mmf_is_scored_and_loaded(stores: Path, tmp_path: Path) -> None:
    """The released encoder with a head as MMF builds it, in a checkpoint of MMF's."""
    released = vinvl.load(REPLICA / "model_ckpts/vqa/base/best", task="vqa", answers=VQA_ANSWERS).trained.model
    torch.manual_seed(0)
    head = HeadOfMMF(released.config.hidden_size, 2 * released.config.hidden_size, 2, len(VQA_ANSWERS)).eval()
    tensors = {name: one for name, one in released.state_dict().items() if "pooler" not in name}
    tensors = as_mmf({name: one for name, one in tensors.items() if name.startswith("bert.")}, "vinvl.")
    tensors |= {f"vinvl.classifier.{name}": one for name, one in head.state_dict().items()}
    torch.save(tensors, tmp_path / "m.pth")
    told = {"num_attention_heads": released.config.num_attention_heads}
    (tmp_path / "config.json").write_text(json.dumps(told))
    convert_weights(tmp_path / "m.pth", tmp_path / "model", "task=vqa", f"tokenizer={REPLICA / 'vocabulary'}")
    dataset = prepared("vqa", "val", "validate", stores).datasets["val"]
    batch = dataset.collate([dataset[Draw(0, row)] for row in range(len(dataset))])
    model = vinvl.load(tmp_path / "model", answers=VQA_ANSWERS).trained.model
    with torch.no_grad():
        logits = head(released.bert(**batch.inputs()).last_hidden_state)
        torch.testing.assert_close(model(**batch.inputs()).logits, logits, rtol=0, atol=1e-5)
    chosen = batch.labels[torch.arange(len(logits)), logits.argmax(dim=1)]
    door("evaluate", "vqa", stores, tmp_path / "run", "data.test_split=val", f"ckpt_path={tmp_path / 'model'}")
    assert scores(tmp_path / "run")["accuracy/overall"] == pytest.approx(100 * chosen.mean().item(), abs=1e-4)
    rows = examples(tmp_path / "run")
    assert [row["score"] for row in rows] == pytest.approx((100 * chosen).tolist())
    assert rows[0]["truth"] and all(one.endswith(")") for row in rows for one in row["truth"])


@pytest.mark.parametrize(
    ("name", "task", "read"), [("evaluate", "vqa", ["val"]), ("predict", "gqa", ["submission"])], ids=str
)
def test_training_questions_are_not_read_where_nobody_asks_for_them(
    name: str, task: str, read: list[str], stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, seen = type(datamodule(task, stores)), list[str]()
    own = kind.read_split
    monkeypatch.setattr(kind, "read_split", lambda self, split: seen.append(split) or own(self, split))
    door(name, task, stores, tmp_path, "data.test_split=val")
    assert seen == read


def test_a_baseline_that_cannot_be_had_is_said_to_be_missing(stores: Path, tmp_path: Path) -> None:
    door("evaluate", "gqa", stores, tmp_path / "both", "data.test_split=val")
    shutil.copytree(REPLICA / "GQA", root := tmp_path / "root/GQA")
    for path in root.rglob("gqa_all_qla_train*"):
        path.unlink()
    places = ["data=gqa_published", f"published.root={root.parent}", f"published.stores={stores}", "trainer=cpu"]
    weights = [f"ckpt_path={REPLICA / 'model_ckpts/gqa/base/best'}", "data.test_split=val", "data.num_workers=0"]
    printed = run_in_process("evaluate", tmp_path / "alone", tmp_path / "alone", *places, *weights)
    assert "not known: no training answers are there" in printed
    whole = scores(tmp_path / "both")
    assert whole.pop("most_frequent_answer") >= 0
    assert scores(tmp_path / "alone") == whole


def test_submissions_are_those_of_oscar(stores: Path, tmp_path: Path) -> None:
    door("predict", "vqa", stores, tmp_path / "vqa", "data.predict_split=test-dev")
    expected: Any = golden.facts("published/expected/vqa_test-dev2015_results")
    sent = json.loads((tmp_path / "vqa/results.json").read_text())
    assert sent == [{"question_id": one["question_id"], "answer": one["answer"]} for one in expected]
    door("predict", "vqa", stores, tmp_path / "all", "data.predict_split=test_all")
    both = json.loads((tmp_path / "all/results.json").read_text())
    asked = json.loads((REPLICA / "vqa/test2015_qla_mrcnn.json").read_text())
    assert both[: len(sent)] == sent and [one["question_id"] for one in both[len(sent) :]] == [x["q_id"] for x in asked]
    door("predict", "gqa", stores, tmp_path / "gqa")
    expected = golden.facts("published/expected/gqa_test_results")
    sent = json.loads((tmp_path / "gqa/results.json").read_text())
    asked = json.loads((REPLICA / "GQA/0.4/gqa_all_qla_submission.json").read_text())
    assert [one["questionId"] for one in sent] == [one["q_id"] for one in asked]  # Oscar loses the leading zeros
    own = [(str(int(one["questionId"])), one["prediction"]) for one in sent]
    assert own == [(one["questionId"], one["prediction"]) for one in expected]


def test_a_model_folder_wants_its_data_and_its_answers(stores: Path, tmp_path: Path) -> None:
    weights = f"ckpt_path={REPLICA / 'model_ckpts/vqa/base/best'}"
    assert "does not name its data: pass data=NAME" in refused_in_process("evaluate", tmp_path, tmp_path, weights)
    places = ["data=vqa2_published", f"published.root={REPLICA}", f"published.stores={stores}"]
    told = refused_in_process(
        "evaluate", tmp_path, tmp_path, *places, weights,
        f"data.answers={REPLICA / 'GQA/questions1.2/trainval_testdev_all_ans2label.pkl'}",
    )  # fmt: skip
    assert "chooses between 10 answers and" in told and "lists 8: pass data.answers=FILE" in told
    assert "published.root must be given" in refused_in_process(
        "evaluate", tmp_path, tmp_path, "data=vqa2_published", weights
    )
    pairs = f"ckpt_path={REPLICA / 'model_ckpts/nlvr2/base/best'}"
    places = ["data=nlvr2_published", f"published.root={REPLICA}", f"published.stores={stores}"]
    told = refused_in_process("evaluate", tmp_path, tmp_path, *places, pairs, "data.one_sequence=true")
    assert "is read as a VinVLForPairs, and for these data there is to be a VinVLForAnswering" in told


QUESTION = {"q": "What?", "o": "dog;cat", "img_id": 1, "q_id": 3, "an": [0], "s": [0.3]}


@pytest.mark.parametrize(
    ("task", "changes", "sentence"),
    [
        ("vqa", {"an": [10], "s": [1]}, r"record 1 has the answer number 10, and the answer vocabulary ends at 9"),
        ("vqa", {"an": [0, 1]}, r"record 1 has 2 answers \(an\) and 1 scores \(s\)"),
        ("vqa", {"an": [1, 1], "s": [1, 1]}, "record 1 has an answer twice"),
        ("vqa", {"s": None}, r"record 1 has 1 answers \(an\) and 0 scores \(s\)"),
        ("vqa", {"s": [2.0]}, r"record 1: a score \(s\) is not above 0"),
        ("vqa", {"q": " "}, "questions.json.*q"),
        ("vqa", {"q": ...}, "questions.json.*missing required field `q`"),
        ("vqa", {"img_id": "77"}, r"has no image 77 \(asked for by .*questions.json record 1 \(question_id 3\)"),
        ("gqa", {"img_id": "1190"}, r"record 1 has scores \(s\), which only VQA's questions have"),
        ("nlvr2", {"label": 0, "img_id": {"left": "a"}, "o": {"left": ""}}, "record 1 needs a left and a right image"),
        ("nlvr2", {"label": 2, "img_id": {"left": "a", "right": "b"}, "o": {"left": ""}}, r"questions\.json.*label"),
    ],
)
def test_questions_that_cannot_be(
    task: str, changes: dict[str, Any], sentence: str, stores: Path, tmp_path: Path
) -> None:
    record = {key: value for key, value in {**QUESTION, **changes}.items() if value is not ...}
    (path := tmp_path / "questions.json").write_text(json.dumps([record]))
    given = f"[{{qla: '{path}'}}]" if task == "vqa" else str(path)
    split = SPLITS[task]["val"]
    with pytest.raises(UserError, match=sentence):
        prepared(task, split, "validate", stores, f"data.splits.{split}={given}")


def test_training_questions_may_count_several_times(stores: Path) -> None:
    path = REPLICA / "vqa/train2014_qla_mrcnn.json"
    data = prepared("vqa", "train", "fit", stores, f"data.splits.train=[{{qla: '{path}', passes: 3}}]")
    once = prepared("vqa", "train", "fit", stores).datasets["train"]
    records = data.datasets["train"].records
    assert len(records) == 3 * len(once) and len(set(records["question_id"])) == len(records)


def test_a_store_of_other_features_is_told(stores: Path, tmp_path: Path) -> None:
    """A store that was made of one folder's features is not used for another's."""
    root = tmp_path / "root"
    shutil.copytree(REPLICA / "nlvr2", root / "nlvr2")
    data = datamodule("nlvr2", tmp_path / "stores", root=root)
    data.setup("validate")
    features = root / "nlvr2/nlvr2_img_frcnn_feats.pt"
    features.write_bytes(features.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"regions\.h5 was made of nlvr2_img_frcnn_feats\.pt, .* and .* is nlvr2_img"):
        datamodule("nlvr2", tmp_path / "stores", root=root).setup("validate")
    features.unlink()
    datamodule("nlvr2", tmp_path / "stores", root=root).setup("validate")  # the store is all that is needed
    with pytest.raises(UserError, match=r"regions\.h5 does not exist, and neither does .*feats\.pt"):
        datamodule("nlvr2", tmp_path / "others", root=root).setup("validate")


def test_all_features_are_converted_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there and what is missing is said before; a second time nothing is made; a task's folder is enough."""
    root = tmp_path / "root/datasets"
    for task in ("vqa", "GQA", "nlvr2"):
        shutil.copytree(REPLICA / task, root / task)
    (root / "vqa/val_img_frcnn_feats.pt").unlink()
    shutil.rmtree(root / "vqa/tsv")
    stores = tmp_path / "stores"
    made = convert_published(root.parent, stores)
    told = capsys.readouterr().err
    assert [path.relative_to(stores).as_posix() for path in made] == [
        "vqa/train.h5", "vqa/test-dev.h5", "vqa/test.h5", "gqa/regions.h5", "nlvr2/regions.h5",
    ]  # fmt: skip
    assert "vqa2_published: 3 stores, 0 of them there already" in told
    assert "missing:" in told and "val_img_frcnn_feats.pt" in told and "vg_qla_mrcnn.json" in told
    assert told.index("GB free") < told.index("is made of")
    before = [path.stat().st_mtime_ns for path in made]
    assert convert_published(root.parent, stores) == made
    assert [path.stat().st_mtime_ns for path in made] == before
    for folder in ("GQA", "GQA/0.4"):
        (only,) = convert_published(root / folder, tmp_path / folder)
        assert only.name == "regions.h5"
    with pytest.raises(UserError, match=r"stores holds no published features: give the folder that holds"):
        convert_published(stores, stores)


def test_too_little_room_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinvl.run.files.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"has 0\.00 GB free, and the stores take .* GB: pass to=FOLDER"):
        convert_published(REPLICA / "nlvr2", tmp_path / "stores")
    assert not (tmp_path / "stores").exists()


def official(folder: Path, *images: int) -> str:
    """A split in the official form, of one question with ten answers for each image."""
    questions = [{"question_id": 9000 + image, "image_id": image, "question": "Is it?"} for image in images]
    said = [{"answers": ["yes"] * 3 + ["no"] * 7, **{key: one[key] for key in ("question_id",)}} for one in questions]
    (folder / "q.json").write_text(json.dumps({"questions": questions}))
    (folder / "a.json").write_text(json.dumps({"annotations": said}))
    return f"{{questions: '{folder / 'q.json'}', annotations: '{folder / 'a.json'}'}}"


def test_official_and_released_questions_may_be_mixed(stores: Path, tmp_path: Path) -> None:
    """As where questions of Visual Genome are added to those of VQA."""
    released = prepared("vqa", "train", "fit", stores).datasets["train"]
    image = int(released.records["image_id"][0])
    listed = f"[{official(tmp_path, image)},{{qla: '{REPLICA / 'vqa/train2014_qla_mrcnn.json'}'}}]"
    (answers := tmp_path / "answers.json").write_text(json.dumps([*prepared_answers(stores), "yes!", "no!"]))
    limits = ["data.tags=null", "data.use_tags=false", f"data.answers={answers}", f"data.splits.train={listed}"]
    data = prepared("vqa", "train", "fit", stores, *limits)
    mixed = data.datasets["train"]
    assert len(mixed) == len(released) + 1
    assert mixed.records["question_id"][0] == 9000 + image or mixed.records["question_id"][0] == str(9000 + image)
    for row in range(len(released)):
        ids, points = released.targets[row]
        assert [released.targets.answers[one] for one in ids] == [
            mixed.targets.answers[one] for one in mixed.targets[row + 1][0]
        ]
        assert sorted(points.tolist()) == sorted(mixed.targets[row + 1][1].tolist())
    targets = {mixed.targets.answers[one]: float(x) for one, x in zip(*mixed.targets[0], strict=True)}
    assert {answer.rstrip("!"): round(points, 4) for answer, points in targets.items()} == {"yes": 0.9, "no": 1.0}


def prepared_answers(stores: Path) -> list[str]:
    return list(datamodule("vqa", stores).vocabulary.answers)


def test_minival_and_what_it_leaves_are_the_same_in_every_run(stores: Path) -> None:
    path = REPLICA / "vqa/val2014_qla_mrcnn.json"
    data = datamodule("vqa", stores)
    whole, parts = data.read_split("val"), {}
    for key in ("only_images", "without_images"):
        parts[key] = datamodule("vqa", stores, f"data.splits.val=[{{qla: '{path}', {key}: 1}}]").read_split("val")
    images = {key: set(part["image_id"]) for key, part in parts.items()}
    assert len(images["only_images"]) == 1 and not images["only_images"] & images["without_images"]
    assert images["only_images"] | images["without_images"] == set(whole["image_id"])
    assert sum(map(len, parts.values())) == len(whole)
    with pytest.warns(UserWarning, match="only_images 2,000, and there are .* images: that is all of them"):
        assert len(data.read_split("minival")) == len(whole)
    with pytest.raises(UserError, match="only_images 0: give one, a number from 1"):
        datamodule("vqa", stores, f"data.splits.val=[{{qla: '{path}', only_images: 0}}]").read_split("val")


def test_answers_are_built_of_train_and_val_and_say_so(stores: Path, tmp_path: Path) -> None:
    files = official(tmp_path, 1, 2)
    given = ["data=vqa2", f"data.splits.train=[{files}]", f"data.splits.val=[{files}]", "data.min_answer_count=3"]
    answers = tmp_path / "built.json"
    data = datamodule("vqa", stores, *given, f"data.answers={answers}")
    data.prepare_data()  # each question is in both, so "no" is counted four times
    content = json.loads(answers.read_text())
    named = ["q.json", "a.json"]
    assert content == {
        "built_from": {"splits": {"train": named, "val": named}, "min_answer_count": 3},
        "answers": ["no"],
    }
    assert data.vocabulary.answers == ("no",)
    other = datamodule("vqa", stores, *given, f"data.answers={answers}", "data.answer_splits=[train]")
    with pytest.warns(
        UserWarning, match=r"built\.json were built from .*\"val\".*, and this run would build them from"
    ):
        warn_of_other_splits(answers, other.built_from)
    with pytest.raises(UserError, match=r"split 'test' has no annotations to build it from"):
        datamodule(
            "vqa", stores, *given, "data.answer_splits=[test]", f"data.answers={tmp_path / 'none.json'}",
            f"data.splits.test=[{{questions: '{tmp_path / 'q.json'}'}}]",
        ).prepare_data()  # fmt: skip


def test_features_may_be_the_tsv_form(tmp_path: Path) -> None:
    store = f"{{from: '{REPLICA / 'vqa/tsv/val_img_frcnn_feats.tsv'}', to: '{tmp_path / 'v.h5'}', assume_size: [9, 9]}}"
    data = prepared("vqa", "val", "validate", tmp_path, f"data.stores.val={store}")
    images = set(data.datasets["val"].records["image_id"])
    for image in images:
        assert np.array_equal(data.store[image].features, ARRAYS["vqa"][f"features.val.{image}"])


def test_ids_that_are_text_are_sent_as_numbers(stores: Path, tmp_path: Path) -> None:
    listed = json.loads((REPLICA / "vqa/test-dev2015_qla_mrcnn.json").read_text())
    (path := tmp_path / "test.json").write_text(json.dumps([{**one, "q_id": str(one["q_id"])} for one in listed]))
    data = prepared("vqa", "test-dev", "predict", stores, f"data.splits.test-dev=[{{qla: '{path}'}}]")
    assert list(data.datasets["predict"].records["question_id"]) == [one["q_id"] for one in listed]


def test_records_with_and_without_tags_are_not_mixed(stores: Path, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('{"questions": [{"question_id": 5, "image_id": 4006, "question": "Why?"}]}')
    (tmp_path / "a.json").write_text('{"annotations": [{"question_id": 5, "image_id": 4006, "answers": ["yes"]}]}')
    official = f"{{questions: '{tmp_path / 'q.json'}', annotations: '{tmp_path / 'a.json'}'}}"
    released = f"{{qla: '{REPLICA / 'vqa/val2014_qla_mrcnn.json'}'}}"
    with pytest.raises(UserError, match=r"q\.json record 1 \(question_id 5\) carries no tags where others do"):
        prepared("vqa", "val", "validate", stores, f"data.splits.val=[{released}, {official}]")

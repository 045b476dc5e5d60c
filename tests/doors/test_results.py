"""`vinvl.evaluate results=FILE`: files of others, what is missing in them, and what is none. No model, no features."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Door, refusal
from tests.door_in_process import WORLD, refused_in_process, run_in_process, scores
from vinvl.captioning.files import read_karpathy
from vinvl.examples import read_examples

ALL_IMAGES = "data.test_images=null"


@pytest.fixture(scope="module")
def world(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data with the demo world, of which no feature and no answer vocabulary is there."""
    folder = tmp_path_factory.mktemp("data")
    left_out = shutil.ignore_patterns("*.h5", "*answers.json")
    shutil.copytree(demo_data / "demo", folder / "demo", ignore=left_out)
    return folder


def right_results(world: Path, task: str) -> list[Any]:
    """What a server would give full marks, or lines of NLVR2; of captions the first reference."""
    demo = world / "demo"
    if task == "vqa":
        said = json.loads((demo / "v2_mscoco_test2014_annotations.json").read_text())["annotations"]
        return [{"question_id": one["question_id"], "answer": one["multiple_choice_answer"]} for one in said]
    if task == "gqa":
        asked = json.loads((demo / "gqa_testdev_balanced_questions.json").read_text())
        return [{"questionId": own_id, "prediction": one["answer"]} for own_id, one in asked.items()]
    if task == "nlvr2":
        lines = (demo / "nlvr2_test1.json").read_text().splitlines()
        return [f"{one['identifier']},{one['label']}" for one in map(json.loads, lines)]
    records = read_karpathy(demo / "dataset_demo.json", ["test"])
    captions = [records.captions_of(place)[0] for place in range(len(records))]
    return [{"image_id": int(i), "caption": text} for i, text in zip(records.image_ids, captions, strict=True)]


def write(path: Path, rows: Any) -> Path:
    lines = isinstance(rows, list) and rows and isinstance(rows[0], str)
    path.write_text("\n".join(rows) + "\n" if lines else json.dumps(rows))
    return path


def given(task: str, results: Path, *more: str) -> list[str]:
    stores = "data.regions=nowhere.h5"
    return [f"data=demo_{task}", *WORLD, stores, f"results={results}", "java_metrics=false", *more]


def score(world: Path, output: Path, task: str, results: Path, *more: str) -> str:
    return run_in_process("evaluate", world, output, *given(task, results, *more))


def refused(world: Path, folder: Path, task: str, results: Path, *more: str) -> str:
    return refused_in_process("evaluate", world, folder / "refused", *given(task, results, *more))


@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2"])
def test_an_answer_less_counts_as_wrong_and_is_told(world: Path, tmp_path: Path, task: str) -> None:
    rows, figure = right_results(world, task), "accuracy" if task == "nlvr2" else "accuracy/overall"
    path = write(tmp_path / ("r.csv" if task == "nlvr2" else "r.json"), rows)
    told = score(world, tmp_path / "all", task, path)
    whole = scores(tmp_path / "all")[figure]
    assert whole == 100 if task != "vqa" else whole > 90
    assert "missing" not in told and "do not count" not in told
    write(path, rows[3:])
    told = score(world, tmp_path / "part", task, path)
    every, part = (read_examples(tmp_path / name / "examples.parquet").table.to_pylist() for name in ("all", "part"))
    assert f"3 of {len(rows)} " in told and "they count as wrong (missing=leave_out leaves them out)" in told
    assert [row["score"] for row in part[:3]] == [0, 0, 0] and part[0]["answer"] == "" and part[3:] == every[3:]
    assert ("Accuracy / structural type:" in told) == (task == "gqa")  # the official script's text
    lost = sum(row["score"] for row in every[:3]) / len(rows)
    assert scores(tmp_path / "part")[figure] == pytest.approx(whole - lost)
    assert json.loads((tmp_path / "part" / "results.json").read_text())["missing"] == 3
    assert "they are left out" in score(world, tmp_path / "left", task, path, "missing=leave_out")
    assert read_examples(tmp_path / "left" / "examples.parquet").table.to_pylist() == every[3:]
    sentence = refused(world, tmp_path, task, path, "missing=refuse")
    assert f"3 of {len(rows)} " in sentence and "complete the file, or pass missing=wrong" in sentence


def test_captions_by_name_and_from_oscars_tsv(world: Path, tmp_path: Path) -> None:
    rows = right_results(world, "captioning")
    score(world, tmp_path / "a", "captioning", write(tmp_path / "captions.json", rows))
    assert scores(tmp_path / "a")["Bleu_1"] == pytest.approx(100)
    lines = [f"{one['image_id']}\t{json.dumps([{'caption': one['caption'], 'conf': 0.5}])}" for one in rows]
    score(world, tmp_path / "b", "captioning", write(tmp_path / "pred.test.beam5.tsv", lines))
    named = [one | {"image_id": f"{int(one['image_id']):012d}.png"} for one in rows]
    score(world, tmp_path / "c", "captioning", write(tmp_path / "named.json", named))
    assert scores(tmp_path / "a") == scores(tmp_path / "b") == scores(tmp_path / "c")
    told = score(world, tmp_path / "d", "captioning", write(tmp_path / "captions.json", rows[1:]))
    assert scores(tmp_path / "d")["CIDEr"] < scores(tmp_path / "a")["CIDEr"] and "they count as wrong" in told


def test_score_matrices(world: Path, tmp_path: Path) -> None:
    """The same scores as a matrix of every kind, and by number as Oscar's retrieval leaves them."""
    matrix = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32)
    own = np.arange(6).repeat(5)
    matrix[own, np.arange(30)] += 1
    np.save(tmp_path / "a.npy", matrix)
    np.savez(tmp_path / "b.npz", scores=matrix)
    torch.save(torch.from_numpy(matrix), tmp_path / "c.pt")
    torch.save(dict(enumerate(matrix.flatten().tolist())), tmp_path / "d.pt")
    for name in ("a.npy", "b.npz", "c.pt", "d.pt"):
        score(world, tmp_path / name[0], "retrieval", tmp_path / name, ALL_IMAGES)
    found = scores(tmp_path / "a")
    assert found == scores(tmp_path / "b") == scores(tmp_path / "c") == scores(tmp_path / "d")
    assert found["image_to_text/R@1"] == pytest.approx(100 * (own[matrix.argmax(axis=1)] == np.arange(6)).mean())
    assert found["text_to_image/R@1"] == pytest.approx(100 * (matrix.argmax(axis=0) == own).mean())
    score(world, tmp_path / "folds", "retrieval", tmp_path / "a.npy", "data.test_candidates=3", ALL_IMAGES)
    right = [(half.argmax(axis=0) == own[:15]).mean() for half in (matrix[:3, :15], matrix[3:, 15:])]
    assert scores(tmp_path / "folds")["text_to_image/R@1"] == pytest.approx(100 * np.mean(right))


WRONG_MATRICES = {
    "turned": (np.zeros((30, 6)), r"30 × 6, and the split has 6 images and 30 captions.* it looks turned"),
    "other": (np.zeros((5, 30)), r"shape 5 × 30"),
    "nan": (np.full((6, 30), np.nan), r"has the score nan in row 0, column 0"),
    "flat": (np.zeros(180), r"holds float64 of shape \(180,\)"),
    "objects": (np.array([{"a": 1}], dtype=object), r"cannot be read"),
    "texts": (np.full((6, 30), "a"), r"holds <U1 of shape"),
}


@pytest.mark.parametrize("case", WRONG_MATRICES)
def test_matrices_that_are_wrong(world: Path, tmp_path: Path, case: str) -> None:
    content, words = WRONG_MATRICES[case]
    np.save(tmp_path / "m.npy", content, allow_pickle=True)
    assert re.search(words, refused(world, tmp_path, "retrieval", tmp_path / "m.npy", ALL_IMAGES))


def test_scores_by_number_that_are_not_whole(world: Path, tmp_path: Path) -> None:
    torch.save(dict.fromkeys(range(179), 0.5), tmp_path / "m.pt")
    assert "179 pairs by number" in refused(world, tmp_path, "retrieval", tmp_path / "m.pt", ALL_IMAGES)
    (tmp_path / "empty").mkdir()
    assert "has no candidates.json" in refused(world, tmp_path, "retrieval", tmp_path / "empty", ALL_IMAGES)


def doubled(rows: list[Any]) -> list[Any]:
    return [*rows, rows[2]]


def foreign(rows: list[Any]) -> list[Any]:
    key = next(key for key in rows[0] if key in ("question_id", "questionId", "image_id"))
    return [one | {key: "gone"} for one in rows]


@pytest.mark.parametrize("task", ["vqa", "gqa", "captioning"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (doubled, "again, which"),
        (foreign, "says nothing of the"),
        (lambda rows: [], "the file is empty"),
        (lambda rows: {"rows": rows}, "line 1"),
        (lambda rows: [1, *rows], r"$[0]"),
        (lambda rows: [[rows]], r"$[0]"),
        (lambda rows: [{**rows[0], "answer": 1, "prediction": 1, "caption": 1}], r"$[0]"),
        (lambda rows: [{"id": 3, "image_id": 3}], "record 1 is no"),
    ],
    ids=["doubled", "foreign", "empty", "an object", "a number", "lists", "of another type", "without an answer"],
)
def test_files_that_are_wrong(world: Path, tmp_path: Path, task: str, change: Any, words: str) -> None:
    sentence = refused(world, tmp_path, task, write(tmp_path / "r.json", change(right_results(world, task))))
    assert words in sentence and "r.json" in sentence


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["dev-1-0-0"], "line 1 is 'dev-1-0-0': give identifier,True or identifier,False"),
        (["dev-1-0-0,maybe"], "line 1"),
        (["{}"], "line 1"),
        (["gone,True"], "says nothing of the statements"),
    ],
)
def test_lines_that_are_wrong(world: Path, tmp_path: Path, lines: list[str], words: str) -> None:
    assert words in refused(world, tmp_path, "nlvr2", write(tmp_path / "r.csv", lines))


def test_foreign_entries_are_told(world: Path, tmp_path: Path) -> None:
    rows = [*right_results(world, "vqa"), {"question_id": 5, "answer": "yes"}]
    told = score(world, tmp_path / "out", "vqa", write(tmp_path / "r.json", rows))
    assert f"1 entries are of none of these questions, the first {tmp_path}/r.json record {len(rows)} (5)" in told


def test_ids_as_texts_and_a_byte_order_mark(world: Path, tmp_path: Path) -> None:
    rows = [one | {"question_id": str(one["question_id"])} for one in right_results(world, "vqa")]
    (tmp_path / "r.json").write_text("\ufeff" + json.dumps(rows))
    score(world, tmp_path / "out", "vqa", tmp_path / "r.json")
    assert scores(tmp_path / "out")["accuracy/overall"] > 90


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["missing=maybe"], "missing=maybe is no way to count what is missing: give wrong, leave_out, refuse"),
        (["results=gone.json"], "results=gone.json does not exist"),
        (["task_name=gqa"], "task=gqa is given, and the data are of vqa"),
        (["attentions=a.json"], "attentions=a.json is for GQA's grounding, and the data are of vqa"),
        (["ckpt_path=x.ckpt"], "ckpt_path=x.ckpt and results="),
        (["results=null", "missing=refuse"], "missing=refuse is about a file of results: pass results=FILE"),
        (["results=null", "task_name=vqa"], "task=vqa is about a file of results"),
        (["data=demo_pretraining"], "have no result files; give data=NAME of a task"),
    ],
)
def test_commands_that_are_wrong(world: Path, tmp_path: Path, more: list[str], words: str) -> None:
    path = write(tmp_path / "r.json", right_results(world, "vqa"))
    command = [one for one in given("vqa", path) if one.split("=")[0] != more[0].split("=")[0]]
    assert words in refused_in_process("evaluate", world, tmp_path / "no", *command, *more)


def test_a_split_without_annotations(world: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", right_results(world, "vqa"))
    bare = f"data.splits.test=[{{questions: {world}/demo/v2_OpenEnded_mscoco_test2014_questions.json}}]"
    assert "Split 'test' has no annotations to score" in refused(world, tmp_path, "vqa", path, bare)


@pytest.mark.slow
def test_the_door_takes_the_task_by_its_name(door: Door, demo_data: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", right_results(demo_data, "vqa"))
    done = door("evaluate", f"results={path}", "task=vqa", "data=demo_vqa", *WORLD)
    assert done.returncode == 0 and "VQA accuracy" in done.stdout, done.stderr
    assert "task=nlvr2 is given" in refusal(door("evaluate", f"results={path}", "task=nlvr2", "data=demo_vqa", *WORLD))

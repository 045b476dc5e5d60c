"""GQA and NLVR2 through the doors: train, evaluate, predict, and the official figures from the official files."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.door_in_process import (
    TINY,
    checkpoint,
    examples,
    refused_in_process,
    run_in_process,
    same_weights,
    scored_alike,
    scores,
)
from tests.door_runs import ranks_succeed
from tests.gqa.scoring import score_files

pytestmark = pytest.mark.slow

# Quick enough to learn something, so that right and wrong answers both occur.
LEARNING = ["optim.optimizer.lr=3e-3", "optim.scheduler.warmup_steps=0"]
NLVR2 = ["task=nlvr2", *TINY, *LEARNING, "trainer.max_epochs=12", "trainer.check_val_every_n_epoch=6"]


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def official_files(world: Path, folder: Path) -> dict[str, Path]:
    """Questions of the test split that name objects, entail others and are not all balanced; what goes with them."""
    asked = json.loads((world / "gqa_testdev_balanced_questions.json").read_text())
    ids = list(asked)
    choices, scenes = {}, {}
    for place, (own_id, one) in enumerate(asked.items()):
        answers = [asked[ids[place - 1]]["answer"], one["answer"]]
        choices[own_id] = {"valid": [*answers, "yes", "no", "2"], "plausible": answers}
        scenes[one["imageId"]] = {
            "width": 200,
            "height": 150,
            "objects": {"a": {"x": 20, "y": 10, "w": 120, "h": 90}, "b": {"x": 0, "y": 0, "w": 50, "h": 50}},
        }
        one |= {"isBalanced": place % 3 > 0, "entailed": [own_id, ids[place - 1]]}
        one["annotations"] = {"question": {"2": "a"}, "answer": {"0": "b"}, "fullAnswer": {"0": "a", "4:5": "b"}}
    files = {"questions": asked, "choices": choices, "scenes": scenes}
    paths = {name: folder / f"{name}.json" for name in files}
    for name, content in files.items():
        paths[name].write_text(json.dumps(content))
    return paths


@pytest.fixture(scope="module")
def gqa(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of GQA, and what it printed."""
    folder = tmp_path_factory.mktemp("gqa") / "run"
    return folder, run_in_process("train", demo_data, folder, "task=gqa", *TINY, *LEARNING, "trainer.max_epochs=4")


@pytest.fixture(scope="module")
def nlvr2(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of NLVR2, and what it printed."""
    folder = tmp_path_factory.mktemp("nlvr2") / "run"
    return folder, run_in_process("train", demo_data, folder, *NLVR2)


class TestGQA:
    def test_a_run_ends_with_accuracy_by_type(self, gqa: tuple[Path, str]) -> None:
        run, printed = gqa
        assert "question" in printed and "GQA accuracy" in printed and "structural/verify" in printed
        assert {"accuracy/overall", "accuracy/binary", "accuracy/open", "accuracy/semantic/rel"} <= scores(run).keys()

    def test_official_file_gives_the_official_figures(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        questions = json.loads((demo_data / "demo" / "gqa_testdev_balanced_questions.json").read_text())
        split = "data.predict_split=testdev"
        run_in_process("predict", demo_data, tmp_path / "out", checkpoint(gqa[0]), split, "trainer.accelerator=cpu")
        rows = json.loads((tmp_path / "out" / "results.json").read_text())
        assert all(row.keys() == {"questionId", "prediction"} for row in rows)
        assert [row["questionId"] for row in rows] == list(questions)  # in the order of the file, ids as text
        points: dict[str, list[bool]] = defaultdict(list)
        for row in rows:
            question = questions[row["questionId"]]
            right = row["prediction"] == question["answer"]
            types = question["types"]
            binary = types["structural"] in ("verify", "choose", "logical", "compare")
            for name in ("overall", "binary" if binary else "open", f"structural/{types['structural']}",
                         f"semantic/{types['semantic']}"):  # fmt: skip
                points[name].append(right)
        expected = {f"accuracy/{name}": 100 * sum(found) / len(found) for name, found in points.items()}
        found = {name: value for name, value in scores(gqa[0]).items() if name.startswith("accuracy/")}
        assert found == pytest.approx({name: value for name, value in expected.items() if name in found}, abs=1e-4)
        assert {"accuracy/overall", "accuracy/binary", "accuracy/open"} <= found.keys() <= expected.keys()
        assert 0 < found["accuracy/overall"] < 100
        asked = [(name, str(one["imageId"]), one["question"], (one["answer"],)) for name, one in questions.items()]
        told = examples(gqa[0])
        assert [(row["id"], row["image_id"], row["text"], tuple(row["truth"])) for row in told] == asked
        assert [row["answer"] for row in told] == [row["prediction"] for row in rows]
        types = [one["types"] for one in questions.values()]
        assert [(row["group"], row["kind"]) for row in told] == [(one["structural"], one["semantic"]) for one in types]
        for name in ("results.json", "predictions.jsonl"):
            scored_alike(demo_data, tmp_path / name, tmp_path / "out" / name, gqa[0], "data=demo_gqa")
        top = lines_of(tmp_path / "out" / "predictions.jsonl")
        assert [line["top"][0]["answer"] for line in top] == [row["prediction"] for row in rows]
        assert [row["best"] for row in told] == [[one["answer"] for one in line["top"]] for line in top]
        found = [[one["score"] for one in line["top"]] for line in top]
        np.testing.assert_allclose([row["probabilities"] for row in told], found, atol=1e-5)

    def test_the_page_of_a_run_has_boxes_of_its_store_and_curves(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        given = [f"run={gqa[0]}", f"images={demo_data}/demo/images", f"output={tmp_path}/page.html", "count=3"]
        printed = run_in_process("report", demo_data, tmp_path / "report", *given)
        assert "page.html: 3 examples" in printed and "Boxes are not drawn" not in printed
        page = (tmp_path / "page.html").read_text()
        assert page.count("<figure") == 3 and page.count("data:image/jpeg") == 3 and page.count("<rect") >= 3
        assert page.count('<td class="bar"') == 3 * 5 and "score in validation" in page and "_target_: vinvl" in page

    def test_a_split_without_answers_is_predicted_and_not_scored(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        run_in_process("predict", demo_data, tmp_path / "out", checkpoint(gqa[0]), "trainer.accelerator=cpu")
        asked = json.loads((demo_data / "demo" / "gqa_submission_questions.json").read_text())
        assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == len(asked)
        sentence = refused_in_process(
            "evaluate", demo_data, tmp_path / "no", checkpoint(gqa[0]), "data.test_split=submission",
            "trainer.accelerator=cpu",
        )  # fmt: skip
        assert "'submission' has no annotations" in sentence

    def test_answers_of_another_vocabulary_are_refused(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        answers = json.loads((demo_data / "demo" / "gqa_answers.json").read_text())["answers"]
        for name, other in (("fewer", answers[:-1]), ("swapped", [answers[1], answers[0], *answers[2:]])):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(other))
            overrides = [checkpoint(gqa[0]), f"data.answers={path}", "trainer.accelerator=cpu"]
            sentence = refused_in_process("evaluate", demo_data, tmp_path / "no", *overrides)
            assert path.name in sentence and "data.answers=FILE" in sentence
            assert (str(len(other)) if name == "fewer" else f"'{answers[0]}'") in sentence

    def test_official_metrics_where_their_files_are_there(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        """Those of the checkpoint are those of its files of predictions and attention."""
        files = official_files(demo_data / "demo", tmp_path)
        given = [f"++data.splits.testdev={files['questions']}", "trainer.accelerator=cpu", checkpoint(gqa[0])]
        more = [
            f"++data.choices={{testdev: {files['choices']}}}",
            f"++data.scene_graphs={{testdev: {files['scenes']}}}",
        ]
        printed = run_in_process("evaluate", demo_data, tmp_path / "eval", *given, *more)
        predict = [*given, "data.predict_split=testdev", "++data.attention=true"]
        run_in_process("predict", demo_data, tmp_path / "out", *predict)
        expected = score_files(
            files["questions"],
            tmp_path / "out" / "results.json",
            choices=files["choices"],
            scene_graphs=files["scenes"],
            attentions=tmp_path / "out" / "attentions.json",
        )
        found = {
            name.removeprefix("official/"): x for name, x in scores(tmp_path / "eval").items() if "official/" in name
        }
        assert found == pytest.approx(expected.flat(), abs=1e-5)
        assert {"consistency", "validity", "plausibility", "grounding", "distribution", "words/5"} <= found.keys()
        of_file = [
            "data=demo_gqa",
            f"data.splits.testdev={files['questions']}",
            *more,
        ]
        of_file += [f"attentions={tmp_path / 'out' / 'attentions.json'}"]
        written = tmp_path / "out" / "results.json"
        scored_alike(demo_data, tmp_path / "file", written, tmp_path / "eval", *of_file)
        assert scores(tmp_path / "file").keys() >= {f"official/{name}" for name in found}
        assert found["grounding"] > 0 and found["validity"] > found["plausibility"] >= found["accuracy"] > 0
        for row in ("consistency", "distribution (lower is better)", "grounding", "words/5"):
            assert row in printed
        for row in json.loads((tmp_path / "out" / "attentions.json").read_text()):
            assert sum(cell[4] for cell in row["attention"]) == pytest.approx(1, abs=1e-5)
        # Balanced questions alone, by the official rule.
        assert found["accuracy"] != scores(tmp_path / "eval")["accuracy/overall"]

    def test_without_the_files_there_is_what_questions_tell(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        nothing = [
            "++data.choices.testdev=none.json",
            "++data.scene_graphs.testdev=none.json",
            "trainer.accelerator=cpu",
        ]
        run_in_process("evaluate", demo_data, tmp_path / "eval", checkpoint(gqa[0]), *nothing)
        found, before = (
            {n: x for n, x in scores(run).items() if "official/" in n} for run in (tmp_path / "eval", gqa[0])
        )
        of_files = {f"official/{name}" for name in ("validity", "plausibility", "grounding")}
        assert {"official/accuracy", "official/distribution", "official/consistency"} <= found.keys()
        assert found.keys() == before.keys() - of_files and of_files <= before.keys()
        assert found == {name: before[name] for name in found}

    def test_official_files_that_are_wrong_are_told_before_the_evaluation(
        self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        files = official_files(demo_data / "demo", tmp_path)
        files["scenes"].write_text("{}")
        scenes = f"++data.scene_graphs.testdev={files['scenes']}"
        given = [f"++data.splits.testdev={files['questions']}", "trainer.accelerator=cpu", checkpoint(gqa[0]), scenes]
        sentence = refused_in_process("evaluate", demo_data, tmp_path / "eval", *given)
        assert "scenes.json has no image" in sentence and not (tmp_path / "eval" / "results.json").exists()

    def test_two_ranks_give_the_examples_of_one(self, gqa: tuple[Path, str], demo_data: Path, tmp_path: Path) -> None:
        ranks_succeed(tmp_path, demo_data, "evaluate", checkpoint(gqa[0]), "hydra.run.dir=two")
        assert examples(tmp_path / "two") == examples(gqa[0])
        assert scores(tmp_path / "two") == scores(gqa[0])


class TestNLVR2:
    def test_two_ranks_give_the_examples_of_one(self, nlvr2: tuple[Path, str], demo_data: Path, tmp_path: Path) -> None:
        ranks_succeed(tmp_path, demo_data, "evaluate", checkpoint(nlvr2[0]), "hydra.run.dir=two")
        assert examples(tmp_path / "two") == examples(nlvr2[0])

    def test_a_run_shows_both_pictures_and_ends_with_both_figures(self, nlvr2: tuple[Path, str]) -> None:
        run, printed = nlvr2
        for words in ("identifier", "left image", "right image", "label  ", "NLVR2 accuracy", "consistency"):
            assert words in printed
        assert scores(run).keys() == {"accuracy", "consistency", "loss"}

    @pytest.mark.parametrize("split", ["test1", "train"])
    def test_official_file_gives_the_official_figures(
        self, nlvr2: tuple[Path, str], demo_data: Path, tmp_path: Path, split: str
    ) -> None:
        on_cpu = "trainer.accelerator=cpu"
        run_in_process(
            "evaluate", demo_data, tmp_path / "eval", checkpoint(nlvr2[0]), f"data.test_split={split}", on_cpu
        )
        run_in_process(
            "predict", demo_data, tmp_path / "out", checkpoint(nlvr2[0]), f"data.predict_split={split}", on_cpu
        )
        records = lines_of(demo_data / "demo" / f"nlvr2_{split}.json")
        rows = [line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().splitlines()]
        assert [row[0] for row in rows] == [record["identifier"] for record in records]
        assert {row[1] for row in rows} <= {"True", "False"}
        own = ["data=demo_nlvr2", f"data.test_split={split}"]
        scored_alike(demo_data, tmp_path / "file", tmp_path / "out" / "predictions.csv", tmp_path / "eval", *own)
        said = dict(rows)  # as the official script reads it
        right = {record["identifier"]: said[record["identifier"]] == record["label"] for record in records}
        groups: dict[str, bool] = defaultdict(lambda: True)
        for identifier, correct in right.items():
            first, second, _, last = identifier.split("-")
            groups[f"{first}-{second}-{last}"] &= correct
        expected = {
            "accuracy": 100 * sum(right.values()) / len(right),
            "consistency": 100 * sum(groups.values()) / len(groups),
        }
        found = scores(tmp_path / "eval")
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        rows_of_it = examples(tmp_path / "eval")
        assert {row["id"]: row["answer"] for row in rows_of_it} == said and len(rows_of_it) == len(records)
        assert [row["truth"] for row in rows_of_it] == [[record["label"]] for record in records]
        assert all(row["best"][0] == row["answer"] and sum(row["probabilities"]) > 0.999 for row in rows_of_it)
        if split == "test1":
            assert found == scores(nlvr2[0])
        else:  # what was learnt by heart shows that the figures tell right from wrong
            assert 0 < found["consistency"] < 100 and 50 < found["accuracy"] < 100

    def test_statements_without_labels_are_predicted_and_not_scored(
        self, nlvr2: tuple[Path, str], demo_data: Path, tmp_path: Path
    ) -> None:
        records = lines_of(demo_data / "demo" / "nlvr2_test1.json")
        hidden = tmp_path / "hidden.json"
        hidden.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "label"}) + "\n" for r in records))
        split, on_cpu = f"+data.splits.hidden={hidden}", "trainer.accelerator=cpu"
        overrides = [checkpoint(nlvr2[0]), split, on_cpu]
        run_in_process("predict", demo_data, tmp_path / "out", *overrides, "data.predict_split=hidden")
        assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == len(records)
        sentence = refused_in_process("evaluate", demo_data, tmp_path / "no", *overrides, "data.test_split=hidden")
        assert "'hidden' has no annotations" in sentence and "vinvl.predict" in sentence

    def test_both_pictures_in_one_sequence(self, nlvr2: tuple[Path, str], demo_data: Path, tmp_path: Path) -> None:
        run, one, pairs = tmp_path / "run", "+data.one_sequence=true", "+data.one_sequence=false"
        short = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "data.num_workers=2"]
        printed = run_in_process("train", demo_data, run, *NLVR2, one[1:], *short)
        example = printed[printed.index("  identifier  ") : printed.index("  label  ")]
        assert "left image" in example and "right image" in example and example.count("[CLS]") == 1
        given = [checkpoint(run), "data.num_workers=0", "trainer.accelerator=cpu"]
        run_in_process("evaluate", demo_data, tmp_path / "eval", *given)
        assert scores(tmp_path / "eval") == scores(run)
        run_in_process("predict", demo_data, tmp_path / "out", *given)
        records = lines_of(demo_data / "demo" / "nlvr2_test1.json")
        rows = [line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().splitlines()]
        assert [row[0] for row in rows] == [record["identifier"] for record in records]
        right = [said == record["label"] for (_, said), record in zip(rows, records, strict=True)]
        assert scores(run)["accuracy"] == pytest.approx(100 * sum(right) / len(right))
        refused = refused_in_process("evaluate", demo_data, tmp_path / "no", *given, pairs)
        assert "with data.one_sequence=true, and these data are read without: pass data.one_sequence=true." in refused
        refused = refused_in_process("predict", demo_data, tmp_path / "no", checkpoint(nlvr2[0]), one)
        assert "with data.one_sequence=false, and these data are read without: pass data.one_sequence=false." in refused

    def test_same_weights_whatever_the_number_of_data_workers(self, demo_data: Path, tmp_path: Path) -> None:
        short = ["task=nlvr2", *TINY, "test_after_fit=false", "trainer.max_epochs=2"]
        for workers in (0, 2):
            run_in_process("train", demo_data, tmp_path / str(workers), *short, f"data.num_workers={workers}")
        assert same_weights(tmp_path / "0", tmp_path / "2")

"""The page of a run: which examples it shows and what it says of them, with its curves, figures and settings."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from tests.door_in_process import refused_in_process, run_in_process
from tests.pages.test_pages import Reader, regions, store
from tests.picture_samples import save
from vinvl.examples import AboutExamples, Outcome, SeenBox, SeenPicture, write_boxes, write_examples
from vinvl.pages.curves import MOST_POINTS, charts, read_curves
from vinvl.pages.run_page import chosen
from vinvl.regions.layout import View

HEADLINES = {"vqa": "accuracy/overall", "captioning": "CIDEr", "retrieval": "recall_mean"}


def run_folder(folder: Path, task: str, examples: list[Outcome], **about: Any) -> Path:
    """What an evaluation leaves."""
    headline = HEADLINES.get(task, "accuracy")
    folder.mkdir(parents=True)
    scores = {"loss": 0.5, headline: 61.2}
    told = {"split": "val", "checkpoint": "x/checkpoints/best.ckpt", "headline": headline, "scores": scores}
    told["part"] = "2 of 57 batches"
    (folder / "results.json").write_text(json.dumps(told))
    write_examples(folder / "examples.parquet", examples, AboutExamples(task, "val", headline, "best.ckpt", **about))
    return folder


def asked(count: int = 8, **changed: Any) -> list[Outcome]:
    """Questions to the pictures "0", "1", …, of which every fourth is answered right."""
    right = Outcome(
        "", "", 100.0, "is it", "Is it red?", "yes", ("yes",) * 9 + ("no",), kind="yes/no", best=("yes", "no"),
        probabilities=(0.75, 0.25),
    )  # fmt: skip
    wrong = right._replace(score=0.0, answer="no", best=("no", "yes"))
    rows = [(wrong if number % 4 else right)._replace(id=f"{number}0", image_id=f"{number}") for number in range(count)]
    return [one._replace(**changed) for one in rows]


class SpacedReader(Reader):
    """With a blank between the texts of neighbouring cells."""

    def handle_data(self, data: str) -> None:
        super().handle_data(f" {data}")


def page_of(tmp_path: Path, *overrides: str) -> tuple[Reader, str]:
    """The page that the door makes, and what it said."""
    printed = run_in_process("report", tmp_path, tmp_path / "out", f"output={tmp_path}/page.html", *overrides)
    reader = SpacedReader()
    reader.feed((tmp_path / "page.html").read_text(encoding="utf-8"))
    reader.text = " ".join(reader.text.split())
    return reader, printed


def test_a_question_has_its_picture_boxes_people_and_the_best_answers(tmp_path: Path) -> None:
    """With the regions of the store that the examples name, by the ids that it has for the images."""
    path = store(tmp_path, *(regions(f"coco-{number}", 3) for number in range(8)))
    names = {f"{number}": f"coco-{number}" for number in range(8)}
    places = {"regions": ((str(path), View()),), "stored_as": names}
    run = run_folder(tmp_path / "run", "vqa", asked(), **places)
    save(tmp_path / "p" / "0.png")
    reader, printed = page_of(tmp_path, f"run={run}", f"images={tmp_path}/p", "count=4")
    assert "1 of 8 images of the split have a picture" in printed and "page.html: 4 examples" in printed
    assert "The examples are 2 right, 6 wrong; here are 4 of them." in reader.text
    assert "of a part of the split: 2 of 57 batches only" in reader.text
    assert "Is it red? yes ✓ 75.0 % no ✓ 25.0 % people yes × 9 no right · accuracy 100 · yes/no" in reader.text
    assert reader.tags.count("rect") == 4 * 3 and "cat 0.50 red 0.90" in reader.text
    assert "its picture is not among the images" in reader.text
    page = (tmp_path / "page.html").read_text()
    assert page.count('data-outcome="right"') == page.count('data-outcome="wrong"') == 2  # though there are more wrong
    assert {"outcome", "kind", "group"} == set(re.findall(r'<select data-column="(\w+)"', page))
    assert re.search(r"accuracy/overall</td><td>61.20</td>.*loss</td><td>0.50", page, re.DOTALL)


def test_boxes_whose_store_is_gone_are_told_of_and_another_store_is_taken(tmp_path: Path) -> None:
    gone = {"regions": ((f"{tmp_path}/gone.h5", View()),)}
    run = run_folder(tmp_path / "run", "vqa", asked(), **gone)
    reader, _ = page_of(tmp_path, f"run={run}")
    assert "Boxes are not drawn: " in reader.text and "gone.h5" in reader.text and "Pass store=FILE" in reader.text
    assert "picture 0" in reader.text and not reader.sources
    reader, _ = page_of(tmp_path, f"run={run}", f"store={store(tmp_path, regions('2', 3))}", "ids=[20,5]")
    assert reader.tags.count("rect") == 3 and reader.tags.count("figure") == 2


def test_nothing_breaks_out_and_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>\"'><b onload=x>"
    examples = asked(
        2, text=hostile, answer=hostile, best=(hostile, "a"), truth=(hostile,), group=hostile, kind=hostile
    )
    run = run_folder(tmp_path / "run", "vqa", [one._replace(image_id=hostile) for one in examples])
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text(f"name: {hostile}\n")
    (run / "metrics.csv").write_text(f"step,{hostile.replace(',', '')}\n0,1\n1,2\n")
    reader, _ = page_of(tmp_path, f"run={run}")
    page = (tmp_path / "page.html").read_text()
    assert reader.tags.count("script") == 1 and "alert(1)</script>" not in page and "<b onload" not in page
    assert reader.text.count(hostile) >= 6 and "http" not in page.replace("http-equiv", "")


def test_pairs_captions_and_matches(tmp_path: Path) -> None:
    pair = Outcome(
        "dev-0-0-0", "l r", 100.0, "", "Both.", "True", ("True",), best=("True", "False"), probabilities=(1, 0)
    )
    for one in "lr":
        save(tmp_path / "p" / f"{one}.png")
    reader, _ = page_of(tmp_path, f"run={run_folder(tmp_path / 'nlvr2', 'nlvr2', [pair])}", f"images={tmp_path}/p")
    assert len(reader.sources) == 2 and "Both. True ✓ 100.0 % False 0.0 % label True right · score 100" in reader.text

    captions = [
        Outcome(f"{number}", f"{number}", 10.0 * number, "in-domain", "", f"a cat {number}", ("a cat", "one cat"))
        for number in range(6)
    ]
    reader, _ = page_of(tmp_path, f"run={run_folder(tmp_path / 'captions', 'captioning', captions)}")
    assert "2 best third, 2 middle third, 2 worst third" in reader.text
    assert "a cat 5 people a cat one cat best third · CIDEr 50 · in-domain · id 5" in reader.text

    found = {"best": ("r", "l"), "probabilities": (0.9, 0.1)}
    by_image = {"best": ("no", "a left"), "probabilities": (0.9, 0.1)}
    matches = [
        Outcome("l", "l", 0.0, "image_to_text", "", "no", ("a left",), 1, **by_image),  # type: ignore[arg-type]
        Outcome("7", "l", 0.0, "text_to_image", "a left", "r", ("l",), 1, **found),  # type: ignore[arg-type]
        Outcome("r", "r", 100.0, "image_to_text", "", "b", ("b",), 0),
    ]
    reader, _ = page_of(tmp_path, f"run={run_folder(tmp_path / 'pairs', 'retrieval', matches)}", f"images={tmp_path}/p")
    assert "1 first, 1 among the first 5, 1 later" not in reader.text and "1 first, 2 among the first 5" in reader.text
    assert "no 90.0 % a left ✓ 10.0 % true a left among the first 5 · rank 2 · image → text · id l" in reader.text
    assert "above: the true picture, rank 2; below: the first ones r 90.0 % l ✓ 10.0 %" in reader.text
    assert len(reader.sources) == 3 + 2  # the first ones of the caption are small pictures


def test_examples_are_drawn_evenly_by_outcome_and_by_the_seed() -> None:
    codes = np.array([0] * 3 + [1] * 90 + [2] * 7)
    assert np.bincount(codes[chosen(codes, 12, 1)]).tolist() == [3, 5, 4] or sum(codes[chosen(codes, 12, 1)] == 0) == 3
    assert chosen(codes, 12, 1).tolist() == chosen(codes, 12, 1).tolist() != chosen(codes, 12, 2).tolist()
    assert chosen(codes, 500, 1).tolist() == list(range(100)) == sorted(set(chosen(codes, 500, 3).tolist()))


def test_curves_are_those_of_the_training_run_and_bounded(tmp_path: Path) -> None:
    """An evaluation names its checkpoint; beside that lie the curves."""
    run = run_folder(tmp_path / "eval", "vqa", asked())
    told = json.loads((run / "results.json").read_text())
    told["checkpoint"] = str(tmp_path / "trained" / "checkpoints" / "best.ckpt")
    (run / "results.json").write_text(json.dumps(told))
    (tmp_path / "trained" / "csv").mkdir(parents=True)
    lines = ["epoch,step,train/loss,val/score,val/loss,lr,test/score"]
    lines += [
        f"0,{step},{1000 - step},{'' if step % 100 else step / 10},{'' if step % 100 else 7},x,9"
        for step in range(1000)
    ]
    path = tmp_path / "trained" / "csv" / "metrics.csv"
    path.write_text("\n".join([*lines, "0,1000,nan,inf,,,", "broken"]))
    curves = read_curves(path)
    assert {name: len(points) for name, points in curves.items()} == {
        "train/loss": 1000, "val/score": 10, "val/loss": 10, "test/score": 1000,
    }  # fmt: skip
    loss, score = charts(curves)
    assert [one["title"] for one in (loss, score)] == ["loss", "score in validation"]
    assert loss["together"] == 5 and loss["lines"][0]["path"].count("L") == MOST_POINTS - 1
    assert [len(one["lines"][-1]["dots"]) for one in (loss, score)] == [10, 10]
    assert score["lines"][0]["last"] == "90" and "val/score 90 at step 900" in score["lines"][0]["dots"][-1]
    steps = [float(x) for x, _ in re.findall(r"([\d.]+) ([\d.]+)", loss["lines"][0]["path"])]
    assert steps == sorted(steps) and steps[0] >= 48 and steps[-1] <= 412
    reader, _ = page_of(tmp_path, f"run={run}")
    assert f"of the run that trained it, {tmp_path / 'trained'}" in reader.text and reader.tags.count("circle") == 20


def test_a_curve_of_one_point_and_a_flat_one_are_drawn() -> None:
    for curve in ([(3.0, 1.0)], [(0.0, 0.0), (1.0, 0.0)]):
        (one,) = charts({"train/loss": curve})
        assert "nan" not in one["lines"][0]["path"] and "inf" not in one["lines"][0]["path"]


def test_a_run_without_examples_says_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "metrics.csv").write_text("step,train/loss\n1,2\n")
    assert "This run has not ended" in page_of(tmp_path, f"run={run}")[0].text
    (run / "results.json").write_text('{"headline": "accuracy", "scores": {"accuracy": 1.0}, "split": "val"}')
    assert "This run has left no examples.parquet" in page_of(tmp_path, f"run={run}")[0].text
    (run / ".hydra" / "config.yaml").write_text("task:\n  _target_: vinvl.pretraining.task.PretrainingTask.build\n")
    reader, printed = page_of(tmp_path, f"run={run}")
    assert "no examples one by one" in reader.text and "task: _target_:" in reader.text and "0 examples" in printed


def test_a_detectors_run_shows_true_and_found_boxes(tmp_path: Path) -> None:
    """Beside each other on the pictures that the run has kept; what is missed is told."""
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / "results.json").write_text('{"headline": "map_50", "scores": {"map_50": 61.0}, "split": "val"}')
    (run / ".hydra" / "config.yaml").write_text("task:\n  _target_: vinvl.detector.task.DetectorTask.build\n")
    assert "has left no boxes.json" in page_of(tmp_path, f"run={run}")[0].text
    cat, dog = SeenBox("cat", 1.0, (1, 2, 30, 40)), SeenBox("dog", 1.0, (5, 5, 9, 9))
    picture = SeenPicture(80, 60, "/9j/AA==", [cat, dog], [SeenBox("cat", 0.75, (1, 2, 31, 40))], 1)
    write_boxes(run / "boxes.json", [picture, replace(picture, missed=2), replace(picture, true=[cat], missed=0)])
    reader, printed = page_of(tmp_path, f"run={run}")
    assert "1 all objects found, 1 some found, 1 none found; here are 3 of them" in reader.text
    assert reader.tags.count("rect") == 3 + 3 + 2 and reader.sources == ["data:image/jpeg;base64,/9j/AA=="] * 6
    assert "some found · 1 of 2 objects" in reader.text and "cat 0.75" in reader.text and "3 examples" in printed
    assert (
        "run: detector on split 'val'" in reader.text
        and "page.html: 2 examples" in (page_of(tmp_path, f"run={run}", "count=2")[1])
    )
    (run / "boxes.json").write_text((run / "boxes.json").read_text().replace("/9j/AA==", "\\u0022 onload=x"))
    assert "boxes.json" in refused_in_process("report", tmp_path, tmp_path / "no", f"run={run}")


def test_the_newest_run_is_taken_and_what_is_none_is_refused(tmp_path: Path) -> None:
    def refused(*overrides: str) -> str:
        return refused_in_process("report", tmp_path, tmp_path / "no", *overrides)

    assert "Give run=RUN, the folder of a run, or store=FILE" in refused()
    assert "run=last: no run under" in refused("run=last", f"paths.runs_dir={tmp_path}/runs")
    assert "run=gone does not exist: give the folder of a run" in refused("run=gone")
    (tmp_path / "empty").mkdir()
    assert "is no folder of a run, and holds none" in refused(f"run={tmp_path}/empty")
    for time, name in enumerate(("old", "new")):
        run = run_folder(tmp_path / "runs" / "vqa" / name, "vqa", asked())
        for path in run.iterdir():
            os.utime(path, (0, 1000 + time))
    for place in ("last", f"{tmp_path}/runs/vqa", f"{tmp_path}/runs/vqa/new/examples.parquet"):
        _, printed = page_of(tmp_path, f"run={place}", f"paths.runs_dir={tmp_path}/runs")
        assert f"Run: {tmp_path}/runs/vqa/new" in printed
    here = f"run={tmp_path}/runs/vqa/new"
    assert "has no example and no image 'x'; its ids are like '00'" in refused(here, "ids=[x]")
    assert "has no picture of the split" in refused(here, f"images={save(tmp_path / 'p' / 'x.png').parent}")
    assert "is of split 'val', and split test is asked for" in refused(here, "split=test")
    (run / "predictions.jsonl").touch()
    assert "is a run of vinvl.predict, which scores nothing" in refused(here)
    (run / "predictions.jsonl").unlink()
    (run / "results.json").write_text('{"scores": {"a": "x"}}')
    assert "its scores are no numbers by name" in refused(here)
    assert not (run / "report.html").exists()

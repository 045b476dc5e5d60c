"""`python -m vinvl.compare`: what it finds, what it writes, and what it refuses in a sentence."""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import refusal
from tests.door_runs import call, door_environment
from vinvl.compare import main, notes, rows_of
from vinvl.comparison.figures import Difference, compare
from vinvl.comparison.page import bars
from vinvl.comparison.pairing import paired, sorted_codes
from vinvl.data.table import Column
from vinvl.examples import AboutExamples, Outcome, examples_of, write_examples

Change = Callable[[Outcome], Outcome]
PICTURES = 60


def vqa_examples(seed: int, more: float = 0.0) -> list[Outcome]:
    """Three questions a picture, right with a chance of one half, or more."""
    rng = np.random.default_rng(seed)
    return [
        Outcome(
            f"{picture}{question}", str(picture), 100.0 * bool(rng.random() < 0.5 + more), f"is {question}", "Is it?",
            "yes", ("yes",) * 9 + ("no",), kind="yes/no" if question else "other",
        )
        for picture in range(100, 100 + PICTURES)
        for question in range(3)
    ]  # fmt: skip


def written(path: Path, examples: Sequence[Outcome], task: str = "vqa", **about: Any) -> Path:
    headline = {"vqa": "accuracy/overall", "captioning": "CIDEr", "retrieval": "recall_mean"}.get(task, "accuracy")
    write_examples(path, examples, AboutExamples(task, "val", headline, f"{path.stem}.ckpt", **about))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the door says that must succeed."""
    code = main([str(one) for one in arguments])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([str(one) for one in arguments])
    printed = capsys.readouterr()
    assert code == 1 and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A is much better than B."""
    return written(tmp_path / "a.parquet", vqa_examples(1, 0.4)), written(tmp_path / "b.parquet", vqa_examples(2))


def test_the_better_one_is_named_with_interval_tests_and_groups(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(capsys, *files, "--output", tmp_path / "out", "--draws", 1000)
    assert "A is better than B" in told and "by answer type" in told and "by question type" in told
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    first, second = vqa_examples(1, 0.4), vqa_examples(2)
    mean = [sum(one.score for one in part) / len(part) for part in (first, second)]
    headline, *groups = found["differences"]
    assert [headline["first"], headline["second"]] == pytest.approx(mean)
    assert headline["difference"] == pytest.approx(mean[0] - mean[1])
    assert 0 < headline["low"] < headline["difference"] < headline["high"] and headline["p"] < 0.002
    assert (headline["examples"], headline["units"], found["examples"]) == (180, PICTURES, 180)
    assert {one["name"] for one in groups} == {"is 0", "is 1", "is 2", "yes/no", "other"}
    shown = {row[0].strip(): row[-1] for row in rows_of(compare(paired(*map(examples_of, files)), 1000))}
    for one in found["differences"]:
        assert shown[one["name"]] == f"{one['p'] if one['p_holm'] is None else one['p_holm']:.4f}"
    assert any(one["p_holm"] > one["p"] for one in groups)
    assert all(one["p_holm"] >= one["p"] for one in groups) and headline["p_holm"] is None
    only = [(one.score > other.score, one.score < other.score) for one, other in zip(first, second, strict=True)]
    counts = [sum(part) for part in zip(*only, strict=True)]
    assert [found["mcnemar"]["only_first"], found["mcnemar"]["only_second"]] == counts
    assert f"{counts[0]} examples only A has right, {counts[1]} only B" in told
    assert found["A"]["source"] == "a.ckpt" and found["B"]["file"].endswith("b.parquet")
    swapped = run(capsys, *files[::-1], "--output", tmp_path / "swapped", "--draws", 1000)
    assert "B is better than A" in swapped


def test_a_seed_gives_the_same_figures_whatever_the_order_of_the_rows(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = written(tmp_path / "b.parquet", vqa_examples(2)[::-1])
    pairs = [paired(examples_of(files[0]), examples_of(one)) for one in (files[1], turned)]
    assert compare(pairs[0], 500, 3) == compare(pairs[1], 500, 3) != compare(pairs[0], 500, 4)
    identical = run(capsys, files[0], files[0], "--output", tmp_path / "same", "--draws", 100)
    assert "Neither is shown to be better: A − B is +0.00" in identical and "page (0 of 0)" in identical


def test_vqa_counts_as_right_what_two_of_ten_people_said(tmp_path: Path) -> None:
    one, other = vqa_examples(1)[:40], vqa_examples(1)[:40]
    one = [example._replace(score=60.0) for example in one]
    other = [example._replace(score=30.0) for example in other]
    paths = written(tmp_path / "a.parquet", one), written(tmp_path / "b.parquet", other)
    found = compare(paired(*map(examples_of, paths)), 100).mcnemar
    assert found is not None and (found.only_first, found.only_second) == (40, 0)


def test_retrieval_has_six_recalls_and_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, paths = np.random.default_rng(0), []
    ranks = rng.integers(0, 12, (2, PICTURES * 2))
    for name, model in zip("ab", ranks.tolist(), strict=True):
        ways = ["image_to_text"] * PICTURES + ["text_to_image"] * PICTURES
        examples = [
            Outcome(str(i % PICTURES), str(i % PICTURES), 100.0 * (rank == 0), way, "a cat", "x", ("y",), rank)
            for i, (rank, way) in enumerate(zip(model, ways, strict=True))
        ]
        paths.append(written(tmp_path / f"{name}.parquet", examples, "retrieval"))
    run(capsys, *paths, "--output", tmp_path / "out", "--draws", 200)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    recalls = {one["name"]: one for one in found["differences"]}
    assert found["mcnemar"] is None and len(recalls) == 7
    expected = [100 * (ranks[:, part] < k).mean(axis=1) for part in (slice(PICTURES), slice(PICTURES, None))
                for k in (1, 5, 10)]  # fmt: skip
    given = [[one["first"], one["second"]] for one in found["differences"][1:]]
    np.testing.assert_allclose(given, expected)
    mean = found["differences"][0]
    assert [mean["first"], mean["second"]] == pytest.approx(np.mean(expected, axis=0).tolist())
    assert mean["difference"] == pytest.approx(np.mean([one[0] - one[1] for one in expected]))
    assert mean["low"] < mean["difference"] < mean["high"]
    narrow = recalls["image → text R@5"]
    assert mean["high"] - mean["low"] < narrow["high"] - narrow["low"]
    rows = page_rows(tmp_path / "out" / "compare.html")
    assert len(rows) == int((ranks[0] != ranks[1]).sum())
    assert all(row["ranks"][0] != row["ranks"][1] and min(row["ranks"]) >= 1 for row in rows)


def test_a_query_without_a_match_is_never_recalled(tmp_path: Path) -> None:
    paths = []
    for name, rank in (("a", -1), ("b", 4)):
        examples = [Outcome(str(i), str(i), 0.0, "image_to_text", rank=rank) for i in range(4)]
        paths.append(written(tmp_path / f"{name}.parquet", examples, "retrieval"))
    found = compare(paired(*map(examples_of, paths)), 100).differences
    assert [(one.first, one.second) for one in found[1:]] == [(0, 0), (0, 100), (0, 100)]


def test_codes_are_those_of_the_sorted_texts() -> None:
    texts = ["c", "a", "b", "d", "a", "c"]
    found, codes = sorted_codes(Column.of(texts))
    assert found == ["a", "b", "c", "d"] and [found[code] for code in codes] == texts


def test_groups_that_only_the_second_tells_are_taken_from_it(tmp_path: Path) -> None:
    """A file of results may be scored on data that tell no types."""
    told = vqa_examples(1)
    bare = [one._replace(group="", kind="") for one in told]
    paths = written(tmp_path / "a.parquet", bare), written(tmp_path / "b.parquet", told)
    for one, other in (paths, paths[::-1]):
        found = {figure.name for figure in compare(paired(examples_of(one), examples_of(other)), 100).differences}
        assert found == {"accuracy/overall", "yes/no", "other", "is 0", "is 1", "is 2"}


def test_captions_have_no_mcnemar_and_domains(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(0), []
    for name in "ab":
        values = rng.gamma(2, 40, PICTURES).tolist()
        examples = [
            Outcome(str(i), str(i), value, ("in", "out")[i % 2], "", "a cat", ("a", "b"))
            for i, value in enumerate(values)
        ]
        paths.append(written(tmp_path / f"{name}.parquet", examples, "captioning"))
    found = compare(paired(*map(examples_of, paths)), 300)
    assert found.mcnemar is None
    assert [(one.name, one.grouping) for one in found.differences] == [
        ("CIDEr", ""),
        ("in", "domain"),
        ("out", "domain"),
    ]


# The page.


def page_rows(path: Path) -> list[dict[str, Any]]:
    (content,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', path.read_text(), re.DOTALL)
    rows: list[dict[str, Any]] = json.loads(content)
    return rows


def test_the_page_shows_where_they_differ_with_pictures_and_nothing_from_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "</script><script>alert(1)</script>"
    change: Change = lambda one: one._replace(answer=hostile, text="<b>'&") if one.id == "1001" else one  # noqa: E731
    first = [change(one._replace(score=100.0)) for one in vqa_examples(1)]
    second = [change(one._replace(score=100.0 * (one.id != "1001"), answer="no")) for one in vqa_examples(1)]
    paths = written(tmp_path / "a.parquet", first), written(tmp_path / "b.parquet", second)
    (tmp_path / "the pictures").mkdir()
    for number in (100, 101):
        Image.new("RGB", (8, 8)).save(tmp_path / "the pictures" / f"COCO_{number:012}.jpg")
    told = run(capsys, *paths, "--output", tmp_path / "out", "--images", tmp_path / "the pictures", "--draws", 100)
    assert "2 of 60 images of the split have a picture" in told and "page (1 of 1)" in told
    page = (tmp_path / "out" / "compare.html").read_text()
    (row,) = page_rows(tmp_path / "out" / "compare.html")
    assert (row["id"], row["answers"], row["scores"]) == ("1001", [hostile, hostile], [100.0, 0.0])
    assert row["truth"] == [["yes", 9], ["no", 1]] and row["group"] == "is 1"
    assert row["pictures"] == ["../the%20pictures/COCO_000000000100.jpg"]
    assert hostile not in page and "http" not in page.replace("http-equiv", "")


def test_a_page_of_many_has_the_largest_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [one._replace(score=50.0 + place % 50) for place, one in enumerate(vqa_examples(1))]
    second = [one._replace(score=50.0) for one in first]
    paths = written(tmp_path / "a.parquet", first), written(tmp_path / "b.parquet", second)
    told = run(capsys, *paths, "--output", tmp_path / "out", "--most", 7, "--draws", 100)
    assert "page (7 of 176)" in told
    rows = page_rows(tmp_path / "out" / "compare.html")
    assert [row["scores"][0] - row["scores"][1] for row in rows] == [49, 49, 49, 48, 48, 48, 47]
    assert "here are 7 of them" in (tmp_path / "out" / "compare.html").read_text()


def test_a_statement_of_nlvr2_has_two_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name, score in (("a", 0.0), ("b", 100.0)):
        examples = [Outcome("dev-1-0-0", "l r", score, "", "Both.", str(score > 0), ("True",))]
        paths.append(written(tmp_path / f"{name}.parquet", examples, "nlvr2"))
    for side in "lr":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{side}.png")
    told = run(capsys, *paths, "--output", tmp_path / "out", "--images", tmp_path, "--draws", 100)
    assert "1 sets of pictures are too few to tell" in told
    assert page_rows(tmp_path / "out" / "compare.html")[0]["pictures"] == ["../l.png", "../r.png"]


def test_statements_of_one_set_are_drawn_together(tmp_path: Path) -> None:
    ids = [f"dev-{number // 8}-{number // 2 % 4}-{number % 2}" for number in range(80)]
    for names, drawn in ((ids, (10, "sets of pictures")), ([*ids[:-1], "mine"], (40, "pictures"))):
        examples = [Outcome(one, str(number // 2), 100.0 * (number % 3)) for number, one in enumerate(names)]
        path = written(tmp_path / "a.parquet", examples, "nlvr2")
        found = compare(paired(examples_of(path), examples_of(path)), 100)
        assert (found.units, found.unit) == drawn


def test_bars_lie_on_a_common_scale_with_zero_in_the_middle() -> None:
    first = Difference("a", "", 9, 9, 0, 0, difference=2.0, low=-1.0, high=4.0, p=0.5)
    never_drawn = replace(first, difference=-4.0, low=math.nan, high=math.nan)
    (one, other) = ({name: bar[name] for name in ("low", "middle", "high")} for bar in bars([first, never_drawn]))
    unit = 50 / 1.05 / 4
    assert one == pytest.approx({"low": 50 - unit, "middle": 50 + 2 * unit, "high": 50 + 4 * unit})
    assert other == pytest.approx({"low": 50, "middle": 50 - 4 * unit, "high": 50})


@pytest.mark.parametrize("pictures", [29, 30])
def test_of_thirty_pictures_on_something_is_said(tmp_path: Path, pictures: int) -> None:
    examples = [Outcome(str(i), str(i), 100.0) for i in range(pictures)]
    path = written(tmp_path / "a.parquet", examples, "nlvr2")
    pairs = paired(examples_of(path), examples_of(path))
    assert ("too few to tell" in notes(pairs, compare(pairs, 100))[0]) == (pictures < 30)


# What is refused.


def test_other_splits_missing_and_foreign_ids(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(change: Callable[[list[Outcome]], list[Outcome]], **about: Any) -> Path:
        return written(tmp_path / "other.parquet", change(vqa_examples(2)), **about)

    fewer = other(lambda found: found[:-2], left_out=2)
    told = refused(capsys, files[0], fewer, "--output", tmp_path / "out")
    assert "other.parquet (split 'val') lacks 2 of the 180 examples" in told and "the first with the id '1591'" in told
    assert "2 were left out as they have no regions" in told and "pass --common" in told
    assert "lacks 2 of the 180" in refused(capsys, fewer, files[0])
    more = other(lambda found: [*found, found[0]._replace(id="new")])
    assert "lacks 1 of the 181 examples" in refused(capsys, files[0], more)
    foreign = other(lambda found: [one._replace(id="x" + one.id) for one in found])
    assert "have no example in common" in refused(capsys, files[0], foreign, "--common")
    said = ("yes",) * 9 + ("maybe",)
    truth = other(lambda found: [*found[:-1], found[-1]._replace(truth=said)])
    told = refused(capsys, files[0], truth)
    assert (
        "different splits: the example '1592' has the truth 'no' in the first and 'maybe' in the second (1 of" in told
    )
    picture = other(lambda found: [found[0]._replace(image_id="7"), *found[1:]])
    assert "is about picture '100' in the first and '7' in the second" in refused(capsys, files[0], picture)
    doubled = other(lambda found: [*found, found[0]])
    assert "id '1000' in row 1 and again in row 181" in refused(capsys, files[0], doubled)
    assert not (tmp_path / "out").exists()

    fewer = other(lambda found: found[:-2])
    told = run(capsys, files[0], fewer, "--common", "--output", tmp_path / "out", "--draws", 100)
    assert "Compared are 178 examples: 2 of A and 0 of B have no partner" in told


def test_other_tasks_and_values(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = written(tmp_path / "gqa.parquet", vqa_examples(1), "gqa")
    told = refused(capsys, files[0], other)
    assert (
        "is of vqa (accuracy/overall) and" in told and "of gqa (accuracy): compare two evaluations of one task" in told
    )
    own = tmp_path / "own.parquet"
    write_examples(own, vqa_examples(1), AboutExamples("vqa", "val", "soft_score", "x"))
    assert "is of vqa (accuracy/overall) and" in refused(capsys, files[0], own)
    assert "--draws=5 must be a whole number from 100 to 1,000,000" in refused(capsys, *files, "--draws", 5)
    assert "--draws=1000001 must be" in refused(capsys, *files, "--draws", 10**6 + 1)
    assert "--most=0 must be" in refused(capsys, *files, "--most", 0)
    assert "the following arguments are required: B. python -m vinvl.compare --help lists" in refused(capsys, files[0])
    assert "none does not exist" in refused(capsys, *files, "--images", tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "cannot be" in refused(capsys, *files, "--output", tmp_path / "file" / "out", "--draws", 100)


def test_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no examples.parquet" in refused(capsys, tmp_path, tmp_path)
    for number, name in enumerate(("old", "new", "older")):
        path = written(tmp_path / "runs" / name / "examples.parquet", vqa_examples(1))
        os.utime(path, (0, 1000 * (number != 2) + number))
    assert examples_of(tmp_path / "runs").path.parent.name == "new"
    assert examples_of(tmp_path / "runs" / "old").path.parent.name == "old"
    for split in ("val", "test"):
        examples = vqa_examples(1)
        write_examples(tmp_path / "both" / f"examples_{split}.parquet", examples, AboutExamples("vqa", split, "x", "y"))
    told = refused(capsys, tmp_path / "both", tmp_path / "both")
    assert "several splits (examples_test.parquet, examples_val.parquet)" in told and "--split NAME" in told
    assert examples_of(tmp_path / "both", "val").path.name == "examples_val.parquet"
    assert examples_of(tmp_path / "runs", "val").path.parent.name == "new"
    for one in (tmp_path / "runs", tmp_path / "both" / "examples_val.parquet"):
        assert "is of split 'val', and split test is asked for" in refused(capsys, one, one, "--split", "test")


def test_as_a_user_calls_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = call(tmp_path, "vinvl.compare", *map(str, files), "--draws=100", environment=door_environment(tmp_path))
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs" / "compare").iterdir()
    assert {path.name for path in folder.iterdir()} == {"compare.json", "compare.html"}
    assert "A is better than B" in result.stdout and str(folder.relative_to(tmp_path)) in result.stdout
    result = call(tmp_path, "vinvl.compare", "a", "b", environment=door_environment(tmp_path))
    assert "a does not exist; check the path" in refusal(result)

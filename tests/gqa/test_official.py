"""GQA's official metrics: recorded figures of the official script, and files that are wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gqa.scoring import score_files
from vinvl.gqa.data import by_split, is_there
from vinvl.gqa.metric import (
    Choices,
    OfficialQuestion,
    OfficialQuestions,
    count_steps,
    grounding_of,
    map_cells,
    official_scores,
)
from vinvl.gqa.official import Official, read_official_questions
from vinvl.run.errors import UserError

GOLDEN = Path(__file__).parents[1] / "data" / "gqa_metric"
FILES = {name: GOLDEN / f"{name}.json" for name in ("questions", "predictions", "choices", "sceneGraphs")}
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"consistency": False},
    "consistency": {"consistency": True},
    "grid_attention": {"consistency": True, "attentions": GOLDEN / "attentions_grid.json"},
    "box_attention": {"consistency": False, "attentions": GOLDEN / "attentions_boxes.json"},
}
BREAKDOWNS = {
    "structural": "accuracyPerStructuralType",
    "semantic": "accuracyPerSemanticType",
    "words": "accuracyPerLength",
    "steps": "accuracyPerSteps",
}


@pytest.mark.parametrize("case", SETTINGS)
def test_recorded_figures(case: str) -> None:
    """Every figure of the official script, every entry of its breakdowns, and its text."""
    settings = {**SETTINGS[case], "choices": FILES["choices"]}
    if "attentions" in settings:
        settings["scene_graphs"] = FILES["sceneGraphs"]
    found, expected = score_files(FILES["questions"], FILES["predictions"], **settings), EXPECTED[case]["scores"]
    figures = {name: value for name, value in expected.items() if name not in BREAKDOWNS.values()}
    assert found.figures.keys() == figures.keys()
    assert found.figures == pytest.approx(figures, rel=0, abs=1e-9)
    for kind, recorded in BREAKDOWNS.items():
        theirs = {key: (one["percent"], one["questions"]) for key, one in expected[recorded].items()}
        assert found.breakdowns[kind].keys() == theirs.keys()
        for key, one in found.breakdowns[kind].items():
            assert one == pytest.approx(theirs[key], rel=0, abs=1e-9)
    assert found.printed() == EXPECTED[case]["printed"]
    assert found.flat()["steps/2"] == found.breakdowns["steps"]["2"].percent


def test_without_choices_and_groups_there_are_no_such_figures() -> None:
    """The official script calls validity 0 then, and divides by zero for the distribution."""
    one = OfficialQuestion("red", structural="query", semantic="attr")
    found = official_scores(OfficialQuestions({"1": one}), {"1": "red"})
    assert found.figures == {"open": 100.0, "accuracy": 100.0}


def test_files_may_be_folders_of_parts(tmp_path: Path) -> None:
    for name, path in FILES.items():
        content, folder = json.loads(path.read_text()), tmp_path / name
        folder.mkdir()
        parts = [content[:9], content[9:]] if isinstance(content, list) else None
        for number in range(2):
            part = parts[number] if parts else dict([*content.items()][number::2])
            (folder / f"{name}_{number}.json").write_text(json.dumps(part))
    settings = {"choices": tmp_path / "choices.json", "consistency": True}  # as official names say, and a folder it is
    found = score_files(tmp_path / "questions", tmp_path / "predictions", **settings)
    assert found.figures == {name: pytest.approx(EXPECTED["consistency"]["scores"][name]) for name in found.figures}
    assert found.printed() == EXPECTED["consistency"]["printed"]


def test_consistency_comes_where_all_that_is_entailed_is_there_and_answered() -> None:
    """And where some is not, all other figures do."""
    one, other = OfficialQuestion("red", entailed=("2",)), {"2": "yes"}
    for others, said, there in (
        (other, {"1": "red", "2": "yes"}, True),
        (other, {"1": "red"}, False),
        ({}, {"1": "red", "2": "yes"}, False),
    ):
        found = Official(OfficialQuestions({"1": one}, others)).scores(said).figures
        assert found["accuracy"] == 100 and ("consistency" in found) == there


@pytest.mark.parametrize("given", ["choices.json", ["choices.json"], {"val": ["choices.json"]}, {"val": 3}])
def test_settings_that_name_no_files(given: Any) -> None:
    with pytest.raises(UserError, match=r"data.choices is .*: give data.choices.SPLIT=FILE, a file or a folder of"):
        by_split("choices", given)


def test_a_folder_may_stand_for_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sceneGraphs").mkdir()
    assert is_there(tmp_path / "sceneGraphs.json") and is_there(tmp_path / "sceneGraphs")
    assert not is_there(tmp_path / "choices.json") and not is_there(tmp_path / "sceneGraphs.txt")
    assert by_split("choices", None) == by_split("choices", {"val": None}) == {}


Content = Any
Change = Callable[[Content], Content]


def first(content: Any) -> Any:
    return content[0] if isinstance(content, list) else next(iter(content.values()))


def changed(content: Any, **values: Any) -> Any:
    """With other values in the first record; None takes a key away."""
    record = first(content)
    for name, value in values.items():
        record.pop(name) if value is None else record.update({name: value})
    return content


def grounded(questions: Any, images: Any, what: Callable[[Any], object]) -> Any:
    """Of the scene graphs, with something done to the image of a question that names objects."""
    asked = next(one for one in questions.values() if one["isBalanced"] and one["annotations"]["question"])
    what(images[asked["imageId"]])
    return images


QUESTIONS = json.loads(FILES["questions"].read_text())


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "predictions",
            lambda c: c[1:],
            r"There are no predictions for 1 questions, the first '00500000'",
        ),
        (
            "predictions",
            lambda c: changed(c, prediction=3),
            r"predictions.json: .*Expected `str`, got `int` at \$\[0\].prediction",
        ),
        ("predictions", lambda c: changed(c, questionId=None), r"record 1 is no prediction: give"),
        ("predictions", lambda c: {"a": "b"}, r"predictions.json line 1 is no prediction"),
        ("questions", lambda c: changed(c, answer=None), r"record 1 \(question 00500000\): .*required field `answer`"),
        ("questions", lambda c: changed(c, entailed=["gone"]), r"entails 'gone', which is not among the questions"),
        ("questions", lambda c: [], r"one JSON object of ids with their questions"),
        ("choices", lambda c: dict([*c.items()][1:]), r"There are no choices for 1 questions"),
        ("choices", lambda c: changed(c, valid="red"), r"\(choice \S+\): Expected `array`, got `str` at \$.valid"),
        ("sceneGraphs", lambda c: {}, r"sceneGraphs.json has no image \S+, whose objects question \S+ names"),
        ("sceneGraphs", lambda c: changed(c, width=0), r"\(image \S+\): .*width"),
        ("sceneGraphs", lambda c: changed(c, height=math.inf), r"\(image \S+\): .*height"),
        (
            "sceneGraphs",
            lambda c: changed(c, objects={"1": {"x": math.nan, "y": 0, "w": 1, "h": 1}}),
            r"\(image \S+\): Expected `float` .*\$.objects\[...\].x",
        ),
        (
            "sceneGraphs",
            lambda c: grounded(QUESTIONS, c, lambda image: image.update(objects={})),
            r"\(image \S+\) has no object '\S+', which question \S+ names",
        ),
        ("attentions_grid", lambda c: c[1:], r"There are no attention maps or boxes for 1 questions"),
        ("attentions_grid", lambda c: changed(c, attention=[[0.5, 0.5]]), r"has attention of shape 1 × 2: give a map"),
        ("attentions_grid", lambda c: changed(c, attention=[[1.0, 2.0], [1.0]]), r"rows of different lengths"),
        ("attentions_grid", lambda c: changed(c, attention=[[math.nan]]), r"Expected `float` .* at \$.attention"),
        ("attentions_grid", lambda c: changed(c, attention=[[math.inf]]), r"Expected `float` <= 1000000000"),
        (
            "attentions_grid",
            lambda c: changed(c, attention=[[0.1, 0.1, 0.2, 0.2, 0.5]]),
            r"record 2 .* is not of the form of those before it",
        ),
        ("attentions_grid", lambda c: changed(c, attention=[["a"]]), r"Expected `float`, got `str`"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, file: str, change: Change, words: str) -> None:
    names = [*FILES, "attentions_grid"]
    for name in names:
        content = json.loads((GOLDEN / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(change(content) if name == file else content))
    questions, predictions, choices, scenes, attentions = (tmp_path / f"{name}.json" for name in names)
    more = {"choices": choices, "scene_graphs": scenes, "attentions": attentions, "consistency": True}
    with pytest.raises(UserError, match=words):
        score_files(questions, predictions, **more)


def test_a_record_that_is_there_twice(tmp_path: Path) -> None:
    """Which JSON allows within one object."""
    text = FILES["questions"].read_text().strip()
    (tmp_path / "q.json").write_text(f"{text[:-1]}, {text[1:]}")
    with pytest.raises(UserError, match=r"q.json record 61 \(question 00500000\) is there twice: keep one of the two"):
        read_official_questions(tmp_path / "q.json")


def test_five_boxes_are_boxes_though_they_could_be_a_map(tmp_path: Path) -> None:
    """And a map of five rows one of which could be boxes is a map, if another record cannot be boxes."""
    keys = [key for key, one in QUESTIONS.items() if one["isBalanced"]]
    like_boxes, like_a_map = [[0.0, 0.0, 0.5, 0.5, 0.2]] * 5, [[0.5, 0.1, 0.2, 0.3, 0.2]] * 5
    found = []
    for number, last in enumerate((like_boxes, like_a_map)):
        rows = [{"questionId": key, "attention": like_boxes} for key in keys[:-1]]
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps([*rows, {"questionId": keys[-1], "attention": last}]))
        settings = {"scene_graphs": FILES["sceneGraphs"], "attentions": path}
        found.append(score_files(FILES["questions"], FILES["predictions"], **settings).figures["grounding"])
    assert found[0] > 0 and found[0] != pytest.approx(found[1], rel=0.01)


shares = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(shares, shares, shares, shares, shares), max_size=6), st.integers(1, 8))
def test_all_attention_lies_on_the_whole_image(boxes: list[tuple[float, ...]], size: int) -> None:
    """Cells without area count nothing, and two objects that are the image count twice."""
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    cells = np.array([[min(a, c), min(b, d), max(a, c), max(b, d), w] for a, b, c, d, w in boxes]).reshape(-1, 5)
    total = sum(w for x1, y1, x2, y2, w in cells.tolist() if (x2 - x1) * (y2 - y1) > 0)
    assert grounding_of(cells, whole) == pytest.approx(total)
    assert grounding_of(cells, np.repeat(whole, 2, axis=0)) == pytest.approx(2 * total)
    attention = np.random.default_rng(size).random((size, size))
    assert grounding_of(map_cells(attention), whole) == pytest.approx(attention.sum())
    left = np.array([[0.0, 0.0, 1 / size, 1.0]])
    assert grounding_of(map_cells(attention), left) == pytest.approx(attention[0].sum())  # the first index is x


def test_steps_and_common() -> None:
    assert (
        count_steps([("select", "dog"), ("exist", "?"), ("query", "name"), ("choose name", "a"), ("query", "x")]) == 2
    )
    one = OfficialQuestion("color", structural="choose", detailed="twoCommon")
    found = official_scores(OfficialQuestions({"1": one}), {"1": "shape"}, choices={})
    assert (found.figures["validity"], found.figures["plausibility"]) == (100.0, 100.0)
    other = {"1": Choices(frozenset({"shape"}), frozenset())}
    plain = official_scores(OfficialQuestions({"1": one._replace(detailed="")}), {"1": "shape"}, choices=other)
    assert (plain.figures["validity"], plain.figures["plausibility"]) == (100.0, 0.0)


# Against the definitions written down once more, on drawn files.

ANSWERS = ["yes", "no", "red", "color", "shape"]
few = st.sampled_from(ANSWERS)
pixels = st.integers(0, 30)


@st.composite
def drawn_split(draw: st.DrawFn) -> tuple[dict[str, Any], ...]:
    """Questions, answers, choices, objects of the images and attention."""
    keys = [f"q{number}" for number in range(draw(st.integers(1, 12)))]
    questions = {
        key: {
            "question": " ".join(["word"] * draw(st.integers(0, 3))),
            "answer": draw(few),
            "imageId": draw(st.sampled_from("ab")),
            "isBalanced": key == "q0" or draw(st.booleans()),
            "types": {
                "structural": draw(st.sampled_from(["query", "verify", "choose"])),
                "semantic": draw(st.sampled_from(["rel", "obj"])),
                "detailed": draw(st.sampled_from(["twoCommon", "attr"])),
            },
            "groups": {"global": draw(st.sampled_from([None, "animal", "color"]))},
            "semantic": [
                {"operation": operation, "argument": argument}
                for operation, argument in draw(
                    st.lists(st.sampled_from([("query", "name"), ("exist", "?"), ("relate", "cat,on,s")]), max_size=3)
                )
            ],
            "entailed": draw(st.lists(st.sampled_from(keys), max_size=4)),
            "annotations": {
                part: {str(place): own for place, own in enumerate(draw(st.lists(st.sampled_from("12"), max_size=2)))}
                for part in ("question", "answer", "fullAnswer")
            },
        }
        for key in keys
    }
    scenes = {
        image: {
            "width": draw(st.integers(20, 40)),
            "height": draw(st.integers(20, 40)),
            "objects": {own: {side: draw(pixels) for side in "xywh"} for own in "12"},
        }
        for image in "ab"
    }
    size = draw(st.integers(1, 4))
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    return (
        questions,
        {key: draw(few) for key in keys},
        {key: {kind: draw(st.lists(few, max_size=3)) for kind in ("valid", "plausible")} for key in keys},
        scenes,
        {key: numbers.random((size, size)).tolist() for key in keys},
    )


def naive_grounding(one: Any, scene: Any, attention: list[list[float]]) -> float:
    size, total = len(attention), 0.0
    for part in ("question", "fullAnswer"):
        for name in one["annotations"][part].values():
            box, width, height = scene["objects"][name], scene["width"], scene["height"]
            x1, y1 = box["x"] / width, box["y"] / height
            x2, y2 = (box["x"] + box["w"]) / width, (box["y"] + box["h"]) / height
            for i in range(size):
                for j in range(size):
                    across = min(x2, (i + 1) / size) - max(x1, i / size)
                    down = min(y2, (j + 1) / size) - max(y1, j / size)
                    if across > 0 and down > 0:
                        total += attention[i][j] * across * down * size * size
    return total


def naive(questions: Any, said: Any, choices: Any, scenes: Any, attention: Any) -> dict[str, float]:
    right = {key: said[key] == one["answer"] for key, one in questions.items()}
    counted = {key: one for key, one in questions.items() if one["isBalanced"]}
    seen: dict[str, list[float]] = {}
    groups: dict[str, list[str]] = {}
    for key, one in counted.items():
        kinds = one["types"]
        steps = [step for step in one["semantic"] if step["operation"] == "relate"]
        own = {"color", "material", "shape"} if kinds["detailed"] == "twoCommon" else None
        values: dict[str, float] = {
            "accuracy": right[key],
            "open" if kinds["structural"] == "query" else "binary": right[key],
            "validity": said[key] in (own or choices[key]["valid"]),
            "plausibility": said[key] in (own or choices[key]["plausible"]),
            "grounding": naive_grounding(one, scenes[one["imageId"]], attention[key]),
            f"structural/{kinds['structural']}": right[key],
            f"semantic/{kinds['semantic']}": right[key],
            f"words/{len(one['question'].split())}": right[key],
            f"steps/{len(steps)}": right[key],
        }
        entailed = [other for other in one["entailed"] if other != key]
        if right[key] and entailed:
            values["consistency"] = sum(right[other] for other in entailed) / len(entailed)
        for name, value in values.items():
            seen.setdefault(name, []).append(float(value))
        if one["groups"]["global"]:
            groups.setdefault(one["groups"]["global"], []).append(key)
    found = {name: 100 * sum(values) / len(values) for name, values in seen.items()}
    weighted = 0.0
    for keys in groups.values():
        true = [counted[key]["answer"] for key in keys]
        given = [said[key] for key in keys]
        squares = sum((given.count(one) - true.count(one)) ** 2 / true.count(one) for one in set(true))
        weighted += len(keys) * squares
    if groups:
        found["distribution"] = weighted / sum(map(len, groups.values())) / 100
    return found


@settings(max_examples=60, deadline=None)
@given(drawn_split())
def test_figures_are_those_of_the_definitions(
    tmp_path_factory: pytest.TempPathFactory, split: tuple[dict[str, Any], ...]
) -> None:
    questions, said, choices, scenes, attention = split
    predictions = [{"questionId": key, "prediction": answer} for key, answer in said.items()]
    maps = [{"questionId": key, "attention": one} for key, one in attention.items()]
    folder, paths = tmp_path_factory.getbasetemp(), []
    for name, content in zip("qpcsa", (questions, predictions, choices, scenes, maps), strict=True):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    found = score_files(*paths[:2], choices=paths[2], scene_graphs=paths[3], attentions=paths[4])
    assert found.flat() == pytest.approx(naive(*split))

"""GQA files of the demo world."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any, cast

import numpy as np
import pytest

from tests.demo.samples import named, sampled, yes_no
from vinvl.demo.gqa import TYPES, choices, gqa_id, gqa_records, scene_graphs, without_answers
from vinvl.demo.questions import Question, ask, gqa_only_families, question_families
from vinvl.demo.scene import COLOURS, SHAPES, Scene, sample_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sampled(400, seed=6)


@pytest.fixture(scope="module")
def gqa_only(scenes: list[Scene]) -> list[Question]:
    return ask(scenes, 4, np.random.default_rng(1), gqa_only_families())


def _independent_answer(scene: Scene, text: str) -> str:
    """The answer to a question that only GQA files ask, read off the scene from the words alone."""
    if match := re.fullmatch(r"(?:is there|does the picture show (?:both|either)) a ([a-z ]+) (and|or) a (.+)\?", text):
        first, second = bool(named(scene, match[1])), bool(named(scene, match[3]))
        return yes_no(first and second if match[2] == "and" else first or second)
    if match := re.fullmatch(r"what (color|shape) are most of the objects\?", text):
        counts = Counter(thing.colour if match[1] == "color" else thing.shape for thing in scene.objects)
        answer, count = max(counts.items(), key=lambda item: item[1])
        assert count > len(scene.objects) / 2
        return answer
    words = re.sub(r"^(which color is|what is|is) the |,|\ba |\?$", "", text).split()
    assert words[-2] == "or"
    noun, offered = " ".join(words[:-3]), (words[-3], words[-1])
    (thing,) = named(scene, noun)
    (answer,) = {thing.colour, thing.shape} & set(offered)
    assert offered[0] != offered[1]
    return answer


def test_answers_of_choices_and_logic_are_true(scenes: list[Scene], gqa_only: list[Question]) -> None:
    for question in gqa_only:
        assert question.answer == _independent_answer(scenes[question.image_id], question.text), question
    assert {question.family for question in gqa_only} == {family.name for family in gqa_only_families()}


def test_answers_of_choices_and_logic_cannot_be_guessed(gqa_only: list[Question]) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    first_offered: Counter[bool] = Counter()
    for question in gqa_only:
        counts[question.family][question.answer] += 1
        if question.kind == "choose":
            words = re.findall(r"\w+", question.text)
            first_offered[question.answer == words[-1]] += 1
    for family, answers in counts.items():
        values = tuple(COLOURS) if "colour" in family else SHAPES
        assert set(answers) == (set(values) if not family.startswith("exists") else {"yes", "no"})
        assert max(answers.values()) < 1.4 * sum(answers.values()) / len(answers), family
    assert abs(first_offered[True] - first_offered[False]) < 0.15 * first_offered.total()


def test_every_family_but_counting_has_its_types() -> None:
    families = {family.name: family for family in (*question_families(), *gqa_only_families())}
    assert set(TYPES) == {name for name, family in families.items() if family.kind != "count"}
    assert {structural for structural, _ in TYPES.values()} == {"verify", "query", "compare", "choose", "logical"}
    assert {semantic for _, semantic in TYPES.values()} == {"obj", "attr", "rel", "cat", "global"}


def test_numbers_of_own_and_added_questions_do_not_meet() -> None:
    common = {"image_id": 300_001, "text": "is there a star?", "answer": "yes", "answer_type": "yes/no"}
    own = [Question(number=number, kind="existence", family="exists_shape", **common) for number in (0, 998)]
    added = [Question(number=number, kind="logical", family="exists_both", **common) for number in (0, 2)]
    counting = Question(number=3, kind="count", family="count_shape", **common)
    records = gqa_records([*own, *added, counting], [sample_scene(300_001, np.random.default_rng(0))])
    assert list(records) == ["3000010000", "3000010998", "3000011000", "3000011002"]
    assert list(records) == [gqa_id(question) for question in (*own, *added)]
    assert list(without_answers(records)) == list(records)


def test_what_the_official_metrics_need_is_true(scenes: list[Scene], gqa_only: list[Question]) -> None:
    everything = [*ask(scenes, 10, np.random.default_rng(2), question_families()), *gqa_only]
    records = cast(Any, gqa_records(everything, scenes))
    offered, graphs = cast(Any, choices(everything, scenes)), cast(Any, scene_graphs(scenes))
    assert records.keys() == offered.keys() and len(graphs) == len(scenes)
    seen: Counter[str] = Counter()
    for own_id, one in records.items():
        assert one["answer"] in offered[own_id]["valid"] and one["answer"] in offered[own_id]["plausible"]
        for other in one["entailed"]:
            assert records[other]["answer"] == "yes" and records[other]["imageId"] == one["imageId"]
        words = re.sub(r"[?,]", "", one["question"]).split()
        for place, own_name in one["annotations"]["question"].items():
            first, _, last = place.partition(":")
            phrase = " ".join(words[int(first) : int(last or int(first) + 1)])
            (thing,) = named(scenes[int(one["imageId"])], phrase)
            box = graphs[one["imageId"]]["objects"][own_name]
            assert (box["name"], box["attributes"][0]) == (thing.shape, thing.colour)
            assert abs(box["x"] + box["w"] / 2 - thing.x) <= 1 and abs(box["y"] + box["h"] / 2 - thing.y) <= 1
        for place, own_name in one["annotations"]["fullAnswer"].items():
            box = graphs[one["imageId"]]["objects"][own_name]
            assert one["fullAnswer"].split()[int(place)] in (box["name"], box["attributes"][0])
        seen["implausible"] += len(offered[own_id]["plausible"]) < len(offered[own_id]["valid"])
        seen.update(key for key, value in (*one["annotations"].items(), ("entailed", one["entailed"])) if value)
        seen[f"steps {len(one['semantic'])}"] += 1
    assert all(seen[key] > 100 for key in ("implausible", "question", "answer", "fullAnswer", "entailed"))
    assert {"steps 1", "steps 2", "steps 3"} <= seen.keys()
    hidden = without_answers(records)
    assert all(not {"annotations", "entailed", "answer"} & one.keys() for one in hidden.values())

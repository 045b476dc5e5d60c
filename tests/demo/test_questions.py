"""Questions, answers and captions of the demo world, checked against the scenes by other code than asked them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.demo.samples import assert_five_true_sentences, named, sampled, yes_no
from vinvl.demo.questions import VARIANTS, Question, ask, human_answers, most_common_answer, question_families
from vinvl.demo.scene import COLOURS, SHAPES, Scene
from vinvl.demo.sentences import describe

KINDS = {"existence", "count", "attribute", "spatial", "comparison", "which"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sampled(400, seed=3)


@pytest.fixture(scope="module")
def questions(scenes: list[Scene]) -> list[Question]:
    return ask(scenes, 10, np.random.default_rng(5), question_families())


def _independent_answer(scene: Scene, text: str) -> str | None:
    """The answer read off the scene from the words alone; None for wordings that this check does not know."""
    things = scene.objects
    if match := re.fullmatch(r"(?:is there|can you see|does the image show) a ([a-z ]+?)(?: in the picture)?\?", text):
        return yes_no(bool(named(scene, match[1])))
    if match := re.fullmatch(r"(?:how many|what number of) ([a-z ]+?) (?:are there|can you see|is shown)\?", text):
        return str(len(named(scene, match[1])))
    if match := re.fullmatch(r"(?:are there|do you see) (more|fewer) ([a-z ]+) than ([a-z ]+)\?", text):
        first, second = len(named(scene, match[2])), len(named(scene, match[3]))
        return yes_no(first > second if match[1] == "more" else first < second)
    if match := re.fullmatch(r"is the ([a-z ]+) (bigger|larger|smaller) than the ([a-z ]+)\?", text):
        (first_thing,), (second_thing,) = named(scene, match[1]), named(scene, match[3])
        larger = first_thing.radius > second_thing.radius
        return yes_no(larger != (match[2] == "smaller"))
    if match := re.fullmatch(r"is the ([a-z ]+) (to the left of|to the right of|above|below) the ([a-z ]+)\?", text):
        (a,), (b,) = named(scene, match[1]), named(scene, match[3])
        holds = {"to the left of": a.x < b.x, "to the right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
        return yes_no(holds[match[2]])
    if match := re.fullmatch(r"(?:what|which) (color|shape) (?:is|does) the ([a-z ]+?)(?: have)?\?", text):
        (thing,) = named(scene, match[2])
        return thing.colour if match[1] == "color" else thing.shape
    if match := re.fullmatch(r"which object is (on the far left|on the far right|at the top|at the bottom)\?", text):
        keys = {"on the far left": lambda t: t.x, "on the far right": lambda t: -t.x, "at the top": lambda t: t.y}
        return str(min(things, key=keys.get(match[1], lambda t: -t.y)).shape)
    return None


def test_answers_agree_with_an_independent_reading_of_the_scenes(
    scenes: list[Scene], questions: list[Question]
) -> None:
    checked: Counter[str] = Counter()
    for question in questions:
        answer = _independent_answer(scenes[question.image_id], question.text)
        if answer is not None:
            assert answer == question.answer, (question, scenes[question.image_id])
            checked[question.kind] += 1
    assert set(checked) == KINDS
    assert sum(checked.values()) > 0.5 * len(questions)


def test_every_scene_gets_its_questions_and_no_question_twice(scenes: list[Scene], questions: list[Question]) -> None:
    texts = defaultdict(list)
    for question in questions:
        texts[question.image_id].append(question.text)
        assert question.number == len(texts[question.image_id]) - 1
    assert len(texts) == len(scenes)
    assert all(len(set(asked)) == len(asked) for asked in texts.values())
    assert np.mean([len(asked) for asked in texts.values()]) > 9
    assert {question.kind for question in questions} == KINDS


def test_yes_and_no_balance_in_every_family(questions: list[Question]) -> None:
    by_family: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        by_family[question.family][question.answer] += 1
    names = {family.name for family in question_families() if family.answer_type == "yes/no"}
    assert len(names) >= 8
    for name in names:
        assert abs(by_family[name]["yes"] - by_family[name]["no"]) <= 1, name


def test_open_answers_are_spread_evenly(questions: list[Question]) -> None:
    for name, words in (("count_shape", "1234"), ("colour_of", tuple(COLOURS)), ("shape_of", SHAPES)):
        counts = Counter(question.answer for question in questions if question.family == name)
        assert set(counts) == set(words)
        assert max(counts.values()) < 1.35 * sum(counts.values()) / len(counts), (name, counts)


def test_the_words_of_yes_no_questions_do_not_tell_the_answer(questions: list[Question]) -> None:
    # Always giving each word-filled question its own commonest answer, as learnt on half, must not help on the rest.
    closed = [question for question in questions if question.answer_type == "yes/no"]
    learnt: dict[str, Counter[str]] = defaultdict(Counter)
    for question in closed[::2]:
        learnt[question.text][question.answer] += 1
    right = [
        learnt[question.text].most_common(1)[0][0] == question.answer
        for question in closed[1::2]
        if question.text in learnt
    ]
    assert len(right) > 300
    assert np.mean(right) < 0.6


def test_ten_answers_mostly_agree(questions: list[Question]) -> None:
    rng = np.random.default_rng(0)
    others = 0
    for question in questions:
        answers = human_answers(question, rng)
        texts = [answer["answer"] for answer in answers]
        assert [answer["answer_id"] for answer in answers] == list(range(1, 11))
        assert {answer["answer_confidence"] for answer in answers} <= {"yes", "maybe", "no"}
        assert texts.count(question.answer) >= 7
        assert most_common_answer(answers) == question.answer
        others += sum(text != question.answer for text in texts)
    assert 0.05 < others / (10 * len(questions)) < 0.12
    assert {question.answer for question in questions} <= set(VARIANTS)


def test_captions_are_five_true_sentences(scenes: list[Scene]) -> None:
    for scene in scenes[:50]:
        assert_five_true_sentences(scene, describe(scene, np.random.default_rng(scene.image_id)))


def test_scenes_hold_three_to_ten_objects_inside_the_picture(scenes: list[Scene]) -> None:
    counts = Counter(len(scene.objects) for scene in scenes)
    assert set(counts) <= set(range(3, 11))
    assert {3, 5, 8} <= set(counts)
    for scene in scenes:
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= scene.width
            assert 0 <= y1 < y2 <= scene.height

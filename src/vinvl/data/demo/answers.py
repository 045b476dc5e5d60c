"""Ten answers a question, as ten people would type them: mostly the same, now and then another word or a slip."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vinvl.data.demo.questions import Question
from vinvl.data.demo.scene import COLOURS, SHAPES, SIZE_RADII, TEXTURES

NUM_PEOPLE = 10
VARIANT_RATE = 0.05  # answers in other words: a synonym, a longer phrase or a typing error
WRONG_RATE = 0.03  # answers that are wrong
VARIANTS = {
    "yes": ("yes it is", "yeah", "yes i think so", "yse"),
    "no": ("no it is not", "nope", "i do not think so", "on"),
    "1": ("just 1", "only 1"),
    "2": ("2 of them", "a pair"),
    "3": ("3 of them", "three of them"),
    "4": ("4 of them", "four or so"),
    "red": ("dark red", "rde"),
    "green": ("grass green", "gren"),
    "blue": ("dark blue", "bleu"),
    "yellow": ("golden", "yelow"),
    "purple": ("violet", "puple"),
    "black": ("dark grey", "balck"),
    "circle": ("disc", "round thing", "cirlce"),
    "square": ("box", "rectangle", "sqaure"),
    "triangle": ("triangel", "pyramid"),
    "star": ("5 pointed star", "satr"),
    "cross": ("plus sign", "corss"),
    "diamond": ("rhombus", "dimond"),
    "plain": ("no pattern", "solid"),
    "striped": ("stripes", "stirped"),
    "dotted": ("dots", "polka dots"),
    "small": ("little", "tiny"),
    "medium": ("middle", "average"),
    "large": ("big", "huge"),
}
_GROUPS = (("yes", "no"), ("1", "2", "3", "4"), tuple(COLOURS), SHAPES, TEXTURES, tuple(SIZE_RADII))


def human_answers(question: Question, rng: np.random.Generator) -> list[dict[str, str | int]]:
    """Ten answers in the form of VQA v2: `answer`, `answer_confidence` (yes | maybe | no), `answer_id` 1 … 10.

    Tries again in the rare case that fewer than seven of the ten say the true answer.
    """
    while True:
        texts = [_one_answer(question.answer, rng) for _ in range(NUM_PEOPLE)]
        if texts.count(question.answer) >= 7:
            break
    answers: list[dict[str, str | int]] = []
    for number, text in enumerate(texts, start=1):
        sure = 0.9 if text == question.answer else 0.4
        confidence = "yes" if rng.random() < sure else ("maybe", "maybe", "no")[int(rng.integers(3))]
        answers.append({"answer": text, "answer_confidence": confidence, "answer_id": number})
    return answers


def most_common_answer(answers: list[dict[str, str | int]]) -> str:
    """The `multiple_choice_answer` of VQA v2; the first given wins a tie."""
    return Counter(str(answer["answer"]) for answer in answers).most_common(1)[0][0]


def _one_answer(truth: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if draw < VARIANT_RATE:
        return VARIANTS[truth][int(rng.integers(len(VARIANTS[truth])))]
    if draw < VARIANT_RATE + WRONG_RATE:
        others = [other for group in _GROUPS if truth in group for other in group if other != truth]
        return others[int(rng.integers(len(others)))]
    return truth

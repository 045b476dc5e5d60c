"""Questions on scenes, with answers spread as evenly as the scenes allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vinvl.data.demo.question_kinds import QuestionFamily, question_families
from vinvl.data.demo.scene import Scene

FAMILY_TRIES = 40  # families tried for one question before the picture gets fewer questions


@dataclass(frozen=True)
class Question:
    """A question on one picture and its true answer."""

    image_id: int
    number: int  # 0, 1, … within the picture
    text: str
    answer: str
    kind: str  # question_type
    family: str
    answer_type: str


def ask(
    scenes: list[Scene],
    questions_per_image: int,
    rng: np.random.Generator,
    families: Sequence[QuestionFamily] | None = None,
) -> list[Question]:
    """Ask questions of the given families (`question_families` without) so that their text tells little of the answer.

    A family is used on a scene only where at least two answers are possible, or for open questions where the rarest
    answer so far is within reach, so that inside every family each answer comes up about equally often.
    """
    families = question_families() if families is None else families
    shares = np.array([family.weight for family in families])
    shares = shares / shares.sum()
    given: dict[str, Counter[str]] = {family.name: Counter() for family in families}
    questions: list[Question] = []
    for scene in scenes:
        asked: set[str] = set()
        for _ in range(FAMILY_TRIES):
            if len(asked) == questions_per_image:
                break
            family = families[int(rng.choice(len(families), p=shares))]
            question = _ask_one(family, scene, given[family.name], len(asked), rng)
            if question is not None and question.text not in asked:
                asked.add(question.text)
                given[family.name][question.answer] += 1
                questions.append(question)
    return questions


def _ask_one(
    family: QuestionFamily, scene: Scene, given: Counter[str], number: int, rng: np.random.Generator
) -> Question | None:
    possible = {answer: words for answer, words in family.fillings(scene).items() if words}
    if family.answer_type == "yes/no" and len(possible) < 2:
        return None  # a scene that allows one answer only would tip the balance
    if not possible:
        return None
    fewest = min(given[answer] for answer in possible)
    # An open question is refused when all it could be answered with has been answered too often already.
    if family.answer_type != "yes/no" and given and fewest > sum(given.values()) / len(given) + 0.5:
        return None
    rarest = sorted(answer for answer in possible if given[answer] == fewest)
    answer = rarest[int(rng.integers(len(rarest)))]
    fillings = possible[answer]
    words = fillings[int(rng.integers(len(fillings)))]
    phrasing = family.phrasings[int(rng.integers(len(family.phrasings)))]
    text = phrasing.format(*words)
    return Question(scene.image_id, number, text, answer, family.kind, family.name, family.answer_type)

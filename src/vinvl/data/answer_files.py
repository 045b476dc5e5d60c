"""Files of answers by number: JSON of our own, and the pickles that published VQA and GQA models were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.json_files import read_bytes, read_json
from vinvl.data.restricted_pickle import load_restricted
from vinvl.errors import UserError

PICKLES = (".pkl", ".pickle")
SHAPES = "a list of texts, an object answer → number, or an object number → answer"


def read_answers(path: str | Path) -> tuple[str, ...]:
    """The answers of a file in the order of their numbers, as they are.

    Args:
        path: JSON or, with the suffix .pkl or .pickle, a pickle such as the published trainval_label2ans.pkl and
            trainval_ans2label.pkl: a list of texts, answer → number, or number → answer. No code of a pickle is run.

    Raises:
        UserError: the file is missing or damaged, holds anything else, or its numbers are not 0 to A − 1, each once.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in PICKLES:
        return _answers_in(load_restricted(read_bytes(path), str(path)), path)
    return _answers_in(read_json(path), path)


def read_head_answers(path: str | Path) -> tuple[str, ...]:
    """The answers of a file in the order of the outputs of a head that was trained with it.

    Of JSON that is the order of their numbers. Oscar takes the entries of X_ans2label.pkl in the order in which they
    stand there, whatever their numbers, also where X_label2ans.pkl is named that lies beside.

    Raises:
        UserError: as `read_answers`.
    """
    path = Path(path).expanduser()
    answers = read_answers(path)
    ordered = path.with_name(path.name.replace("label2ans", "ans2label"))
    if path.suffix.lower() not in PICKLES or not ordered.is_file():
        return answers
    content = load_restricted(read_bytes(ordered), str(ordered))
    numbers = [_number(value) for value in content.values()] if isinstance(content, Mapping) else []
    if set(numbers) != set(range(len(answers))) or len(numbers) != len(answers):
        return answers  # of other answers, or not by answer
    return tuple(answers[number] for number in numbers if number is not None)


def refuse_to_write_pickles(path: str | Path) -> None:
    """Vocabularies are written as JSON: a pickle that is not there is a wrong path, and no file to make.

    Raises:
        UserError: the path is a pickle's.
    """
    if Path(path).suffix.lower() in PICKLES:
        raise UserError(f"The answer file {path} does not exist, and none is written as a pickle: check the path.")


def _answers_in(content: Any, path: Path) -> tuple[str, ...]:
    if isinstance(content, list | tuple | np.ndarray):
        return tuple(_text(answer, path) for answer in content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is no answer vocabulary: expected {SHAPES}.")
    by_answer = all(_number(value) is not None for value in content.values())
    pairs = content.items() if by_answer else ((answer, number) for number, answer in content.items())
    by_number: dict[int, str] = {}
    for answer, found in pairs:
        number = _number(found) if by_answer else _number_of_key(found)
        if number is None:
            raise UserError(f"{path} is no answer vocabulary: {_shown(found)} is no number; expected {SHAPES}.")
        if number in by_number:
            raise UserError(
                f"{path} is no answer vocabulary: {_shown(by_number[number])} and {_shown(answer)} both have the "
                f"number {_shown(number)}."
            )
        by_number[number] = _text(answer, path)
    missing = next((number for number in range(len(by_number)) if number not in by_number), None)
    if missing is not None:
        raise UserError(
            f"{path} is no answer vocabulary: of its {len(by_number):,} answers none has the number {missing}; they "
            f"must be 0 to {len(by_number) - 1}, each once."
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def _number(value: object) -> int | None:
    """A whole number of Python's or NumPy's; None for anything else, also for truth values."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _number_of_key(key: object) -> int | None:
    """The same of a key, which JSON knows only as text."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10:
        return int(key)
    return _number(key)


def _text(answer: object, path: Path) -> str:
    if not isinstance(answer, str):
        raise UserError(f"{path} is no answer vocabulary: {_shown(answer)} is no text; expected {SHAPES}.")
    return str(answer)  # of NumPy's texts too


def _shown(value: object) -> str:
    """A value of a file that may hold anything, short enough for a sentence."""
    if isinstance(value, str | float | bool | None) or (isinstance(value, int) and abs(value) < 10**40):
        return ascii(value)[:40]
    return f"a {type(value).__name__}"

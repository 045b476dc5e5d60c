"""The official VQA accuracy: ten people answer, each is left out once, and the prediction is compared with the rest."""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.exact import decode_lines, encode_lines

# The score that the published training code prints for VQA.


class SoftTargetScore(Metric):
    """Soft target of the arg-max answer, averaged over questions, in percent.

    This is the number the published Oscar code calls its score while training. It is *not* the official VQA accuracy
    (`VQAAccuracy`): it knows only answers of the vocabulary, compares normalised texts always and leaves nobody out.
    Report it under its own name.

    Sums stay on the device: `update` never waits for it. Targets that are multiples of 2^-33 (every float32 of 0.001 or
    more) are added without rounding, so order and ranks do not change the result for up to a million questions.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    total: Tensor
    questions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("questions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds B questions; pass only questions that have people's answers.

        logits (B, A) any float type; targets (B, A) soft scores 0 to 1. A question none of whose answers is in the
        vocabulary has a row of zeros and counts as wrong. Raises ValueError if the shapes differ.
        """
        if logits.ndim != 2 or logits.shape != targets.shape:
            shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"Expected logits and targets of one shape (B, A), got {shapes}.")
        best = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1)
        self.total += targets.detach().gather(1, best).sum(dtype=torch.float64)
        self.questions += targets.shape[0]

    def compute(self) -> Tensor:
        """Returns the mean in percent, 0 to 100, as a float64 scalar; nan if nothing was seen."""
        return 100 * self.total / self.questions


# Answer normalisation of the official VQA evaluation, oddities included.
#
# Two answers count as the same when their normalised texts are equal, so every quirk here moves the score. The rules
# are those of `vqaEval.py` in GT-Vision-Lab/VQA; what looks like a mistake is one, and is kept because published
# numbers contain it.


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Characters that are removed or become blanks. Apostrophe, colon, $, %, &, # and * are not among them."""

DIGIT_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

ARTICLES = frozenset({"a", "an", "the"})

# Well-formed contractions. The official table maps to each of them every spelling that lacks exactly one of its
# apostrophes. Left out are entries that can never act: keys with capitals (texts are lower-cased first: Im, Ive, Id've,
# I'dve) and keys that map to themselves (let's, she's).
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _spelling_table() -> dict[str, str]:
    """Misspelt contraction -> contraction, for every spelling that lacks one apostrophe."""
    table = {
        word[:position] + word[position + 1 :]: word
        for word in _CONTRACTIONS.split()
        for position, letter in enumerate(word)
        if letter == "'"
    }
    table["somebody'd"] = "somebodyd"  # the one entry that is the wrong way round officially
    return table


CONTRACTIONS = _spelling_table()

_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The official pattern also carries a mistyped look-behind that never fails, so only the following character counts.
_PERIOD = re.compile(r"\.(?!\d)")
# Officially a flag was passed where the number of replacements belongs; the flag's value is 32.
_MAX_PERIODS = 32


def strip_answer(text: str) -> str:
    """The first official step, applied to every answer: newlines and tabs become blanks, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _process_punctuation(text: str) -> str:
    """Removes or blanks out punctuation; what happens to a character is decided on the *original* text."""
    comma_in_number = _COMMA_BETWEEN_DIGITS.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        if mark in text:
            beside_blank = mark + " " in text or " " + mark in text
            result = result.replace(mark, "" if beside_blank or comma_in_number else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


def _process_digits_and_articles(text: str) -> str:
    """Lower-cases, turns number words into digits, drops articles and restores apostrophes, word by word."""
    words = (DIGIT_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)  # answers repeat: a few thousand texts make up most of the 4.4 million of VQA v2 train
def normalise_answer(text: str) -> str:
    """Returns the form of an answer that the official VQA evaluation compares.

    In order: newlines and tabs to blanks and strip; punctuation (`;/[]"{}()=+\\_-><@`,?!` removed where the text holds
    the character next to a blank or holds a comma between digits, else replaced by a blank; periods removed unless a
    digit follows, 32 at most); lower case, number words zero..ten (and "none") to digits, articles dropped,
    contractions restored ("dont" -> "don't"), words joined by single blanks.

    The result may be empty ("the", "?"); the official evaluation compares empty texts like any other.

    Source: `processPunctuation` and `processDigitArticle` of vqaEval.py, GT-Vision-Lab/VQA.

    >>> normalise_answer("The T-shirt, dont  know.")
    "t shirt don't know"
    """
    return _process_digits_and_articles(_process_punctuation(strip_answer(text)))


OVERALL = "overall"
QUESTION_TYPE_PREFIX = "question_type/"

# (category, answers per question) -> [points, questions]; a question with n answers earns points / 3n.
Tally = dict[tuple[str, int], list[int]]


def leave_one_out_points(matches: int, num_answers: int) -> int:
    """Score of an answer that `matches` of `num_answers` people gave, as an integer number of 3·num_answers-ths.

    Leaving out each person in turn, the answer earns min(1, matches among the others / 3); the score is the mean. Ten
    people give 0, .3, .6, .9, 1 for 0, 1, 2, 3, ≥ 4 matches. By the same formula the score cannot reach 1 with two or
    three people (1/3 and 2/3 at most). One person cannot be left out: there, a match is worth 1 (the official
    evaluation does not define that case).
    """
    if num_answers == 1:
        return 3 * matches
    return matches * min(3, matches - 1) + (num_answers - matches) * min(3, matches)


def count_matches(prediction: str, answers: Sequence[str]) -> int:
    """How many of the people's answers equal the prediction, in the official way of comparing.

    Texts are normalised only if the answers, stripped, are not all the same: against ten times "yes" a prediction "Yes"
    matches nobody. A question with a single answer, which the official evaluation does not know, is normalised too.

    Raises ValueError if there are no answers.
    """
    if not answers:
        raise ValueError("A question without answers has no accuracy; leave such questions out.")
    stripped = [strip_answer(answer) for answer in answers]
    if len(stripped) == 1 or len(set(stripped)) > 1:
        normalised_prediction = normalise_answer(prediction)
        return sum(normalise_answer(answer) == normalised_prediction for answer in stripped)
    return len(stripped) if strip_answer(prediction) == stripped[0] else 0


def official_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one prediction, 0 to 1, correctly rounded.

    `answers` are the raw texts of the people asked, ten in VQA v2; any number from one on works
    (`leave_one_out_points` says how few answers are scored). Raises ValueError if there are none.

    Source: vqaEval.py of GT-Vision-Lab/VQA, last version.

    >>> official_accuracy("net", ["net", "Net", "mesh", "netting", "web", "fence", "goal", "rope", "string", "?"])
    0.6
    """
    return leave_one_out_points(count_matches(prediction, answers), len(answers)) / (3 * len(answers))


class VQAAccuracy(Metric):
    """Official VQA accuracy in percent: overall, per answer type and per question type.

    `update` takes predictions and people's answers as texts; `compute` returns a dict of float64 scalars, 0 to 100,
    unrounded (the official code rounds to two decimals):

    - "overall" (nan if nothing was seen),
    - one entry per answer type seen, under its name: "yes/no", "number", "other", …
    - one entry per question type seen, under "question_type/<name>".

    The sums are kept as integers, so the result is the same to the last bit in whatever order and however divided over
    batches and ranks the questions come. The state does not grow with the number of questions: one line of JSON for
    each category and number of answers, as bytes, because the ranks may have seen different categories.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    tally: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("tally", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no question must still join the gathering with a tensor of the right type.
        self.tally = [_encode({}).to(self.device)]

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        answer_types: Sequence[str],
        question_types: Sequence[str] | None = None,
    ) -> None:
        """Adds B questions: predicted answer, people's raw answers, answer type and, where known, question type.

        Raises ValueError if the lengths differ or a question has no answers.
        """
        columns = [answers, answer_types] if question_types is None else [answers, answer_types, question_types]
        if any(len(column) != len(predictions) for column in columns):
            lengths = ", ".join(str(len(column)) for column in [predictions, *columns])
            raise ValueError(f"VQAAccuracy was given columns of different lengths: {lengths}.")
        tally = _decode(self.tally)
        for row, (prediction, people, answer_type) in enumerate(zip(predictions, answers, answer_types, strict=True)):
            points = leave_one_out_points(count_matches(prediction, people), len(people))
            categories = [OVERALL, _answer_type_key(answer_type)]
            if question_types is not None:
                categories.append(QUESTION_TYPE_PREFIX + question_types[row])
            for category in categories:
                _add(tally, category, len(people), points, 1)
        self.tally = [_encode(tally).to(self.device)]

    def compute(self) -> dict[str, Tensor]:
        """Returns the accuracies in percent as float64 scalars; see the class."""
        tally = _decode(self.tally)
        points: dict[str, Fraction] = {}
        questions: dict[str, int] = {}
        for (category, num_answers), (earned, seen) in tally.items():
            points[category] = points.get(category, Fraction(0)) + Fraction(earned, 3 * num_answers)
            questions[category] = questions.get(category, 0) + seen
        percent = {category: float(100 * points[category] / questions[category]) for category in sorted(points)}
        return {
            category: torch.tensor(value, dtype=torch.float64, device=self.device)
            for category, value in ({OVERALL: float("nan")} | percent).items()
        }


def _answer_type_key(answer_type: str) -> str:
    """The name an answer type is reported under: itself, unless it would be taken for another entry."""
    taken = answer_type == OVERALL or answer_type.startswith(QUESTION_TYPE_PREFIX)
    return f"answer_type/{answer_type}" if taken else answer_type


def _add(tally: Tally, category: str, num_answers: int, points: int, questions: int) -> None:
    entry = tally.setdefault((category, num_answers), [0, 0])
    entry[0] += points
    entry[1] += questions


def _encode(tally: Tally) -> Tensor:
    """A line per entry: category, answers per question, points, questions."""
    return encode_lines([*key, *entry] for key, entry in tally.items())


def _decode(states: Tensor | Iterable[Tensor]) -> Tally:
    """Adds up encoded tallies."""
    tally: Tally = {}
    for row in decode_lines(states):
        _add(tally, *row)
    return tally

"""The official VQA accuracy: ten people answer, each is left out once, and the prediction is compared with the rest."""

import re
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.exact import OVERALL, Earned

# Answer normalisation of the official VQA evaluation, oddities included.
#
# Two answers count as the same when their normalised texts are equal, so every quirk here moves the score. The rules
# are those of `vqaEval.py` in GT-Vision-Lab/VQA; what looks like a mistake is one, and is kept because published
# numbers contain it.


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Characters that are removed or become blanks. Apostrophe, colon, $, %, &, # and * are not among them."""

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGIT_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
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
CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTIONS.split()
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the one entry that is the wrong way round officially

_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The official pattern also carries a mistyped look-behind that never fails, so only the following character counts.
_PERIOD = re.compile(r"\.(?!\d)")
# Officially a flag was passed where the number of replacements belongs; the flag's value is 32.
_MAX_PERIODS = 32


def strip_answer(text: str) -> str:
    """The first official step, applied to every answer: newlines and tabs become blanks, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)  # answers repeat: a few thousand texts make up most of the 4.4 million of VQA v2 train
def normalise_answer(text: str) -> str:
    """Returns the form of an answer that the official VQA evaluation compares; it may be empty ("the", "?").

    In order: newlines and tabs to blanks and strip; punctuation (`;/[]"{}()=+\\_-><@`,?!` removed where the text holds
    the character next to a blank or holds a comma between digits, else replaced by a blank; periods removed unless a
    digit follows, 32 at most); lower case, number words zero..ten (and "none") to digits, articles dropped,
    contractions restored ("dont" -> "don't"), words joined by single blanks.

    Source: `processPunctuation` and `processDigitArticle` of vqaEval.py, GT-Vision-Lab/VQA.

    >>> normalise_answer("The T-shirt, dont  know.")
    "t shirt don't know"
    """
    text = result = strip_answer(text)  # what happens to a character is decided on the text before any is replaced
    comma_in_number = _COMMA_BETWEEN_DIGITS.search(text) is not None
    for mark in PUNCTUATION:
        if mark in text:
            beside_blank = mark + " " in text or " " + mark in text
            result = result.replace(mark, "" if beside_blank or comma_in_number else " ")
    result = _PERIOD.sub("", result, count=_MAX_PERIODS)
    words = (DIGIT_WORDS.get(word, word) for word in result.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


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


QUESTION_TYPE = "question_type/"


def official_accuracy(
    prediction: str, answers: Sequence[str], answer_type: str, question_type: str | None = None
) -> list[Earned]:
    """Official VQA accuracy of one prediction, for `CategoryAccuracy`: overall, by answer type and by question type.

    `answers` are the raw texts of the people asked, ten in VQA v2; any number from one on works
    (`leave_one_out_points` says how few are scored). An answer type is reported under its own name ("yes/no", "other")
    unless another entry has it. Raises ValueError if there are no answers.

    Source: vqaEval.py of GT-Vision-Lab/VQA, last version.
    """
    points = leave_one_out_points(count_matches(prediction, answers), len(answers))
    taken = answer_type == OVERALL or answer_type.startswith(QUESTION_TYPE)
    categories = [OVERALL, f"answer_type/{answer_type}" if taken else answer_type]
    if question_type is not None:
        categories.append(QUESTION_TYPE + question_type)
    return [(category, 3 * len(answers), points, 1) for category in categories]


class SoftTargetScore(Metric):
    """Soft target of the arg-max answer, averaged over questions, in percent: the published code's training score.

    It is *not* the official VQA accuracy: it knows only answers of the vocabulary, always compares normalised texts and
    leaves nobody out. Report it under its own name.

    Sums stay on the device: `update` never waits for it. Targets that are multiples of 2^-33 (every float32 of 0.001 or
    more) are added without rounding, so order and ranks do not change the result for up to a million questions.
    """

    full_state_update = False
    total: Tensor
    questions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("questions", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Adds B questions that have people's answers: logits and soft targets, 0 to 1, (B, A).

        A question none of whose answers is in the vocabulary has a row of zeros and counts as wrong.
        """
        best = logits.detach().argmax(dim=1, keepdim=True)  # (B, 1)
        self.total += targets.detach().gather(1, best).sum(dtype=torch.float64)
        self.questions += targets.shape[0]

    def compute(self) -> Tensor:
        """Returns the mean in percent, 0 to 100, as a float64 scalar; nan if nothing was seen."""
        return 100 * self.total / self.questions

"""What one scores without looking at the picture, to hold a result against."""

from collections import Counter, defaultdict

from vinvl.data.vqa_records import VQARecords
from vinvl.metrics import VQAAccuracy, normalise_answer


def question_type_prior(train: VQARecords, test: VQARecords) -> dict[str, float]:
    """Official accuracy of always giving the most frequent training answer of the question's type.

    Args:
        train: records whose answers are counted, by question type.
        test: records that are scored; a type that `train` has not gets the most frequent answer of all.

    Returns:
        percent by name, as `VQAAccuracy.compute` names them. Both splits need answers and question types.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    assert train.answers is not None and train.question_types is not None
    for kind, answers in zip(train.question_types, train.answers, strict=True):
        common = Counter(map(normalise_answer, answers)).most_common(1)[0][0]
        counts[kind][common] += 1
    overall = sum(counts.values(), Counter())
    assert test.answers is not None and test.question_types is not None and test.answer_types is not None
    types = list(test.question_types)
    guesses = [counts.get(kind, overall).most_common(1)[0][0] for kind in types]
    accuracy = VQAAccuracy()
    accuracy.update(guesses, list(test.answers), list(test.answer_types), types)
    return {name: value.item() for name, value in accuracy.compute().items()}

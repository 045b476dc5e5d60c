"""What one scores without looking at the picture, to hold a result against."""

from collections import Counter, defaultdict

from vinvl.captioning.files import CaptionRecords
from vinvl.captioning.scores import evaluate_captions
from vinvl.data.table import RecordTable
from vinvl.exact import CategoryAccuracy
from vinvl.vqa.accuracy import official_accuracy
from vinvl.vqa.answers import most_common_answer


def question_type_prior(train: RecordTable, test: RecordTable) -> dict[str, float]:
    """Official accuracy of always giving the most frequent training answer of the question's type.

    Args:
        train: records whose answers are counted, by question type.
        test: records that are scored; a type that is not in `train` gets the most frequent answer of all.

    Returns:
        percent by name, as `official_accuracy` names them. Both splits need answers and question types.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, answers in zip(train["question_type"], train["answers"], strict=True):
        counts[kind][most_common_answer(answers)] += 1
    overall = sum(counts.values(), Counter())
    accuracy = CategoryAccuracy()
    for answers, answer_type, kind in zip(test["answers"], test["answer_type"], test["question_type"], strict=True):
        guess = counts.get(kind, overall).most_common(1)[0][0]
        accuracy.update(official_accuracy(guess, answers, answer_type, kind))
    return {name: value.item() for name, value in accuracy.compute().items()}


def question_text_prior(train: RecordTable, test: RecordTable) -> float:
    """Accuracy in percent of giving each question its commonest training answer, by its exact words.

    A text that is not in `train` gets the commonest answer of all. Both splits need answers.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in zip(train["question"], train["answer"], strict=True):
        counts[text][answer] += 1
    overall = sum(counts.values(), Counter())
    right = [
        counts.get(text, overall).most_common(1)[0][0] == answer
        for text, answer in zip(test["question"], test["answer"], strict=True)
    ]
    return 100 * sum(right) / len(right)


def constant_caption(train: CaptionRecords, test: CaptionRecords, candidates: int = 50) -> tuple[str, float]:
    """The one caption to give every image, and its CIDEr in percent on `test`.

    It is the best, on `test` itself, of the commonest training captions: no caption that ignores the image and is of
    these can do better. Both splits need captions.
    """
    assert train.captions is not None
    common = [text for text, _ in Counter(train.captions).most_common(candidates)]
    references: dict[int | str, list[str]] = {
        str(image_id): test.captions_of(index) for index, image_id in enumerate(test.image_ids)
    }
    scored = {text: evaluate_captions(dict.fromkeys(references, text), references).corpus["CIDEr"] for text in common}
    best = max(scored, key=lambda text: scored[text])
    return best, 100 * scored[best]

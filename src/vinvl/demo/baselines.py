"""What one scores without looking at the picture, to hold a result against."""

from collections import Counter, defaultdict

from vinvl.captioning.records import CaptionRecords
from vinvl.captioning.scores import evaluate_captions
from vinvl.gqa.files import GQARecords
from vinvl.vqa.accuracy import VQAAccuracy, normalise_answer
from vinvl.vqa.files import VQARecords


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


def question_text_prior(train: GQARecords, test: GQARecords) -> float:
    """Accuracy in percent of giving each question its commonest training answer, by the question's very words.

    A text that `train` has not gets the commonest answer of all. Both splits need answers.
    """
    assert train.answers is not None and test.answers is not None
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in zip(train.questions, train.answers, strict=True):
        counts[text][answer] += 1
    overall = sum(counts.values(), Counter())
    right = [
        counts.get(text, overall).most_common(1)[0][0] == answer
        for text, answer in zip(test.questions, test.answers, strict=True)
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

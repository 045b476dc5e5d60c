"""BLEU, ROUGE-L and CIDEr against scores of the COCO evaluation, naive versions and hostile input."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.captioning.scores import (
    UNKNOWN,
    CaptionTexts,
    Cider,
    NgramIndex,
    evaluate_captions,
    longest_common_subsequence,
)
from vinvl.data.words import regex_tokenize
from vinvl.run.errors import UserError

SAMPLE = Path(__file__).parents[1] / "data" / "samples" / "coco_caption"
RAW = json.loads((SAMPLE / "captions_100.json").read_text())
SCORES = json.loads((SAMPLE / "scores_100.json").read_text())
PTB = json.loads((SAMPLE / "ptb_tokenized_100.json").read_text())
PTB_CANDIDATES = {image_id: texts[0] for image_id, texts in PTB["candidate"].items()}
JAVA_ONLY = {"METEOR"}

sentences = st.lists(st.sampled_from(["a", "cat", "on", "the", "mat"]), max_size=9)
references = st.lists(sentences, min_size=1, max_size=3)
images = st.lists(st.tuples(sentences, references), min_size=1, max_size=5)


def split_at_blanks(texts: Sequence[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def test_ptb_tokens_give_the_scores_of_the_coco_evaluation() -> None:
    result = evaluate_captions(PTB_CANDIDATES, PTB["gold"], split_at_blanks)
    expected = SCORES["corpus"]["ptb_java"]
    for name in expected.keys() - JAVA_ONLY:
        assert result.corpus[name] == pytest.approx(expected[name], abs=1e-12), name
    assert len(SCORES["per_image_ptb_java"]) == len(result.per_image) == 100
    for image_id, scores in SCORES["per_image_ptb_java"].items():
        assert {name: result.per_image[image_id][name] for name in scores} == pytest.approx(scores, abs=1e-12)


def test_regex_tokenizer_is_close_to_ptb() -> None:
    result = evaluate_captions(RAW["candidate"], RAW["gold"])
    assert len(SCORES["corpus"]["regex_lower_alnum_apostrophe"]) == 6
    for name, value in SCORES["corpus"]["regex_lower_alnum_apostrophe"].items():
        assert result.corpus[name] == pytest.approx(value, abs=1e-12)
        assert result.corpus[name] == pytest.approx(SCORES["corpus"]["ptb_java"][name], abs=1e-3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's bike.", ["a", "man's", "bike"]),
        ("it's 10 o'clock, isn't it?", ["it's", "10", "o'clock", "isn't", "it"]),
        ("well-known 'quoted' --", ["well", "known", "quoted"]),
        ("  \n", []),
        ("… 🐱 —", []),
        ("Läuft über l’eau, dog's", ["läuft", "über", "l'eau", "dog's"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("काली बिल्ली बैठी है।", ["काली", "बिल्ली", "बैठी", "है"]),
        ("الْقِطَّةُ نائمة،", ["الْقِطَّةُ", "نائمة"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("고양이가 잔다", ["고양이가", "잔다"]),
        ("猫がタワーに2匹。cat's", ["猫", "が", "タ", "ワ", "ー", "に", "2", "匹", "cat's"]),
        ("นั่งที่", ["นั่", "ง", "ที่"]),
    ],
)
def test_regex_tokenizer(text: str, words: list[str]) -> None:
    assert regex_tokenize([text]) == [words]


@settings(max_examples=100, deadline=None)
@given(sentences, sentences)
def test_longest_common_subsequence_equals_the_table(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first, start=1):
        for j, right in enumerate(second, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if left == right else max(table[i - 1][j], table[i][j - 1])
    assert longest_common_subsequence(first, second) == table[-1][-1]


def naive_cider(dataset: list[tuple[list[str], list[list[str]]]], clipped: bool) -> list[float]:
    """CIDEr written down directly: dictionaries, one n at a time."""
    documents: Counter[tuple[str, ...]] = Counter()
    for _, gold in dataset:
        documents.update({ngram for words in gold for n in range(1, 5) for ngram in ngrams(words, n)})

    def vector(words: list[str], n: int) -> dict[tuple[str, ...], float]:
        weight = {ngram: math.log(len(dataset) / max(1, documents[ngram])) for ngram in ngrams(words, n)}
        return {ngram: count * weight[ngram] for ngram, count in ngrams(words, n).items()}

    def similarity(words: list[str], gold: list[str], n: int) -> float:
        ours, theirs = vector(words, n), vector(gold, n)
        shared = ours.keys() & theirs.keys()
        product = sum((min(ours[key], theirs[key]) if clipped else ours[key]) * theirs[key] for key in shared)
        norm = math.sqrt(sum(v * v for v in ours.values()) * sum(v * v for v in theirs.values()))
        bigrams = max(0, len(words) - 1) - max(0, len(gold) - 1)
        return (product / norm if norm else 0.0) * (math.exp(-(bigrams**2) / 72) if clipped else 1.0)

    return [
        10 * sum(similarity(words, one, n) for one in gold for n in range(1, 5)) / 4 / len(gold)
        for words, gold in dataset
    ]


def ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@settings(max_examples=80, deadline=None)
@given(images, st.booleans())
def test_cider_equals_a_naive_version(dataset: list[tuple[list[str], list[list[str]]]], clipped: bool) -> None:
    cider = Cider([gold for _, gold in dataset])
    score = partial(cider.scores, clipped=clipped)
    captions = [words for words, _ in dataset]
    expected = naive_cider(dataset, clipped)
    assert score(range(len(dataset)), captions).tolist() == pytest.approx(expected, abs=1e-9)
    # A caption's score does not depend on what else is scored, how often or in which order.
    twice = score([*reversed(range(len(dataset))), 0], [*reversed(captions), captions[0]])
    assert twice.tolist() == pytest.approx([*reversed(expected), expected[0]], abs=1e-9)


def test_ngram_index_knows_what_it_was_given_and_nothing_else() -> None:
    index = NgramIndex([["a", "b", "a", "b", "c"], [], ["c"]])
    assert len(index) == 3 + 3 + 3 + 2  # a b c; ab ba bc; aba bab abc; abab babc
    known = ["a", "b", "c", "a b", "b a", "b c", "a b a", "b a b", "a b c", "a b a b", "b a b c"]
    own = index.count([ngram.split() for ngram in known])
    whole = own.orders == own.lengths[own.sentences] - 1
    texts = dict(zip(own.ids[whole].tolist(), known, strict=True))
    assert sorted(texts) == list(range(len(index)))
    found = index.count([["a", "b", "a"], ["c", "c", "new", "a"], []])
    entries = sorted(
        (int(row), texts[ngram], int(count))
        for row, ngram, count in zip(found.sentences, found.ids.tolist(), found.counts, strict=True)
        if ngram != UNKNOWN
    )
    first = [(0, "a", 2), (0, "a b", 1), (0, "a b a", 1), (0, "b", 1), (0, "b a", 1)]
    assert entries == [*first, (1, "a", 1), (1, "c", 2)]
    assert (found.ids == UNKNOWN).sum() == 1 + 3 + 2 + 1  # new; cc, c-new, new-a; two of three; one of four
    assert found.lengths.tolist() == [3, 4, 0]
    empty = NgramIndex([]).count([["a", "b"]])
    assert empty.ids.tolist() == [UNKNOWN] * 3


def test_empty_caption_and_single_image_score_zero() -> None:
    result = evaluate_captions({1: "", 2: "a cat"}, {1: ["a cat"], 2: ["a cat"], 3: ["unused"]})
    assert result.per_image[1] == pytest.approx(dict.fromkeys(result.corpus, 0), abs=1e-9)
    assert set(result.per_image) == {1, 2}
    assert evaluate_captions({1: "a cat"}, {1: ["a cat"]}).corpus["CIDEr"] == 0
    wordless = evaluate_captions({1: "…", 2: "a cat"}, {1: ["…"], 2: ["a cat sat"]}).corpus
    assert all(math.isfinite(value) for value in wordless.values())


def test_image_without_references_is_told() -> None:
    with pytest.raises(UserError, match="Image 7 has a caption but no reference"):
        evaluate_captions({7: "a cat"}, {8: ["a cat"]})
    with pytest.raises(UserError, match="Image 'x' has a caption but no reference"):
        evaluate_captions({"x": "a cat"}, {"x": []})
    with pytest.raises(UserError, match=r"No reference caption has a letter .*u2026"):
        evaluate_captions({1: "a cat", 2: "a"}, {1: ["…", "—"], 2: ["!"]})


@pytest.mark.parametrize("first", ["а", "ა", "ก", "一"])
def test_captions_in_another_script_score_as_in_english(first: str) -> None:
    """Letters are replaced one for one, so runs of letters score the same; where each letter is a word, not 0."""
    table = {letter: chr(ord(first) + i) for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    captions = {key: text.lower().replace("'", "") for key, text in PTB_CANDIDATES.items()}
    gold = {key: [text.replace("'", "") for text in texts] for key, texts in PTB["gold"].items()}
    moved = {key: "".join(table.get(letter, letter) for letter in text) for key, text in captions.items()}
    moved_gold = {key: ["".join(table.get(x, x) for x in text) for text in texts] for key, texts in gold.items()}
    there, here = (evaluate_captions(*pair).corpus for pair in ((moved, moved_gold), (captions, gold)))
    if first in "аა":
        assert there == pytest.approx(here, abs=1e-12)
    assert min(there.values()) > 0.05


def test_texts_do_not_depend_on_order_batches_or_repeats() -> None:
    ids = list(RAW["candidate"])
    expected = evaluate_captions(RAW["candidate"], RAW["gold"]).corpus
    for order, size in ((ids, 100), (ids[::-1], 7), (ids + ids[:13], 9)):
        metric = CaptionTexts()
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            captions = [RAW["candidate"][image_id] for image_id in batch]
            metric.update(batch, captions, [RAW["gold"][image_id] for image_id in batch])
        assert evaluate_captions(*metric.compute()).corpus == expected


def test_a_subset_counts_documents_over_it_alone() -> None:
    near = {image_id: RAW["candidate"][image_id] for image_id in list(RAW["candidate"])[:40]}
    found = evaluate_captions(near, RAW["gold"])
    assert found == evaluate_captions(near, {image_id: RAW["gold"][image_id] for image_id in near})
    whole = evaluate_captions(RAW["candidate"], RAW["gold"])
    assert found.corpus["CIDEr"] != np.mean([whole.per_image[image_id]["CIDEr"] for image_id in near])
    assert all(math.isnan(value) for value in evaluate_captions({}, RAW["gold"]).corpus.values())


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_contradictory_texts_are_refused() -> None:
    metric = CaptionTexts()
    assert metric.compute() == ({}, {})
    metric.update([1, "1"], ["a cat", "a dog"], [["a cat"], ["a dog"]])  # 1 and "1" are two images
    metric.compute()
    metric.update([1], ["a bird"], [["a cat"]])
    with pytest.raises(UserError, match="Image 1 has two captions, 'a cat' and 'a bird'"):
        metric.compute()
    metric.reset()
    metric.update([1, 1], ["a cat", "a cat"], [["a cat"], ["a dog"]])
    with pytest.raises(UserError, match="Image 1 was given with two lists of references"):
        metric.compute()

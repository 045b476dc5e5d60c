"""Answer normalisation against the recorded output of the official evaluation, and rule by rule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vinvl.vqa.accuracy import CONTRACTIONS, PUNCTUATION, normalise_answer

GOLDEN = golden.facts("vqa_eval/cases")


def test_every_recorded_text_is_normalised_as_officially() -> None:
    assert len(GOLDEN["normalisation"]) > 150
    wrong = [
        (case["text"], case["normalised"], normalise_answer(case["text"]))
        for case in GOLDEN["normalisation"]
        if normalise_answer(case["text"]) != case["normalised"]
    ]
    assert wrong == []


@pytest.mark.parametrize("mark", PUNCTUATION)
def test_punctuation_is_blanked_between_letters_and_removed_beside_a_blank_or_in_numbers(mark: str) -> None:
    assert normalise_answer(f"x{mark}y") == "x y"
    assert normalise_answer(f"x{mark}y {mark}") == "xy"
    assert normalise_answer(f"x{mark}y{mark} z") == "xy z"
    assert normalise_answer(f"1,000 x{mark}y") == "1000 xy"


@pytest.mark.parametrize("mark", "':$%&#*~^|é")
def test_other_characters_stay(mark: str) -> None:
    assert normalise_answer(f"x{mark}y {mark}") == f"x{mark}y {mark}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.14", "3.14"),
        ("b.1", "b.1"),
        ("1.b", "1b"),
        ("U.S.A.", "usa"),
        (".", ""),
        ("." * 40, "." * 8),  # the official code removes 32 periods at most
        ("a1,b2", "a1 b2"),  # no digit on both sides of the comma
        ("1,2-3", "123"),
        ("\tnone\nof the  three ", "0 of 3"),
        ("Ten an eleven", "10 eleven"),
        ("a", ""),
        ("THE DONT", "don't"),
        ("im Im shes lets let's she's", "im im shes lets let's she's"),  # looks wrong, is official
        ("id've", "id've"),
        ("somebody'd", "somebodyd"),
        ("ow's'at 'ows'at 'ow'sat", "'ow's'at 'ow's'at 'ow's'at"),
        ("yall'd've y'alld've y'all'dve yalldve", "y'all'd've y'all'd've y'all'd've yalldve"),
        ("couldntve couldn'tve couldnt've", "couldntve couldn't've couldn't've"),
        ("twas oclock maam", "'twas o'clock ma'am"),
        ("café naïve", "café naïve"),
    ],
)
def test_oddities(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_contraction_table_has_all_effective_entries() -> None:
    """The official table has 120; four have capitals and two map to themselves, so that they never act."""
    assert len(CONTRACTIONS) == 114
    assert all(key == key.lower() and key != value for key, value in CONTRACTIONS.items())
    assert {key for key, value in CONTRACTIONS.items() if key.count("'") + 1 != value.count("'")} == {"somebody'd"}


def test_published_answers_are_in_normal_form() -> None:
    answers = ["", "at&t", "don't know", "12:35", "2.00", "1 4", "t shirt", "st patrick's day", "he's not"]
    assert [normalise_answer(answer) for answer in answers] == answers


@settings(deadline=None)
@given(st.text())
def test_result_is_lower_case_words_without_articles(text: str) -> None:
    words = normalise_answer(text).split(" ")
    assert words == [""] or not {"a", "an", "the", "", "one", "none"} & set(words)
    assert normalise_answer(f" {text}\n") == normalise_answer(text)

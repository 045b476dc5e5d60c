"""VQA questions and answers from official JSON and from JSONL: what is read, and how bad files are refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import refusal, texts
from vinvl.data.table import RecordTable
from vinvl.vqa.files import guess_answer_type, read_official, read_own

SAMPLES = Path(__file__).parents[1] / "data/samples/vqa"


def question(**changes: Any) -> dict[str, Any]:
    return {"question_id": 1, "image_id": 7, "question": "What?"} | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return {"question_id": 1, "image_id": 7, "answers": [{"answer": "cat", "answer_id": 1}]} | changes


def official_files(
    folder: Path, questions: list[Any], annotations: list[Any] | None = None
) -> tuple[Path, Path | None]:
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    if annotations is None:
        return folder / "questions.json", None
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return folder / "questions.json", folder / "annotations.json"


def jsonl_file(folder: Path, *records: Any, name: str = "own.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


def contents(records: RecordTable) -> list[Any]:
    names = ["question_id", "image_id", "question", "answers", "answer_type", "question_type"]
    return [list(records[name]) if name in records else None for name in names]


def test_official_sample() -> None:
    records = read_official(SAMPLES / "questions.json", SAMPLES / "annotations.json")
    assert len(records) == 3
    assert list(records["question_id"]) == [458752000, 458752001, 458752002]
    assert records.image_ids.tolist() == ["458752"] * 3
    assert records["question"][1] == "What position is this man playing?"
    assert records["answers"][1] == ["pitcher", "catcher"] + ["pitcher"] * 8
    assert list(records["answer_type"]) == ["other"] * 3
    assert "question_type" not in records and "multiple_choice_answer" not in records and records.annotated
    assert records.describe(2) == f"{SAMPLES / 'questions.json'} record 3 (question_id 458752002)"
    assert contents(pickle.loads(pickle.dumps(records))) == contents(records)
    bare = read_official(SAMPLES / "questions.json")
    assert not bare.annotated and contents(bare) == [*contents(records)[:3], None, None, None]


def test_full_annotations_in_another_order(tmp_path: Path) -> None:
    kinds = {"answer_type": "yes/no", "question_type": "is the", "multiple_choice_answer": "yes"}
    annotations = [
        annotation(question_id=2, image_id=8),
        annotation(answers=[{"answer": "yes"}, {"answer": "é"}], **kinds),
    ]
    questions = [question(question="Is it?"), question(question_id=2, image_id=8)]
    records = read_official(*official_files(tmp_path, questions, annotations))
    assert contents(records) == [
        [1, 2],
        ["7", "8"],
        ["Is it?", "What?"],
        [["yes", "é"], ["cat"]],
        ["yes/no", "other"],
        ["is the", "none of the above"],
    ]
    assert list(records["multiple_choice_answer"]) == ["yes", ""]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["Yes", "no", "yes."], "yes/no"),
        (["two", "2", "cat"], "number"),
        (["none"], "number"),
        (["3.5"], "number"),
        (["1,000"], "number"),
        (["2 cats"], "other"),
        (["cat", "yes"], "other"),
        ([""], "other"),
    ],
)
def test_guessed_answer_types(answers: list[str], expected: str) -> None:
    assert guess_answer_type(answers) == expected


@pytest.mark.parametrize(
    ("questions", "annotations", "sentence"),
    [
        ([], None, "questions.json holds no questions"),
        ([3], None, "at $.questions[0]"),
        ([question(), {"question_id": 2, "image_id": 7}], None, "missing required field `question` at $.questions[1]"),
        ([{"image_id": 7, "question": "?"}], None, "`question_id` at $.questions[0]"),
        ([{"question_id": 7, "question": "?"}], None, "`image_id` at $.questions[0]"),
        ([question(question="  ")], None, "that is not blank at $.questions[0].question"),
        ([question(question=None)], None, "at $.questions[0].question"),
        ([question(question="\ud800")], None, "$.questions[0].question holds half of a surrogate pair"),
        ([question(question_id=True)], None, "at $.questions[0].question_id"),
        ([question(image_id=None)], None, "at $.questions[0].image_id"),
        ([question(image_id="x" * 300)], None, "256 characters at most at $.questions[0].image_id"),
        ([question(image_id="x\0")], None, "without null characters, of 256 characters at most at $.questions[0]."),
        ([question(), question()], None, "questions.json record 2 has the question_id 1 of"),
        ([question()], [], "annotations.json holds no annotations"),
        ([question()], [annotation(), annotation()], "annotations.json record 2 has the question_id 1 of"),
        ([question()], [annotation(question_id=5)], "lacks the annotations of 1 of the 1 questions"),
        ([question(), question(question_id=2)], [annotation()], "the first being question 2;"),
        ([question()], [annotation(), annotation(question_id=5)], "annotates 1 questions that"),
        ([question()], [annotation(question_id="1")], "the first being question 1;"),
        ([question()], [annotation(image_id=9)], "annotations.json record 1 is about image 9, but its question 1 in"),
        ([question()], [annotation(answers=[])], "at $.annotations[0].answers"),
        ([question()], [annotation(answers=["cat", 2])], "at $.annotations[0].answers[1]"),
        ([question()], [annotation(answers=["cat", {"text": "x"}])], "`answer` at $.annotations[0].answers[1]"),
        ([question()], [annotation(answers=["cat", "\udfff"])], "answers[1] holds half of a surrogate pair"),
        ([question()], [{"question_id": 1}], "annotations.json: Object missing required field `answers` at $.annota"),
        ([question()], [annotation(answer_type=4)], "at $.annotations[0].answer_type"),
    ],
)
def test_bad_official_records_are_refused(
    tmp_path: Path, questions: list[Any], annotations: list[Any] | None, sentence: str
) -> None:
    assert sentence in refusal(read_official, *official_files(tmp_path, questions, annotations))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b'{"questions": [\n{"a" 1}]}', r"line 2, column 6: Expecting ':' delimiter"),
        (b'{"questions": [', r"is not valid JSON \(column 16: "),
        (b'{"questions": [' + b"[" * 200_000, "not usable JSON"),
        (b'{"questions": [{"question_id": ' + b"9" * 5000 + b"}]}", "out of range at ..questions.0..question_id"),
        (b'{"questions": [{"question": "\xe9"}]}', r"at \$.questions\[0\] is not UTF-8 text \(byte 14"),
        (b"[]", "at .; give a VQA questions file"),
        (b'{"annotations": []}', "`questions` at .; give a VQA questions file"),
        (b'{"questions": {}}', "at ..questions; give a VQA questions file"),
    ],
)
def test_bad_official_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    message = refusal(read_official, path)
    assert message.startswith(str(path)) and re.search(sentence, message), message


@pytest.mark.parametrize("reader", [read_official, read_own])
def test_missing_files(tmp_path: Path, reader: Any) -> None:
    assert "none.json does not exist" in refusal(reader, tmp_path / "none.json")
    assert "cannot be read" in refusal(reader, tmp_path)


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    for path, reader in (
        (official_files(tmp_path, [question()])[0], read_official),
        (jsonl_file(tmp_path, question()), read_own),
    ):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(reader(path)) == 1


def test_jsonl_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"image_id": "a/b.jpg", "question": "How many?", "answers": ["two"]}\n'
        "\n"
        '{"image_id": 5, "question": "Is it?", "answers": [{"answer": "yes"}, "no"], "answer_type": "mine"}'
    )
    records = read_own(path)
    assert contents(records) == [
        [1, 3],
        ["a/b.jpg", "5"],
        ["How many?", "Is it?"],
        [["two"], ["yes", "no"]],
        ["number", "mine"],
        None,
    ]
    assert records.describe(1) == f"{path} line 3 (question_id 3)"


def test_a_list_as_vizwiz_writes_it(tmp_path: Path) -> None:
    said = {"answer_confidence": "no", "answer_id": 3}
    answers = [{"answer": one, **said} for one in ("unanswerable", "", "  ")]
    path = tmp_path / "train.json"
    path.write_text(json.dumps([
        {"image": "VizWiz_train_00000000.jpg", "question": "What is it?", "answers": answers, "answer_type": "other"},
        {"image": "train/VizWiz_train_00000012.png", "question": "Why?", "answers": answers, "answerable": 0},
        {"image": "x.jpg", "image_id": 7, "question": "Who?", "answers": ["yes"]},
    ]))  # fmt: skip
    records = read_own(path)
    assert list(records["image_id"]) == ["VizWiz_train_00000000", "VizWiz_train_00000012", "7"]
    assert records.row(1)["image_file"] == "train/VizWiz_train_00000012.png"
    assert records.row(0)["answers"] == ["unanswerable", "", "  "] and records.describe(1).endswith(
        "record 2 (question_id 2)"
    )
    assert list(read_own(path, r"0*(\d+)$|^(x)")["question_id"])[:2] == [1, 2]
    assert list(read_own(path, r"0*(\d+)$", before=40)["question_id"]) == [41, 42, 43]
    assert list(read_own(path, r"0*(\d+)$")["image_id"]) == ["0", "12", "7"]
    assert "train.json record 1: id_pattern='(cat)' does not fit 'VizWiz_train_00000000'" in refusal(
        lambda given: read_own(given, "(cat)"), path
    )
    assert "image_file" not in read_own(jsonl_file(tmp_path, question()))


def test_ids_that_are_not_all_integers_become_text(tmp_path: Path) -> None:
    for odd in ("b", 2**70):
        records = read_own(jsonl_file(tmp_path, question(), question(question_id=odd)))
        assert list(records["question_id"]) == ["1", str(odd)]


BARE, FULL = '{"image_id": 1, "question": "?"}', '{"image_id": 1, "question": "?", "answers": ["x"]}'


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("\n\n", "own.jsonl holds no questions; an empty split"),
        ("1\n", "own.jsonl line 1: Expected `object`"),
        ("[1]\n", "own.jsonl: Expected `object`, got `int` at $[0];"),
        ('[{"image": "a.jpg"}]', "own.jsonl: Object missing required field `question` at $[0];"),
        ('{"image_id": 1, "question": "?"}\n{"image_id": 1,\n', "own.jsonl line 2 is not valid JSON (column 16: "),
        ('{"image_id": 1, "question": "\\ud83d"}', "($.question holds half of a surrogate pair"),
        ('{"question": "?"}', "own.jsonl line 1: Object missing required field `image_id`"),
        ('{"image_id": 1, "question": "?", "answers": []}', "line 1: Expected `array` of length >= 1 at $.answers"),
        ('{"image_id": 1, "question": "?", "answers": [null]}', "at $.answers[0]"),
        ('{"image_id": 1, "question": "?", "answers": {"a": 1}}', "at $.answers"),
        (f"{FULL}\n{BARE}", "own.jsonl line 2 has no answers and "),
        (f"{BARE}\n{FULL}", "own.jsonl line 2 has (1 of 2"),
        (f"{BARE}\n".encode() + b'{"image_id": 1, "question": "\xff"}', "line 2 is not UTF-8 text (byte 29);"),
    ],
)
def test_bad_jsonl_is_refused(tmp_path: Path, lines: str | bytes, sentence: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    assert sentence in refusal(read_own, path)


def test_joining_fills_what_one_file_lacks(tmp_path: Path) -> None:
    kinds = {"question_type": "what", "multiple_choice_answer": "cat"}
    official = read_official(*official_files(tmp_path, [question()], [annotation(**kinds)]))
    own = read_own(jsonl_file(tmp_path, question(question_id="own", image_id="z.jpg", answers=["no"])))
    joined = RecordTable.join([official, own])
    assert contents(joined) == [
        ["1", "own"],
        ["7", "z.jpg"],
        ["What?"] * 2,
        [["cat"], ["no"]],
        ["other", "yes/no"],
        ["what", "none of the above"],
    ]
    assert list(joined["multiple_choice_answer"]) == ["cat", ""]
    assert joined.describe(1) == f"{tmp_path / 'own.jsonl'} line 1 (question_id own)"
    assert contents(RecordTable.join([own])) == contents(own)


own_records = st.fixed_dictionaries(
    {
        "image_id": st.one_of(st.integers(), texts.filter(lambda text: text.strip() and "\0" not in text)),
        "question": texts.filter(str.strip),
        "answers": st.lists(texts, min_size=1, max_size=4),
    },
    optional={"answer_type": texts.filter(bool), "question_type": texts.filter(bool)},
)


@settings(deadline=None, max_examples=40)
@given(st.lists(own_records, min_size=1, max_size=8), st.booleans(), st.integers(0, 8))
def test_jsonl_round_trip(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], ascii_only: bool, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("own")
    lines = [json.dumps({"question_id": 10 + i} | record, ensure_ascii=ascii_only) for i, record in enumerate(records)]
    parts = [part for part in (lines[:cut], lines[cut:]) if part]
    for number, part in enumerate(parts):
        (folder / f"{number}.jsonl").write_text("\n".join(part), encoding="utf-8", newline="")
    read = RecordTable.join([read_own(folder / f"{number}.jsonl") for number in range(len(parts))])
    types = [record.get("question_type") for record in records]
    assert contents(read) == [
        list(range(10, 10 + len(records))),
        [str(record["image_id"]) for record in records],
        [record["question"] for record in records],
        [record["answers"] for record in records],
        [record.get("answer_type", guess_answer_type(record["answers"])) for record in records],
        [kind or "none of the above" for kind in types] if any(types) else None,
    ]

"""Files of examples: what is written is read; what is damaged, doubled or of others is refused in a sentence."""

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import vinvl.examples
from vinvl.examples import AboutExamples, Outcome, read_examples, write_examples
from vinvl.run.errors import UserError

ABOUT = AboutExamples("vqa", "val", "accuracy/overall", "best.ckpt", files=("q.json", "a.json"), left_out=3)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
rows = st.builds(
    Outcome, texts, texts, st.floats(0, 100), texts, texts, texts, st.lists(texts, max_size=3).map(tuple),
    st.integers(-1, 9), best=st.just(("a", "b")), probabilities=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(rows, min_size=1, max_size=9, unique_by=lambda one: one.id))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, examples: list[Outcome]) -> None:
    path = tmp_path_factory.mktemp("examples") / "examples.parquet"
    vinvl.examples.ROWS, before = 4, vinvl.examples.ROWS
    assert write_examples(path, iter(examples), ABOUT) == len(examples)
    vinvl.examples.ROWS = before
    read = read_examples(path)
    assert read.about == ABOUT
    lists = ("truth", "best", "probabilities")
    found = [Outcome(**row | {name: tuple(row[name]) for name in lists}) for row in read.table.to_pylist()]
    assert found == examples


def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path) -> None:
    def examples() -> object:
        yield Outcome("1", "1", 0.0)
        raise UserError("No.")

    with pytest.raises(UserError, match="No"):
        write_examples(tmp_path / "examples.parquet", examples(), ABOUT)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_examples(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        (
            [Outcome("7", "1", 0.0), Outcome("8", "1", 0.0), Outcome("7", "2", 1.0)],
            "in row 1 and again in row 3",
        ),
        ([], "holds no examples"),
        ([Outcome("7", "1", float("nan"))], "rows without: score"),
        ([Outcome("7", "1", -1e300)], "rows without: score"),
        ([Outcome("7", "1", 1.0, truth=("a", None))], "rows without: truth"),  # type: ignore[arg-type]
        ([Outcome("7", None, 1.0)], "rows without: image_id"),  # type: ignore[arg-type]
        ([Outcome("7", "1", 1.0, best=("a", "b"), probabilities=(0.5,))], "rows without: probabilities"),
    ],
)
def test_unusable(tmp_path: Path, examples: list[Outcome], told: str) -> None:
    path = tmp_path / "examples.parquet"
    write_examples(path, examples, ABOUT)
    assert told in refusal(path)


def test_a_caption_may_be_called_as_its_image(tmp_path: Path) -> None:
    examples = [
        Outcome("7", "7", 0.0, "image_to_text", rank=3),
        Outcome("7", "7", 0.0, "text_to_image", rank=3),
    ]
    write_examples(tmp_path / "a.parquet", examples, AboutExamples("retrieval", "test", "recall_mean", "best.ckpt"))
    assert len(read_examples(tmp_path / "a.parquet")) == 2
    write_examples(
        tmp_path / "b.parquet", [examples[0], examples[0]], AboutExamples("retrieval", "test", "recall_mean", "b")
    )
    assert "(1 such repeats)" in refusal(tmp_path / "b.parquet")


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    assert "does not exist" in refusal(path)
    path.write_bytes(b"")
    assert "is damaged, or no Parquet file" in refusal(path)
    parquet.write_table(pa.table({"id": ["1"]}), path)
    assert "holds no examples of vinvl.evaluate" in refusal(path)
    write_examples(path, [Outcome(str(number), "1", 0.0) for number in range(50)], ABOUT)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + whole[210:])
    assert "is damaged, or no Parquet file" in refusal(path) and "evaluate again" in refusal(path)
    for place in range(len(whole)):  # a file with one wrong byte is refused, or says what it said
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            assert len(read_examples(path)) == 50
        except UserError as error:
            assert "examples.parquet" in str(error)
    write_examples(path, [Outcome("1", "1", 0.0)], AboutExamples("vqa", "val", "accuracy/overall", "x", format=3))
    assert "has format 3, and this version reads 2" in refusal(path)


def test_a_file_of_format_1_has_no_best_answers(tmp_path: Path) -> None:
    path = tmp_path / "examples.parquet"
    write_examples(path, [Outcome("1", "7", 100.0, answer="a")], msgspec.structs.replace(ABOUT, format=1))
    parquet.write_table(parquet.read_table(path).drop_columns(["best", "probabilities"]), path)
    (row,) = read_examples(path).table.to_pylist()
    assert (row["answer"], row["best"], row["probabilities"]) == ("a", [], [])

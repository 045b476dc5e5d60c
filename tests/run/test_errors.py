"""What files and models say is printed escaped, wherever it is printed."""

from pathlib import Path

import pytest

from tests.regions.samples import make_regions, write
from vinvl.models.weights import LoadingReport
from vinvl.predictor import Answer, Caption
from vinvl.predictor.command import Said
from vinvl.regions import LabelMap, RegionStoreWriter
from vinvl.regions.__main__ import main as store_door
from vinvl.run.errors import UserError, printable, say, sentence_of
from vinvl.run.progress import print_results
from vinvl.run.values import FilledText, decoded_file

# Title, colours and bell of a terminal, lines, directions and half a character: none of it is a file's to choose.
HOSTILE = "a\x1b]0;owned\x07\x1b[31mb\nc\rd\x9b2Je\x85f\u202eg\u2066h\u2028i\udcffj\x00[red]k[/]"
HARMLESS = "Grüße, 猫, кошка, שלום, मानक, 👩‍🚀, می‌خواهم, a\\b, [red]x[/red], {y}"


def assert_harmless(text: str, *, lines: int | None = None) -> None:
    """Nothing in it is obeyed by a terminal, and it has as many lines as the program meant."""
    assert "\\x1b" in text and "[red]k[/]" in text.replace("\n", ""), text
    assert text.rstrip("\n").replace("\n", "") == printable(text.rstrip("\n").replace("\n", "")), ascii(text)
    assert lines is None or text.count("\n") == lines, ascii(text)


@pytest.mark.parametrize("text", [HARMLESS, "", "\u200d\u200c\xa0"])
def test_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_a_terminal_obeys_becomes_letters_and_stays_so() -> None:
    shown = printable(HOSTILE)
    assert shown == r"a\x1b]0;owned\x07\x1b[31mb\nc\rd\x9b2Je\x85f\u202eg\u2066h\u2028i\udcffj\x00[red]k[/]"
    assert printable(shown) == shown
    assert all(not printable(chr(code)).startswith(chr(code)) for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C))


def test_a_sentence_is_one_line_whatever_it_quotes() -> None:
    error = UserError(f"split '{HOSTILE}' is unknown.")
    assert_harmless(str(error), lines=0)
    try:
        raise RuntimeError(HOSTILE) from error
    except RuntimeError as wrapped:
        assert sentence_of(wrapped) == str(error)


def test_lines_of_a_door_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE, "second")
    say(HOSTILE, error=True)
    printed = capsys.readouterr()
    assert_harmless(printed.out, lines=2)
    assert_harmless(printed.err, lines=1)


def test_a_table_neither_obeys_nor_drops_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(HOSTILE, [(HOSTILE, "1.0"), ("[/]", "[bold]2")], {"run folder": Path(HOSTILE)}, ("[red]", HOSTILE))
    printed = capsys.readouterr().out
    assert_harmless(printed)
    assert "[/]" in printed and "[bold]2" in printed


def test_what_a_model_says_of_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    answer, caption = Answer(HOSTILE, 0.5, ((HOSTILE, 0.5),)), Caption(HOSTILE, -1.0, ((HOSTILE, -1.0),))
    for one in (Said(HOSTILE, HOSTILE, answer), Said(HOSTILE, None, caption), Said((HOSTILE, "b"), HOSTILE, 0.25)):
        say(*one.lines())
        assert_harmless(capsys.readouterr().out, lines=len(one.lines()))
    assert_harmless(str(answer), lines=0)
    assert_harmless(str(caption), lines=0)
    assert Said(HOSTILE, HOSTILE, answer).plain()["answer"] == HOSTILE  # files keep the truth


def test_what_became_of_the_tensors_of_a_stranger() -> None:
    report = LoadingReport(HOSTILE, missing=(HOSTILE,), unused=(HOSTILE, "b"), renamed=((HOSTILE, "encoder"),))
    assert_harmless(str(report), lines=3)
    assert all(
        row.count("\t") == 1 and row.replace("\t", "") == printable(row.replace("\t", "")) for row in report.rows()
    )


def test_what_a_store_says_of_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hostile.h5"
    name = HOSTILE.replace("\udcff", "").replace("\x00", "")  # no HDF5 file holds these
    labels = LabelMap(("__background__", "cat", "dog"), ("__no_attribute__", "red"))
    with RegionStoreWriter(path, feature_dim=3, detector=name, label_map=labels, num_attributes=0) as writer:
        writer.add(make_regions(name, 2))
    for arguments in (["info", str(path)], ["compare", str(path), str(path)]):
        assert store_door(arguments) == 0
    assert_harmless(capsys.readouterr().out)
    other = write(tmp_path / f"{name.replace('/', '')}.h5", [make_regions("1", 1)])
    other.write_bytes(other.read_bytes()[:200])
    assert store_door(["verify", str(other)]) == 1
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "where"),
    [(b'{"x": {" ": 1}}', "at a key of $[...];"), (b'{"x": [1]}', "at $[...];"), (b"3", "object`, got `int` at $;")],
)
def test_what_is_wrong_in_a_json_file_names_its_place(tmp_path: Path, content: bytes, where: str) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        decoded_file(tmp_path / "f.json", dict[str, dict[FilledText, int]], "file of counts")
    assert where.removeprefix("object") in str(refused.value) and "f.json" in str(refused.value)

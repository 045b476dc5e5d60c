"""The vocabulary of the demo world."""

from __future__ import annotations

from pathlib import Path

from vinvl.demo.tokenizer import SPECIAL_TOKENS, SPELLING, write_tokenizer


def _vocabulary(folder: Path) -> list[str]:
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


def test_words_of_later_texts_come_after_all_others_and_move_none(tmp_path: Path) -> None:
    texts = ["what is red?", "what is blue", "red red", "once"]
    later = ["neither is red", "neither is blue", "neither both", "both", "never"]
    write_tokenizer(texts, [], tmp_path / "first")
    write_tokenizer(texts, later, tmp_path / "both")
    first, both = _vocabulary(tmp_path / "first"), _vocabulary(tmp_path / "both")
    assert first == [*SPECIAL_TOKENS, *SPELLING, "red", "is", "what"]
    assert both == [*first, "neither", "both"]

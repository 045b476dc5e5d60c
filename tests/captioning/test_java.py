"""METEOR, SPICE and the PTB tokenizer: real ones where Java is present, stand-ins for what can go wrong."""

import gc
import json
import os
import sys
from pathlib import Path

import pytest

from vinvl.captioning import java
from vinvl.run.errors import UserError

SAMPLE = Path(__file__).parents[1] / "data" / "samples" / "coco_caption"
RAW = json.loads((SAMPLE / "captions_100.json").read_text())
SCORES = json.loads((SAMPLE / "scores_100.json").read_text())["corpus"]["ptb_java"]
PTB = json.loads((SAMPLE / "ptb_tokenized_100.json").read_text())

needs_java = pytest.mark.skipif(java.why_unavailable() is not None, reason=str(java.why_unavailable()))


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


@needs_java
def test_ptb_tokens_and_scores_are_those_of_the_coco_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for image_id in RAW["gold"] for text in (RAW["candidate"][image_id], *RAW["gold"][image_id])]
    expected = [text for image_id in PTB["gold"] for text in (*PTB["candidate"][image_id], *PTB["gold"][image_id])]
    hostile = ["", "a\nb\r\nc", "naïve café — “x”", "d\u2028e\x85f\x0bg", "", "(a, b); `c`"]
    tokens = java.ptb_tokenize([*texts, *hostile])
    assert list(map(" ".join, tokens[: len(texts)])) == expected
    found = tokens[len(texts) :]  # a line each
    assert found[:2] == [[], ["a", "b", "c"]] and found[2][:2] == ["naïve", "café"]
    # The COCO evaluation means to drop brackets, but looks for them in capitals after lower-casing; so they stay.
    assert found[3:] == [["d", "e", "f", "g"], [], ["-lrb-", "a", "b", "-rrb-", "c"]]
    assert java.ptb_tokenize([]) == []

    known = dict(zip(texts, tokens, strict=False))
    monkeypatch.setattr(java, "ptb_tokenize", lambda asked: [known[text] for text in asked])
    scores, missing = java.evaluate_in_java(RAW["candidate"], RAW["gold"])
    assert scores["METEOR"] == SCORES["METEOR"] and ("SPICE" in scores) != ("SPICE" in missing)
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert scores[f"ptb/{name}"] == pytest.approx(SCORES[name], abs=1e-12)


@needs_java
def test_texts_that_would_part_meteors_input() -> None:
    gold = [words("a cat"), words("a dog"), words("a cat", "x ||| y")]
    assert 0 < java.meteor(words("a cat ||| a dog", "", "a cat"), gold) < 1


def fake_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a `java` in front of the PATH."""
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_is_missing_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="there is no java on the PATH"):
            java.meteor(words("a"), [words("a")])
        scores, missing = java.evaluate_in_java({1: "a cat"}, {1: ["a cat"]})
        assert scores == {} and set(missing) == {"METEOR", "SPICE"}
        assert all("no java on the PATH" in reason for reason in missing.values())
    fake_java(tmp_path, "", monkeypatch)
    monkeypatch.setattr(java, "_SPICE_MODELS", ("nowhere.jar",))
    with pytest.raises(UserError, match="SPICE needs the Stanford CoreNLP"):
        java.spice(words("a"), [words("a")])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"need pycocoevalcap; pip install 'vinvl\[captions\]'"):
        java.ptb_tokenize(["a"])
    with pytest.raises(UserError, match="Image 5 has a caption but no reference captions"):
        java.evaluate_in_java({5: "a"}, {})


def test_spice_reads_the_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spice:
        def compute_score(self, gts: dict[int, list[str]], res: dict[int, list[str]]) -> tuple[float, list[object]]:
            assert gts == {0: ["x y"], 1: ["y"]} and res == {0: ["a"], 1: ["a b"]}
            assert "--add-opens" in os.environ["JDK_JAVA_OPTIONS"]
            return 0.2, []

    fake_java(tmp_path, "", monkeypatch)
    monkeypatch.setattr(java, "why_unavailable", lambda spice: None)
    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    monkeypatch.delenv("JDK_JAVA_OPTIONS", raising=False)
    assert java.spice(words("a", "a b"), [words("x y"), words("y")]) == pytest.approx(0.2)
    assert "JDK_JAVA_OPTIONS" not in os.environ


FAIL = "import sys; sys.exit('Error: out of luck')"


@pytest.mark.parametrize("script", [FAIL, "print('nonsense')", "pass"])
@pytest.mark.parametrize("count", [1, 200])
def test_programs_that_fail_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, count: int) -> None:
    fake_java(tmp_path, script, monkeypatch)
    many = ["a cat " * 1000] * count  # 200 are more than a pipe holds
    with pytest.raises(UserError, match="The PTB tokenizer stopped without a result"):
        java.ptb_tokenize(many)
    with pytest.raises(UserError, match="METEOR stopped without a result"):
        java.meteor(words(*many), [words("a cat")] * len(many))
    gc.collect()

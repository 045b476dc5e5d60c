"""METEOR, SPICE and the PTB tokenizer: real ones where Java is present, stand-ins for what can go wrong."""

import gc
import json
import os
import sys
from pathlib import Path

import pytest

from vinvl.captioning import java
from vinvl.captioning.scores import evaluate_captions
from vinvl.run.errors import UserError

SAMPLE = Path(__file__).parents[1] / "data" / "samples" / "coco_caption"
RAW = json.loads((SAMPLE / "captions_100.json").read_text())
SCORES = json.loads((SAMPLE / "scores_100.json").read_text())["corpus"]["ptb_java"]
PTB = json.loads((SAMPLE / "ptb_tokenized_100.json").read_text())

needs_java = pytest.mark.skipif(java.why_unavailable() is not None, reason=str(java.why_unavailable()))


@needs_java
def test_ptb_tokens_and_scores_are_those_of_the_coco_evaluation() -> None:
    texts = [text for image_id in RAW["gold"] for text in (RAW["candidate"][image_id], *RAW["gold"][image_id])]
    expected = [text for image_id in PTB["gold"] for text in (*PTB["candidate"][image_id], *PTB["gold"][image_id])]
    assert [" ".join(words) for words in java.ptb_tokenize(texts)] == expected
    result = evaluate_captions(RAW["candidate"], RAW["gold"], java.ptb_tokenize)
    assert result.corpus["CIDEr"] == pytest.approx(SCORES["CIDEr"], abs=1e-12)


@needs_java
def test_ptb_tokenizer_keeps_one_line_per_text() -> None:
    hostile = ["", "a\nb\r\nc", "naïve café — “x”", "d\u2028e\x85f\x0bg", "", "(a, b); `c`"]
    words = java.ptb_tokenize(hostile)
    assert words[:2] == [[], ["a", "b", "c"]] and words[2][:2] == ["naïve", "café"]
    # The COCO evaluation means to drop brackets, but looks for them in capitals after lower-casing; so they stay.
    assert words[3:] == [["d", "e", "f", "g"], [], ["-lrb-", "a", "b", "-rrb-", "c"]]
    assert java.ptb_tokenize([]) == []


@needs_java
def test_meteor_is_that_of_the_coco_evaluation() -> None:
    found = java.evaluate_in_java(RAW["candidate"], RAW["gold"])
    assert found.scores["METEOR"] == SCORES["METEOR"]
    for name in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"):
        assert found.scores[f"ptb/{name}"] == pytest.approx(SCORES[name], abs=1e-12)
    assert ("SPICE" in found.scores) != ("SPICE" in found.missing)


@needs_java
def test_meteor_survives_separators_in_texts() -> None:
    corpus, scores = java.meteor_scores(
        ["a cat ||| a dog", "", "a cat"], [["a cat\n"], ["a dog"], ["a cat", "x ||| y"]]
    )
    assert len(scores) == 3 and scores[1] == 0 < scores[0] < scores[2] and 0 < corpus < 1


def fake_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a `java` in front of the PATH."""
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_without_java_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for run in (lambda: java.ptb_tokenize(["a"]), lambda: java.meteor_scores(["a"], [["a"]])):
        with pytest.raises(UserError, match="there is no java on the PATH"):
            run()
    found = java.evaluate_in_java({1: "a cat"}, {1: ["a cat"]})
    assert found.scores == {} and set(found.missing) == {"METEOR", "SPICE"}
    assert all("no java on the PATH" in reason for reason in found.missing.values())


def test_without_the_package_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, "", monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"need pycocoevalcap; pip install 'vinvl\[captions\]'"):
        java.ptb_tokenize(["a"])


def test_spice_without_its_models_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, "", monkeypatch)
    monkeypatch.setattr(java, "_SPICE_MODELS", ("nowhere.jar",))
    with pytest.raises(UserError, match="SPICE needs the Stanford CoreNLP"):
        java.spice_scores(["a"], [["a"]])


def test_spice_reads_the_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spice:
        def compute_score(self, gts: dict[int, list[str]], res: dict[int, list[str]]) -> tuple[float, list[object]]:
            assert gts == {0: ["x"], 1: ["y"]} and "--add-opens" in os.environ["JDK_JAVA_OPTIONS"]
            return 0.2, [{"All": {"f": len(res[row][0]) / 10}, "Object": {"f": 0.0}} for row in gts]

    fake_java(tmp_path, "", monkeypatch)
    monkeypatch.setattr(java, "why_unavailable", lambda spice: None)
    monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
    monkeypatch.delenv("JDK_JAVA_OPTIONS", raising=False)
    assert java.spice_scores(["a", "abc"], [["x"], ["y"]]) == (pytest.approx(0.2), [0.1, 0.3])
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
        java.meteor_scores(many, [["a cat"]] * len(many))
    gc.collect()


def test_every_caption_wants_references() -> None:
    with pytest.raises(UserError, match="Image 5 has a caption but no reference captions"):
        java.evaluate_in_java({5: "a"}, {})

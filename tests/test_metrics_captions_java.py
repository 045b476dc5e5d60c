"""METEOR, SPICE and the PTB tokenizer: real ones where Java is present, stand-ins for what can go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vinvl.errors import UserError
from vinvl.metrics import evaluate_captions
from vinvl.metrics.captions import java, java_process

SAMPLE = Path(__file__).parent / "data" / "samples" / "coco_caption"
RAW = json.loads((SAMPLE / "captions_100.json").read_text())
SCORES = json.loads((SAMPLE / "scores_100.json").read_text())["corpus"]["ptb_java"]
PTB = json.loads((SAMPLE / "ptb_tokenized_100.json").read_text())

needs_java = pytest.mark.skipif(
    java_process.why_unavailable() is not None, reason=str(java_process.why_unavailable()).replace("\n", " ")
)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")


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
    """Puts a `java` in front of the PATH, and a package folder without programs in place of pycocoevalcap."""
    folder.mkdir(exist_ok=True)
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(java_process, "_package_folder", lambda: folder)


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
    monkeypatch.setattr(java_process, "_package_folder", lambda: None)
    with pytest.raises(UserError, match=r"need pycocoevalcap; pip install 'vinvl\[captions\]'"):
        java.ptb_tokenize(["a"])


def test_spice_without_its_models_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, "", monkeypatch)
    with pytest.raises(UserError, match="SPICE needs the Stanford CoreNLP"):
        java.spice_scores(["a"], [["a"]])


def test_spice_reads_the_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = """import json, sys
rows = json.load(open(sys.argv[sys.argv.index("-jar") + 2]))
scores = [{"image_id": row["image_id"], "scores": {"All": {"f": len(row["test"]) / 10}}} for row in rows]
json.dump(scores[::-1], open(sys.argv[sys.argv.index("-out") + 1], "w"))"""
    fake_java(tmp_path, script, monkeypatch)
    monkeypatch.setattr(java, "why_spice_unavailable", lambda: None)
    assert java.spice_scores(["a", "abc"], [["x"], ["y"]]) == (pytest.approx(0.2), [0.1, 0.3])
    fake_java(tmp_path, "", monkeypatch)
    with pytest.raises(UserError, match="SPICE ended without a usable result"):
        java.spice_scores(["a"], [["x"]])


SLEEP = "import time; time.sleep(60)"
FAIL = "import sys; print('NOTE: Picked up X', file=sys.stderr); sys.exit('Error: out of luck\\nat line 3')"


@pytest.mark.parametrize("script", [SLEEP, FAIL, "print('nonsense')", "pass"])
def test_programs_that_hang_or_fail_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    fake_java(tmp_path, script, monkeypatch)
    many = ["a cat " * 1000] * 200  # more than a pipe holds
    started = time.monotonic()
    with pytest.raises(UserError) as tokenizer:
        java.ptb_tokenize(many, timeout=2)
    with pytest.raises(UserError) as meteor:
        java.meteor_scores(many, [["a cat"]] * len(many), timeout=2)
    assert time.monotonic() - started < 20
    sentences = (str(tokenizer.value), str(meteor.value))
    if script == SLEEP:
        assert all("did not finish in 2 seconds" in sentence for sentence in sentences)
    if script == FAIL:
        assert all(sentence.endswith("stopped without a result: Error: out of luck.") for sentence in sentences)


def test_meteor_wants_references(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path, SLEEP, monkeypatch)
    with pytest.raises(UserError, match="Caption 2 has no references"):
        java.meteor_scores(["a", "b"], [["a"], []])
    with pytest.raises(UserError, match="Image 5 has a caption but no reference captions"):
        java.evaluate_in_java({5: "a"}, {})


@needs_linux
def test_programs_end_with_a_killed_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    fake_java(
        tmp_path / "bin", f"import os; open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n{SLEEP}", monkeypatch
    )
    code = (
        "from pathlib import Path; from vinvl.metrics.captions import java, java_process\n"
        f"java_process._package_folder = lambda: Path({str(tmp_path)!r})\n"
        "java.ptb_tokenize(['a'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: pid_file.is_file() and bool(pid_file.read_text()))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not is_running(int(pid_file.read_text())))


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""METEOR, SPICE and the PTB tokenizer: Java programs that come with `pycocoevalcap`.

Scores need Java and the package `pycocoevalcap` (extra "captions"); without them every function here raises a
UserError that says which is missing. A score is never 0 for want of a program.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vinvl.errors import UserError
from vinvl.metrics.captions.evaluation import ImageId, evaluate_captions
from vinvl.metrics.captions.java_process import conversation, java_folder, run_java, why_unavailable
from vinvl.metrics.captions.tokenizer import split_at_blanks

TIMEOUT = 600.0  # seconds; METEOR and the tokenizer take a few per thousand images, SPICE minutes

PTB_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that the COCO evaluation drops after tokenising and lower-casing: the four brackets therefore never match, and
stay as "-lrb-" and so on. Published numbers contain that."""

_TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_METEOR_JAR = "meteor/meteor-1.5.jar"
_SPICE_JAR = "spice/spice-1.0.jar"
_SPICE_MODELS = ("spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar")
# SPICE looks into classes of the Java library that Java 16 and later close to it; Java 8 would stumble over the option
# on the command line, but does not read the variable that this goes into.
_OPEN_PACKAGES = " ".join(
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "math", "util", "net", "text")
)


def why_spice_unavailable() -> str | None:
    """One sentence saying what SPICE lacks here; None if it can run."""
    problem = why_unavailable()
    if problem is not None:
        return problem
    if not all((java_folder() / name).is_file() for name in _SPICE_MODELS):
        return (
            "SPICE needs the Stanford CoreNLP 3.6.0 models (about 400 MB), which are not there; where there is a "
            "network, run python -m pycocoevalcap.spice.get_stanford_models once."
        )
    return None


def ptb_tokenize(texts: Sequence[str], timeout: float = TIMEOUT) -> list[list[str]]:
    """Words of each text as the COCO evaluation sees them: Penn Treebank tokens, lower case, without punctuation.

    Fits `evaluate_captions(tokenize=…)`. Raises UserError if it cannot run, fails or takes longer than `timeout`
    seconds.
    """
    if not texts:
        return []
    lines = "".join(_one_line(text) + "\n" for text in texts)
    command = ["-cp", _TOKENIZER_JAR, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    output = run_java("The PTB tokenizer", command, lines, timeout).split("\n")
    if len(output) < len(texts) or any(output[len(texts) :]):
        raise UserError(f"The PTB tokenizer returned {len(output) - 1} lines for {len(texts)} texts.")
    return [[word for word in line.split() if word not in PTB_PUNCTUATION] for line in output[: len(texts)]]


def meteor_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = TIMEOUT
) -> tuple[float, list[float]]:
    """METEOR 1.5 (English, normalised), 0 to 1: of the corpus, and of each caption against its references.

    The COCO evaluation passes texts through the PTB tokenizer first: give " ".join of `ptb_tokenize` for its numbers.
    Raises UserError if it cannot run, fails or takes longer than `timeout` seconds, ValueError if
    the lengths differ.
    """
    if not captions:
        return math.nan, []
    command = ["-Xmx2G", "-jar", _METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    if not all(references):
        raise UserError(f"Caption {list(map(bool, references)).index(False) + 1} has no references for METEOR.")
    questions = [
        " ||| ".join(["SCORE", *(map(_meteor_text, texts)), _meteor_text(caption)])
        for caption, texts in zip(captions, references, strict=True)
    ]
    with conversation("METEOR", command, timeout) as ask:
        # METEOR answers each question with a line of statistics, and all of these, handed back, with a line per score.
        statistics = [ask(question, 1)[0] for question in questions]
        output = ask(" ||| ".join(["EVAL", *statistics]), len(captions) + 1)
    try:
        *scores, corpus = [float(line) for line in output]
    except ValueError:
        raise UserError(f"METEOR did not answer with numbers: {' '.join(output)[:100]!r}.") from None
    return corpus, scores


def spice_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = TIMEOUT
) -> tuple[float, list[float]]:
    """SPICE F-scores, 0 to 1: the mean, and each caption's against its references.

    nan where SPICE finds nothing to compare in a caption; the mean is then nan too, as in the COCO evaluation. Raises
    UserError if it cannot run, fails or takes longer than `timeout` seconds, ValueError if the lengths differ.
    """
    problem = why_spice_unavailable()
    if problem is not None:
        raise UserError(problem)
    if not captions:
        return math.nan, []
    rows = [
        {"image_id": row, "test": caption, "refs": list(texts)}
        for row, (caption, texts) in enumerate(zip(captions, references, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="vinvl-spice-") as folder:
        questions, answers = Path(folder, "in.json"), Path(folder, "out.json")
        questions.write_text(json.dumps(rows), encoding="utf-8")
        paths = [str(questions), "-cache", folder, "-out", str(answers)]
        command = ["-Xmx8G", "-jar", _SPICE_JAR, *paths, "-subset", "-silent"]
        run_java("SPICE", command, "", timeout, {"JDK_JAVA_OPTIONS": _OPEN_PACKAGES})
        try:
            found = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(answers.read_text("utf-8"))}
            scores = [float("nan" if found[row] is None else found[row]) for row in range(len(captions))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"SPICE ended without a usable result ({type(error).__name__}: {error}).") from None
    return math.fsum(scores) / len(scores), scores


class JavaScores(NamedTuple):
    """What Java is needed for, as far as it could be computed."""

    scores: dict[str, float]  # "METEOR", "SPICE", 0 to 1; "ptb/CIDEr" …: BLEU, ROUGE-L and CIDEr of PTB tokens
    missing: dict[str, str]  # for each of METEOR and SPICE that is not in `scores`, one sentence that says why


def evaluate_in_java(
    captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]], timeout: float = TIMEOUT
) -> JavaScores:
    """Scores of one caption per image after the PTB tokenizer, to the digit as the COCO evaluation computes them.

    Never raises for want of Java or a package: what could not be computed is in `missing`, with the reason. Raises
    UserError if an image has no references.
    """
    for image_id in captions:
        if not references.get(image_id):
            raise UserError(f"Image {image_id!r} has a caption but no reference captions; add them or leave it out.")
    result = JavaScores({}, {})
    try:
        words = iter(
            ptb_tokenize([*captions.values(), *(text for key in captions for text in references[key])], timeout)
        )
    except UserError as error:
        result.missing.update(METEOR=str(error), SPICE=str(error))
        return result
    candidates = [" ".join(next(words)) for _ in captions]
    gold = [[" ".join(next(words)) for _ in references[image_id]] for image_id in captions]
    by_ptb = evaluate_captions(
        dict(zip(captions, candidates, strict=True)), dict(zip(captions, gold, strict=True)), split_at_blanks
    )
    result.scores.update({f"ptb/{name}": value for name, value in by_ptb.corpus.items()})
    for name, score in (("METEOR", meteor_scores), ("SPICE", spice_scores)):
        try:
            result.scores[name] = score(candidates, gold, timeout)[0]
        except UserError as error:
            result.missing[name] = str(error)
    return result


def _one_line(text: str) -> str:
    """A text without anything a Java program takes for the end of a line."""
    return " ".join(text.split())


def _meteor_text(text: str) -> str:
    return _one_line(text.replace("|||", ""))

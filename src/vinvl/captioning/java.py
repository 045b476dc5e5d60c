"""METEOR, SPICE and the PTB tokenizer: Java programs that come with `pycocoevalcap`.

They need Java and the package `pycocoevalcap` (extra "captions"); a UserError says which is missing, or which program
stopped. A score is never 0 for lack of a program.
"""

import importlib.util
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vinvl.captioning.scores import ImageId, evaluate_captions, refuse_without_references, split_at_blanks
from vinvl.run.errors import UserError

_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# SPICE looks into classes of the Java library that Java 16 and later close to it.
_OPTIONS = "-Dfile.encoding=UTF-8 -Dstdout.encoding=UTF-8 " + " ".join(
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "math", "util", "net", "text")
)
_LAST = "a"  # a text after all others, whose words tell whether the tokenizer gave a line for each


def why_unavailable(spice: bool = False) -> str | None:
    """One sentence saying what METEOR and the PTB tokenizer, or SPICE, lack here; None if they can run."""
    if shutil.which("java") is None:
        return (
            "METEOR, SPICE and the PTB tokenizer need Java, and there is no java on the PATH; install a Java runtime."
        )
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return "METEOR, SPICE and the PTB tokenizer need pycocoevalcap; pip install 'vinvl[captions]'."
    models = Path(package.submodule_search_locations[0]) / "spice" / "lib"
    if spice and not all((models / name).is_file() for name in _SPICE_MODELS):  # `Spice` would download them
        return (
            "SPICE needs the Stanford CoreNLP 3.6.0 models (about 400 MB), which are missing; if there is a "
            "network, run python -m pycocoevalcap.spice.get_stanford_models once."
        )
    return None


@contextmanager
def _running(name: str) -> Iterator[None]:
    """Gives Java its options; what cannot run or fails within it is one sentence that names the program."""
    if (problem := why_unavailable(spice=name == "SPICE")) is not None:
        raise UserError(problem)
    before = os.environ.get("JDK_JAVA_OPTIONS")
    os.environ["JDK_JAVA_OPTIONS"] = f"{before or ''} {_OPTIONS}".strip()
    try:
        yield
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise UserError(f"{name} stopped without a result ({type(error).__name__}: {error}).") from None
    finally:
        del os.environ["JDK_JAVA_OPTIONS"]
        if before is not None:
            os.environ["JDK_JAVA_OPTIONS"] = before


def ptb_tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Words of each text as the COCO evaluation sees them: Penn Treebank tokens, lower case, without punctuation.

    Fits `evaluate_captions(tokenize=…)`. Brackets stay as "-lrb-" and so on, in published numbers too.
    """
    if not texts:
        return []
    with _running("The PTB tokenizer"):
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        lines = {row: [{"caption": _one_line(text)}] for row, text in enumerate([*texts, _LAST])}
        found = PTBTokenizer().tokenize(lines)
        if found.get(len(texts)) != [_LAST]:
            raise ValueError(f"it did not answer with a line for each of {len(texts)} texts")
    return [found[row][0].split() for row in range(len(texts))]


def meteor_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5 (English, normalised), 0 to 1: of the corpus, and of each caption against its references.

    The COCO evaluation passes texts through the PTB tokenizer first: give " ".join of `ptb_tokenize` for its numbers.
    """
    if not captions:
        return math.nan, []
    with _running("METEOR"):
        from pycocoevalcap.meteor.meteor import Meteor

        meteor = Meteor()
        try:
            corpus, scores = meteor.compute_score(
                {row: [_meteor_text(text) for text in texts] for row, texts in enumerate(references)},
                {row: [_meteor_text(caption)] for row, caption in enumerate(captions)},
            )
        finally:
            with suppress(OSError):  # closing sends what an ended program did not take
                meteor.meteor_p.stdin.close()
            if meteor.lock.locked():  # after a failure; its __del__ would wait for it for ever
                meteor.lock.release()
    return corpus, scores


def spice_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """SPICE F-scores, 0 to 1: the mean, and each caption's against its references.

    nan if SPICE finds nothing to compare in a caption; the mean is then nan too, as in the COCO evaluation.
    """
    if not captions:
        return math.nan, []
    with _running("SPICE"):
        from pycocoevalcap.spice.spice import Spice

        gold = {row: list(texts) for row, texts in enumerate(references)}
        mean, scores = Spice().compute_score(gold, {row: [caption] for row, caption in enumerate(captions)})
        return float(mean), [score["All"]["f"] for score in scores]


class JavaScores(NamedTuple):
    """What Java is needed for, as far as it could be computed."""

    scores: dict[str, float]  # "METEOR", "SPICE", 0 to 1; "ptb/CIDEr" …: BLEU, ROUGE-L and CIDEr of PTB tokens
    missing: dict[str, str]  # for each of METEOR and SPICE that is not in `scores`, one sentence that says why


def evaluate_in_java(captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> JavaScores:
    """Scores of one caption per image after the PTB tokenizer, to the digit as the COCO evaluation computes them.

    What could not be computed, for lack of Java or a package, is in `missing`, with the reason. Raises UserError if an
    image has no references.
    """
    refuse_without_references(captions, references)
    result = JavaScores({}, {})
    try:
        words = iter(ptb_tokenize([*captions.values(), *(text for key in captions for text in references[key])]))
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
            result.scores[name] = score(candidates, gold)[0]
        except UserError as error:
            result.missing[name] = str(error)
    return result


def _one_line(text: str) -> str:
    """A text without anything a Java program takes for the end of a line."""
    return " ".join(text.split())


def _meteor_text(text: str) -> str:
    return _one_line(text.replace("|||", ""))

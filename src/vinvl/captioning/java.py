"""METEOR, SPICE and the PTB tokenizer: Java programs that come with `pycocoevalcap`.

They need Java and the package `pycocoevalcap` (extra "captions"); a UserError says which is missing, or which program
stopped. A score is never 0 for lack of a program.
"""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from vinvl.captioning.scores import ImageId, refuse_without_references, score_words
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
    """Gives Java its options; what cannot run or fails within it is one sentence that names the program.

    What Java tells of itself, as that it has picked up options, is shown only if it was the last before a failure.
    """
    if (problem := why_unavailable(spice=name == "SPICE")) is not None:
        raise UserError(problem)
    before = os.environ.get("JDK_JAVA_OPTIONS")
    os.environ["JDK_JAVA_OPTIONS"] = f"{before or ''} {_OPTIONS}".strip()
    errors = os.dup(2)
    try:
        with TemporaryFile() as told:
            os.dup2(told.fileno(), 2)
            try:
                yield
            except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
                told.seek(0)
                last = told.read().decode(errors="replace").strip().split("\n")[-1]
                reason = f"{type(error).__name__}: {error}" + (f"; {last}" if last else "")
                raise UserError(f"{name} stopped without a result ({reason}).") from None
    finally:
        os.dup2(errors, 2)
        os.close(errors)
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

        lines = {row: [{"caption": " ".join(text.split())}] for row, text in enumerate([*texts, _LAST])}
        found = PTBTokenizer().tokenize(lines)
        if found.get(len(texts)) != [_LAST]:
            raise ValueError(f"it did not answer with a line for each of {len(texts)} texts")
    return [found[row][0].split() for row in range(len(texts))]


Words = Sequence[Sequence[str]]
"""Of texts that `ptb_tokenize` has seen, as the COCO evaluation passes them on."""


def meteor(captions: Words, references: Sequence[Words]) -> float:
    """METEOR 1.5 (English, normalised) of captions (at least one), each with its references, 0 to 1."""
    with _running("METEOR"):
        from pycocoevalcap.meteor.meteor import Meteor

        def text(words: Sequence[str]) -> str:
            return " ".join(" ".join(words).replace("|||", "").split())  # which parts the texts in its input

        program = Meteor()
        try:
            gold = {row: list(map(text, texts)) for row, texts in enumerate(references)}
            return float(program.compute_score(gold, {row: [text(words)] for row, words in enumerate(captions)})[0])
        finally:
            with suppress(OSError):  # closing sends what an ended program did not take
                program.meteor_p.stdin.close()
            if program.lock.locked():  # after a failure; its __del__ would wait for it for ever
                program.lock.release()


def spice(captions: Words, references: Sequence[Words]) -> float:
    """The mean SPICE F-score of captions (at least one), 0 to 1; nan if there is nothing to compare in one of them."""
    with _running("SPICE"):
        from pycocoevalcap.spice.spice import Spice

        gold = {row: list(map(" ".join, texts)) for row, texts in enumerate(references)}
        return float(Spice().compute_score(gold, {row: [" ".join(words)] for row, words in enumerate(captions)})[0])


def evaluate_in_java(
    captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of one caption per image after the PTB tokenizer, to the digit as the COCO evaluation computes them.

    Raises UserError if an image has no references.

    Returns:
        "METEOR", "SPICE" and, of PTB tokens, BLEU, ROUGE-L and CIDEr as "ptb/CIDEr" …, 0 to 1; and for each of METEOR
        and SPICE that could not be computed, for lack of Java or a package, one sentence that says why.
    """
    refuse_without_references(captions, references)
    if not captions:
        return {}, {}
    try:
        words = iter(ptb_tokenize([*captions.values(), *(text for key in captions for text in references[key])]))
    except UserError as error:
        return {}, dict.fromkeys(("METEOR", "SPICE"), str(error))
    candidates = [next(words) for _ in captions]
    gold = [[next(words) for _ in references[image_id]] for image_id in captions]
    scores = {f"ptb/{name}": value for name, value in score_words(list(captions), candidates, gold).corpus.items()}
    missing = {}
    for name, score in (("METEOR", meteor), ("SPICE", spice)):
        try:
            scores[name] = score(candidates, gold)
        except UserError as error:
            missing[name] = str(error)
    return scores, missing

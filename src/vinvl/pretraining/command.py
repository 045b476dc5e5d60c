"""`python -m vinvl.pretraining.corpus convert|build|info|verify`: corpus files and their indices."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vinvl.data.text import load_tokenizer
from vinvl.pretraining.corpus import Corpus, ensure_index
from vinvl.pretraining.published import TRAIN, VALIDATION, convert_published_corpus
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, say

CONVERT = "the published Oscar+ corpus (yaml and TSV files) → a JSONL for each of its datasets"
MORE = """\
Writes FOLDER/train/DATASET.jsonl and FOLDER/val/DATASET.jsonl. Only texts, tags and answers are converted: region
features are looked up by image id in the region store. The corpus of the first Oscar (2020) was not released, nor code
that reads it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error or if problems were found."""

    def run() -> int:
        options = vars(_parser().parse_args(arguments))
        return int(options.pop("run")(**options))

    return run_command(run)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m vinvl.pretraining.corpus", description="Make and index a corpus, or look at an index."
    )
    commands = parser.add_subparsers(required=True)
    convert = commands.add_parser("convert", help=CONVERT, description=f"{CONVERT[0].upper()}{CONVERT[1:]}. {MORE}")
    add = convert.add_argument
    add("settings", metavar="YAML", help="names corpus_file, corpus and image_label_path")
    add("--output", required=True, metavar="FOLDER", help="new, or empty")
    add("--datasets", metavar="A,B", help="of those in the yaml (default: all)")
    add("--store-tags", action="store_true", help="leave tags out: training takes the classes of the region store")
    add("--ground-truth-tags", action="store_true", help="annotated objects as tags where an image has them")
    prefixed = (
        "datasets whose name is put in front of their image ids (gqa_2386621), as the store must have them; "
        "published: of all, with the chunk that an image is in (googlecc_0_5), as data=oscarplus_published has them; "
        "default: none, but datasets that have an image id in common are refused"
    )
    add("--prefix-image-ids", metavar="published|all|none|A,B", help=prefixed)
    share = "of the images, chosen by their id; the published corpus has no split (default: %(default)s)"
    add("--validation-share", type=float, default=0.01, metavar="SHARE", help=share)
    build = commands.add_parser("build", help="tokenize JSONL files into the indices that training reads")
    build.add_argument("files", nargs="+", metavar="JSONL")
    build.add_argument("--tokenizer", default="bert-base-uncased", help="folder or hub name (default: %(default)s)")
    for command, run in ((convert, _convert), (build, _build)):
        processes = "processes (default: %(default)s)"
        command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help=processes)
        command.set_defaults(run=run)
    for name, look, text in (
        ("info", _info, "print what an index holds"),
        ("verify", _verify, "read an index through; exit code 1 if it is not what was written"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("files", nargs="+", metavar="INDEX", help="an index, or the JSONL beside it")
        command.set_defaults(run=look)
    return parser


def _convert(output: str, datasets: str | None, prefix_image_ids: str | None, **options: Any) -> int:
    if options["store_tags"] and options["ground_truth_tags"]:
        raise UserError("--store-tags leaves tags out, and --ground-truth-tags chooses some; give one of the two.")
    prefixes: Any = {None: None, "all": "all", "published": "published", "none": []}.get(
        prefix_image_ids, (prefix_image_ids or "").split(",")
    )
    begin = time.perf_counter()
    used = datasets.split(",") if datasets else None
    rows, skipped, _ = convert_published_corpus(output=output, datasets=used, prefix_image_ids=prefixes, **options)
    say(f"{'dataset':<14} {TRAIN:>12} {VALIDATION:>12}")
    for dataset in sorted({dataset for _, dataset in rows}):
        say(f"{dataset:<14} {rows[TRAIN, dataset]:>12,} {rows[VALIDATION, dataset]:>12,}")
    if skipped:
        left_out = ", ".join(f"{count:,} of {name}" for name, count in sorted(skipped.items()))
        say(f"left out, as their datasets were not asked for: {left_out}")
    say(f"{output}: {rows.total():,} rows in {time.perf_counter() - begin:,.1f} s", error=True)
    return 0


def _build(files: Sequence[str], tokenizer: str, workers: int) -> int:
    loaded = load_tokenizer(tokenizer)
    for file in files:
        say(ensure_index(file, loaded, workers).path)
    return 0


def _info(files: Sequence[str]) -> int:
    for number, corpus in enumerate(_indices(files)):
        facts, tokens = corpus.facts, corpus.lengths.mean(axis=0, dtype=float)
        told = {
            "corpus": corpus.source,
            "index": corpus.path,
            "rows": f"{len(corpus):,}: " + ", ".join(f"{count:,} {kind}" for kind, count in facts.kinds.items()),
            "sources": ", ".join(f"{name or '(none)'} {count:,}" for name, count in facts.sources.items()),
            "images": f"{len(corpus.image_ids):,}",
            "tokens a row": f"{tokens[0]:.1f} of the text, {tokens[1]:.1f} of the second text",
            "tag names": f"{len(facts.tags):,}",
            "tokenizer": f"{facts.vocab_size:,} tokens, fingerprint {facts.tokenizer}",
            "bytes": f"{corpus.path.stat().st_size:,}",
        }
        say(*([""] if number else []), *(f"{name:<14} {value}" for name, value in told.items()))
    return 0


def _verify(files: Sequence[str]) -> int:
    corpora = _indices(files)
    problems = [problem for corpus in corpora for problem in corpus.problems()]
    say(*(problems or [f"sound: {', '.join(str(corpus.path) for corpus in corpora)}"]))
    return 1 if problems else 0


def _indices(names: Sequence[str]) -> list[Corpus]:
    """The indices that are named, and those beside the corpus files that are."""
    found: list[Corpus] = []
    for path in map(Path, names):
        beside = [path] if ".index-" in path.name else sorted(path.parent.glob(f"{path.name}.index-*"))
        if not beside:
            make = f"python -m vinvl.pretraining.corpus build {path}"
            raise UserError(f"{path} has no index beside it; make one with {make}.")
        found += map(Corpus, beside)
    return found


if __name__ == "__main__":
    sys.exit(main())

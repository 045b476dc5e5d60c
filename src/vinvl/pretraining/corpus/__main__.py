"""`python -m vinvl.pretraining.corpus convert|build|info|verify`: corpus files and their indices."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vinvl.data.text import load_tokenizer
from vinvl.pretraining.corpus.build import ensure_index
from vinvl.pretraining.corpus.index import ARRAYS, Corpus
from vinvl.pretraining.published import add_convert_command
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error or if problems were found."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m vinvl.pretraining.corpus",
        description="Make and index a corpus, or look at an index.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_convert_command(commands)
    build = commands.add_parser("build", help="tokenize JSONL files into the indices that training reads")
    build.add_argument("files", nargs="+", metavar="JSONL")
    build.add_argument("--tokenizer", default="bert-base-uncased", help="folder or hub name (default: %(default)s)")
    build.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    build.set_defaults(run=_build)
    for name, run, text in (
        ("info", _info, "print what an index holds"),
        ("verify", _verify, "read an index through; exit code 1 if it is not what was written"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("files", nargs="+", metavar="INDEX", help="folder of an index, or the JSONL beside it")
        command.set_defaults(run=run)
    return parser


def _run(options: argparse.Namespace) -> int:
    code: int = options.run(options)
    return code


def _build(options: argparse.Namespace) -> int:
    tokenizer = load_tokenizer(options.tokenizer)
    for file in options.files:
        say(ensure_index(file, tokenizer, options.workers).folder)
    return 0


def _info(options: argparse.Namespace) -> int:
    summaries = [summary(corpus) for file in options.files for corpus in _indices(Path(file))]
    for number, lines in enumerate(summaries):
        say(*([""] if number else []), *lines)
    return 0


def _verify(options: argparse.Namespace) -> int:
    corpora = [corpus for file in options.files for corpus in _indices(Path(file))]
    problems = [problem for corpus in corpora for problem in corpus.problems()]
    say(*(problems or [f"sound: {', '.join(map(repr, corpora))}"]))
    return 1 if problems else 0


def _indices(path: Path) -> list[Corpus]:
    if path.is_dir():
        return [Corpus(path)]
    folders = sorted(path.parent.glob(f"{path.name}.index-*"))
    if not folders:
        raise UserError(
            f"{path} has no index beside it; make one with python -m vinvl.pretraining.corpus build {path}."
        )
    return [Corpus(folder) for folder in folders]


def summary(corpus: Corpus) -> list[str]:
    """What an index holds, a line each: `name  value`."""
    manifest, tokens = corpus.manifest, corpus.lengths.mean(axis=0, dtype=float)
    size = sum((corpus.folder / f"{name}.bin").stat().st_size for name in ARRAYS)
    rows = [
        ("corpus", corpus.source),
        ("index", str(corpus.folder)),
        ("rows", f"{len(corpus):,}: " + ", ".join(f"{n:,} {kind}" for kind, n in manifest["kinds"].items())),
        ("sources", ", ".join(f"{name or '(none)'} {n:,}" for name, n in manifest["sources"].items())),
        ("images", f"{len(corpus.image_ids):,}"),
        ("tokens a row", f"{tokens[0]:.1f} of the text, {tokens[1]:.1f} of the second text"),
        ("tag names", f"{len(manifest['tags']):,}"),
        ("tokenizer", f"{manifest['vocab_size']:,} tokens, fingerprint {manifest['tokenizer']}"),
        ("bytes", f"{size:,}"),
    ]
    return [f"{name:<14} {value}" for name, value in rows]


if __name__ == "__main__":
    sys.exit(main())

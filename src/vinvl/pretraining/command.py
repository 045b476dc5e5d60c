"""`python -m vinvl.pretraining.corpus convert|make|decontaminate|build|info|verify`: corpora and their indices."""

import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vinvl.data.text import load_tokenizer
from vinvl.pretraining.corpus import Corpus, ensure_index
from vinvl.pretraining.decontamination import LEFT_OUT, Counts, corpora_of, decontaminate
from vinvl.pretraining.held_out import FORMS, WAYS, HeldOut, take_alike, take_links, take_set
from vinvl.pretraining.making import KINDS, make_corpus, told_of
from vinvl.pretraining.open_images import add_open_images
from vinvl.pretraining.published import TRAIN, VALIDATION, convert_published_corpus
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, say
from vinvl.run.files import refuse_existing
from vinvl.run.machine import cores
from vinvl.run.progress import print_results

CONVERT = "the published Oscar+ corpus (yaml and TSV files) → a JSONL for each of its datasets"
MORE = """\
Writes FOLDER/train/DATASET.jsonl and FOLDER/val/DATASET.jsonl. Only texts, tags and answers are converted: region
features are looked up by image id in the region store. The corpus of the first Oscar (2020) was not released, nor code
that reads it."""
MAKE = "a download of captions or questions (COCO, Flickr30k, Conceptual Captions, SBU, VQA, GQA, …) → a JSONL"
MAKE_MORE = """\
Writes FOLDER/train/KIND.jsonl and, with --validation-share, FOLDER/val/KIND.jsonl beside those of other kinds. Captions
have the classes of the region store as tags; the second text of a question is its answer. KIND is made of FILES:
"""
DECONTAMINATE = "corpora without the images that models are scored on"
DECONTAMINATE_MORE = """\
Rows whose image is in a held-out set are found by id, by file name, by address, through --links, and with --pictures by
how pictures look. New files are written beside a list of what was left out; with --check the exit code is 1 if there is
any, and nothing is written. A set is FORM=FILE:
  vqa=QUESTIONS.json              coco[:val,test]=dataset_coco.json       flickr30k[:test]=dataset_flickr30k.json
  gqa=testdev_balanced_….json     nlvr2=test1.json                        nocaps=nocaps_val_4500_captions.json
  ids=LIST.txt (image ids, file names or addresses, one a line)           pictures=FOLDER
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error or if problems were found."""

    def run() -> int:
        options = vars(command_line().parse_args(arguments))
        return int(options.pop("run")(**options))

    return run_command(run)


def command_line() -> Parser:
    """Its options, which completion reads too."""
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
    _add_make(commands)
    _add_decontaminate(commands)
    add_open_images(commands)
    build = commands.add_parser("build", help="tokenize JSONL files into the indices that training reads")
    build.add_argument("files", nargs="+", metavar="JSONL")
    build.add_argument("--tokenizer", default="bert-base-uncased", help="folder or hub name (default: %(default)s)")
    for command, run in ((convert, _convert), (build, _build)):
        processes = "processes (default: %(default)s)"
        command.add_argument("--workers", type=int, default=cores(), help=processes)
        command.set_defaults(run=run)
    for name, look, text in (
        ("info", _info, "print what an index holds"),
        ("verify", _verify, "read an index through; exit code 1 if it is not what was written"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("files", nargs="+", metavar="INDEX", help="an index, or the JSONL beside it")
        command.set_defaults(run=look)
    return parser


def _add_make(commands: Any) -> None:
    listed = "".join(f"  {name:<20} {kind.files}; ids {kind.prefix}…\n" for name, kind in KINDS.items())
    text = f"{MAKE[0].upper()}{MAKE[1:]}.\n{MAKE_MORE}{listed}"
    make = commands.add_parser("make", help=MAKE, description=text, formatter_class=RawDescriptionHelpFormatter)
    add = make.add_argument
    add("kind", choices=KINDS, metavar="KIND", help="what the files are: " + ", ".join(KINDS))
    add("files", nargs="+", metavar="FILES")
    add("--output", required=True, metavar="FOLDER", help="gets train/KIND.jsonl and val/KIND.jsonl")
    add("--splits", metavar="A,B", help="of Karpathy's files (default: train,restval)")
    add("--prefix", metavar="TEXT", help="in front of image ids (default: that of the published corpus)")
    add(
        "--ids",
        metavar="TSV",
        help="row number from 0, or address, and image id: the downloaded pictures; other rows go",
    )
    add("--tags", metavar="JSONL", help="image_id and tags of each image, in place of the store's classes")
    add("--store", nargs="+", metavar="STORE", help="counts the images without regions there")
    share = "of the images, chosen by their id (default: %(default)s)"
    add("--validation-share", type=float, default=0.0, metavar="SHARE", help=share)
    make.set_defaults(run=_make)


def _add_decontaminate(commands: Any) -> None:
    text = f"{DECONTAMINATE[0].upper()}{DECONTAMINATE[1:]}.\n{DECONTAMINATE_MORE}"
    command = commands.add_parser(
        "decontaminate", help=DECONTAMINATE, description=text, formatter_class=RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("corpora", nargs="+", metavar="JSONL", help="or folders of them")
    add("--held-out", nargs="+", required=True, metavar="FORM=FILE", help=f"sets; FORM is one of {', '.join(FORMS)}")
    add(
        "--links", nargs="+", default=[], metavar="FILE", help="Visual Genome's image_data.json, COCO's captions_*.json"
    )
    add(
        "--pictures",
        nargs="+",
        metavar="[PREFIX=]FOLDER",
        help="the corpora's, to compare with those of pictures=FOLDER",
    )
    add("--bits", type=int, default=6, help="of 64 that pictures may differ in, 0 to 16 (default: %(default)s)")
    add("--workers", type=int, default=cores(), help="processes that read pictures (default: %(default)s)")
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", metavar="FOLDER", help=f"new: the corpora, and {LEFT_OUT}")
    where.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is found")
    command.set_defaults(run=_decontaminate)


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


def _make(kind: str, files: Sequence[str], splits: str | None, **options: Any) -> int:
    begin = time.perf_counter()
    made = make_corpus(kind, files, splits=splits.split(",") if splits else None, **options)
    for path, rows in made.rows.items():
        say(f"{path}: {rows:,} rows")
    if options["validation_share"] and len(made.rows) < 2:
        say("no image falls into the other split; another --validation-share divides so few")
    missing = "" if made.without_regions is None else f", {made.without_regions:,} of them without regions in the store"
    say(f"{made.images:,} images{missing}")
    if made.left_out:
        say(f"left out: {told_of(made.left_out)}")
    say(f"{sum(made.rows.values()):,} rows in {time.perf_counter() - begin:,.1f} s", error=True)
    return 0


def _decontaminate(
    corpora: Sequence[str], held_out: Sequence[str], links: Sequence[str], output: str | None, **options: Any
) -> int:
    files, held, seen = corpora_of(corpora), HeldOut(), None
    if output is not None:
        refuse_existing(Path(output))
    if not 0 <= options["bits"] <= 16:
        raise UserError(f"--bits is {options['bits']}: give 0 to 16.")
    folders = [folder for one in held_out if (folder := take_set(held, one)) is not None]
    if options["pictures"] is not None and not folders:
        raise UserError("--pictures is compared with the pictures of a set: give --held-out pictures=FOLDER too.")
    linked = take_links(held, [Path(link) for link in links])
    if options["pictures"] is not None:
        seen = take_alike(held, folders, options["pictures"], options["bits"], options["workers"])
    counts = decontaminate(files, held, output, seen)
    _tell_counts(held, counts, None if output is None else Path(output, LEFT_OUT))
    if seen is not None:
        say(f"{counts.with_picture:,} of {counts.rows.total():,} rows have one of the pictures.")
    if links:
        say(f"{linked:,} held-out images have other names too.")
    elif counts.of_visual_genome and held.spaces & {"coco", "flickr"}:
        say(
            f"warning: {counts.of_visual_genome:,} rows have numbers of Visual Genome or GQA, and some of these images "
            "are COCO's: pass --links image_data.json of Visual Genome, or they are not found."
        )
    return 1 if options["check"] and counts.left_out else 0


def _tell_counts(held: HeldOut, counts: Counts, report: Path | None) -> None:
    ways = [way for way in WAYS if any(found_by == way for _, found_by in counts.found)]
    of_set = [(name, [counts.found[name, way] for way in ways]) for name in held.images]
    table = [(name, f"{held.images[name]:,}", *(f"{n:,}" for n in (sum(by), *by))) for name, by in of_set]
    columns = ("held-out set", "images", "rows", *(f"by {way}" for way in ways))
    print_results("Rows of the corpora whose image is held out", table, {}, columns)
    for path, rows in counts.rows.items():
        say(f"{path}: {counts.left_out[path]:,} of {rows:,} rows {'are found' if report is None else 'left out'}")
    if report is not None:
        say(f"{report}: which, and why")


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

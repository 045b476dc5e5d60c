"""The command `convert` of `python -m vinvl.data.corpus`."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any, Literal

from vinvl.data.published_corpus.convert import TRAIN, VALIDATION, Conversion, convert_published_corpus
from vinvl.errors import UserError, say

if TYPE_CHECKING:
    from argparse import _SubParsersAction

HELP = "the published Oscar+ corpus (yaml and TSV files) → a JSONL for each of its datasets"
MORE = """\
Writes FOLDER/train/DATASET.jsonl and FOLDER/val/DATASET.jsonl. Only texts, tags and answers are converted: region
features are looked up by image id in the region store. Not covered: corpora of the older Oscar code (one file of
documents, without this yaml)."""


def add_convert_command(commands: _SubParsersAction[Any]) -> None:
    """Adds the command; what it runs is in `options.run`."""
    parser = commands.add_parser("convert", help=HELP, description=f"{HELP[0].upper()}{HELP[1:]}. {MORE}")
    parser.add_argument("yaml", metavar="YAML", help="names corpus_file, corpus and image_label_path")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new, or empty")
    parser.add_argument("--datasets", metavar="A,B", help="of those in the yaml (default: all)")
    parser.add_argument(
        "--store-tags", action="store_true", help="leave tags out: training takes the classes of the region store"
    )
    parser.add_argument(
        "--ground-truth-tags", action="store_true", help="annotated objects as tags where an image has them"
    )
    parser.add_argument(
        "--prefix-image-ids",
        metavar="all|none|A,B",
        help="datasets whose name is put in front of their image ids (gqa_2386621), as the store must have them; "
        "default: none, but datasets that have an image id in common are refused",
    )
    parser.add_argument(
        "--validation-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the images, chosen by their id; the published corpus has no split (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    """Raises UserError as `convert_published_corpus` does."""
    if options.store_tags and options.ground_truth_tags:
        raise UserError("--store-tags leaves tags out, and --ground-truth-tags chooses some; give one of the two.")
    datasets = options.datasets.split(",") if options.datasets else None
    begin = time.perf_counter()
    conversion = convert_published_corpus(
        options.yaml,
        options.output,
        datasets=datasets,
        prefix_image_ids=_prefixed(options.prefix_image_ids),
        store_tags=options.store_tags,
        ground_truth_tags=options.ground_truth_tags,
        validation_share=options.validation_share,
        workers=options.workers,
    )
    say(*table(conversion))
    seconds = time.perf_counter() - begin
    say(f"{options.output}: {conversion.rows.total():,} rows in {seconds:,.1f} s", error=True)
    return 0


def _prefixed(given: str | None) -> list[str] | Literal["all"] | None:
    if given is None:
        return None
    if given == "all":
        return "all"
    return [] if given == "none" else given.split(",")


def table(conversion: Conversion) -> list[str]:
    """Rows of each dataset by split, and those left out."""
    rows = [f"{'dataset':<14} {TRAIN:>12} {VALIDATION:>12}"]
    for dataset in sorted({dataset for _, dataset in conversion.rows}):
        counts = [conversion.rows[split, dataset] for split in (TRAIN, VALIDATION)]
        rows.append(f"{dataset:<14} {counts[0]:>12,} {counts[1]:>12,}")
    left_out = ", ".join(f"{count:,} of {name}" for name, count in sorted(conversion.skipped.items()))
    return rows + ([f"left out, as their datasets were not asked for: {left_out}"] if left_out else [])

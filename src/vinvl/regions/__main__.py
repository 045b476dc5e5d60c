"""`python -m vinvl.regions info|verify|compare|merge FILE …`: what stores hold, whether they are sound or alike."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from vinvl.regions.comparison import compare_stores
from vinvl.regions.merging import merge_stores
from vinvl.regions.store import RegionStore
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error or if problems were found."""
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    if options.command == "merge":
        merged = merge_stores(options.files, options.output, overwrite=options.overwrite)
        say(f"{options.output}: {len(merged):,} images of {len(options.files):,} files")
        return 0
    if options.command == "compare":
        compared = compare_stores(RegionStore(options.first), RegionStore(options.second), options.images)
        say(*_table(compared.rows()))
        return 0
    store = RegionStore(options.files)
    if options.command == "info":
        say(*summary(store))
        return 0
    problems = store.verify()
    say(*(problems or [f"{', '.join(options.files)}: sound, {len(store):,} images"]))
    if bare := [header.path for header in store.headers if header.checksums is None]:
        say(f"{len(bare)} of {len(store.headers)} files have no checksums, as {bare[0]}: changed values pass")
    return 1 if problems else 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m vinvl.regions", description="Look at stores of region features, check or join them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "print what the store holds"),
        ("verify", "read the store through and print what is wrong with it; exit code 1 if anything is"),
        ("merge", "copy the images of all files into one"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("files", nargs="+", metavar="FILE", help="file or folder of shards; many act as one")
        if name == "merge":
            command.add_argument("--output", required=True, metavar="FILE", help="the file to write")
            command.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    text = "say how alike the regions of images are that two stores hold"
    command = commands.add_parser("compare", help=text, description=text.capitalize() + ".")
    command.add_argument("first", metavar="FIRST", help="file or folder of shards")
    command.add_argument("second", metavar="SECOND", help="file or folder of shards")
    command.add_argument("--images", type=int, default=500, metavar="N", help="images to look at, at most (500)")
    return parser


def summary(store: RegionStore) -> list[str]:
    """What a store holds, a line each: `name  value`."""
    counts, headers = store.num_regions, store.headers
    labels = store.label_map
    spread = f"min {counts.min()}, mean {counts.mean():.1f}, max {counts.max()}" if len(counts) else "none"
    rows = [
        ("files", f"{len(headers)}: {headers[0].path}" + (f" to {headers[-1].path}" if len(headers) > 1 else "")),
        ("complete", "yes"),
        ("images", f"{len(store):,}" + (f", ids like {store.at(0).image_id!r}" if len(store) else "")),
        ("regions", f"{counts.sum():,}"),
        ("regions an image", spread),
        ("features", f"dimension {store.feature_dim}, {store.feature_dtype}, {headers[0].storage}"),
        ("attributes a region", str(store.num_attributes)),
        ("label map", f"{len(labels.classes):,} classes, {len(labels.attributes):,} attributes"),
        ("detector", store.detector),
        ("checksums", "yes" if store.has_checksums else "no, written by an earlier version"),
        ("bytes", f"{sum(header.file_bytes for header in headers):,}"),
        *((f"  {name}", _text(value)) for name, value in store.provenance.items()),
    ]
    return _table(rows)


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name:<20} {value}" for name, value in rows]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())

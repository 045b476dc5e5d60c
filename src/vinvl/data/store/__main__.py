"""`python -m vinvl.data.store info|verify FILE`: what a store holds, and whether it is sound."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vinvl.data.store.reader import RegionStore
from vinvl.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error or if problems were found."""
    parser = argparse.ArgumentParser(
        prog="python -m vinvl.data.store", description="Look at a store of region features, or check that it is sound."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "print what the store holds"),
        ("verify", "read the store through and print what is wrong with it; exit code 1 if anything is"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        command.add_argument("files", nargs="+", metavar="FILE", help="file or folder of shards; many act as one")
    options = parser.parse_args(arguments)
    try:
        store = RegionStore(options.files)
        if options.command == "info":
            print(summary(store))
            return 0
        problems = store.verify()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(problems) if problems else f"{', '.join(options.files)}: sound, {len(store):,} images")
    return 1 if problems else 0


def summary(store: RegionStore) -> str:
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
        ("detector", store.detector if store.detector.isprintable() else ascii(store.detector)),
        ("bytes", f"{sum(header.file_bytes for header in headers):,}"),
    ]
    return "\n".join(f"{name:<20} {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())

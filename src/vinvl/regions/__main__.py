"""`python -m vinvl.regions info|verify|compare|merge FILE …`: what stores hold, whether they are sound or alike."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vinvl.regions.merging import merge_stores
from vinvl.regions.regions import Regions
from vinvl.regions.shard import IdLookup
from vinvl.regions.store import RegionStore
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error or if problems were found."""
    return run_command(lambda: _run(command_line().parse_args(arguments)))


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


def command_line() -> Parser:
    """Its options, which completion reads too."""
    parser = Parser(
        prog="python -m vinvl.regions", description="Look at stores of region features, check or join them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "print what the store holds"),
        ("verify", "read the store through and print what is wrong with it; exit code 1 if anything is"),
        ("merge", "copy the images of all files into one"),
        ("compare", "say how alike the regions of images are that two stores hold"),
    ):
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == "compare":
            for place in ("first", "second"):
                command.add_argument(place, metavar=place.upper(), help="file or folder of shards")
            command.add_argument("--images", type=int, default=500, metavar="N", help="images to look at (500)")
        else:
            command.add_argument("files", nargs="+", metavar="FILE", help="file or folder of shards; many act as one")
        if name == "merge":
            command.add_argument("--output", required=True, metavar="FILE", help="the file to write")
            command.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    return parser


def summary(store: RegionStore) -> list[str]:
    """What a store holds, a line each: `name  value`."""
    counts, headers, labels = store.num_regions, store.headers, store.label_map
    rows = {
        "files": f"{len(headers)}: {headers[0].path}" + (f" to {headers[-1].path}" if len(headers) > 1 else ""),
        "complete": "yes",
        "images": f"{len(store):,}" + (f", ids like {store.at(0).image_id!r}" if len(store) else ""),
        "regions": f"{counts.sum():,}",
        "regions an image": f"min {counts.min()}, mean {counts.mean():.1f}, max {counts.max()}"
        if len(counts)
        else "none",
        "features": f"dimension {store.feature_dim}, {store.feature_dtype}, {headers[0].storage}",
        "attributes a region": str(store.num_attributes),
        "label map": f"{len(labels.classes):,} classes, {len(labels.attributes):,} attributes",
        "detector": store.detector,
        "checksums": "no, written by an earlier version" if any(one.checksums is None for one in headers) else "yes",
        "bytes": f"{sum(header.file_bytes for header in headers):,}",
    }
    made = {f"  {name}": value for name, value in store.provenance.items()}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in made.items()
    }
    return _table((rows | texts).items())


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name:<20} {value}" for name, value in rows]


# Do two stores hold the same features of the same images? Made by two detectors, or twice by one, they should.

SAME_BOX = 0.9  # IoU from which two regions count as one
ALIKE = 0.99  # cosine from which two features count as one, rounding aside


@dataclass(frozen=True)
class Comparison:
    """What a sample of the images that both stores hold has in common; nan of nothing."""

    shared: int  # images that both hold
    images: int  # of these, looked at
    regions: tuple[int, int]  # of the first and of the second, in them
    same_box: float  # share of the first's regions that the second has with an IoU of at least `SAME_BOX`
    same_tag: float | None  # of these regions, the share with the same class name; None if a store has no names
    cosine: tuple[float, float]  # of these regions' features: mean, and what 95 % of them reach
    norm_ratio: float  # mean ratio of the norms of these features, the second's to the first's
    other_sizes: int  # images whose width or height differ

    @property
    def verdict(self) -> str:
        """What the figures say, for a person."""
        if self.other_sizes > self.images // 10:
            return "many images differ in size: the pictures were turned or resized for one of the stores"
        if not self.same_box > 0.5:
            return "the boxes differ: another detector, other thresholds or NMS, or other preprocessing"
        if not self.cosine[0] > 0.9:
            return "boxes agree and features do not: the features of other boxes, another layer, or other preprocessing"
        if self.cosine[1] < ALIKE or self.same_box < 0.95 or not 0.99 < self.norm_ratio < 1.01:
            return "much alike, and not the same: other padding, precision or resizing, or another set of boxes"
        return "the same features, rounding aside"

    def rows(self) -> list[tuple[str, str]]:
        """(what, figure) for a person."""
        return [
            ("images in both", f"{self.shared:,}, {self.images:,} of them looked at"),
            ("regions", f"{self.regions[0]:,} and {self.regions[1]:,}"),
            (f"same boxes (IoU {SAME_BOX})", _percent(self.same_box, " of the first's")),
            ("same tags in these", "a store has no tags" if self.same_tag is None else _percent(self.same_tag)),
            ("cosine of features", _figure(self.cosine[0], f" on average, 95 % above {self.cosine[1]:.4f}")),
            ("ratio of norms", _figure(self.norm_ratio, ", the second's to the first's")),
            ("images of another size", f"{self.other_sizes:,}"),
            ("this says", self.verdict),
        ]


def compare_stores(first: RegionStore, second: RegionStore, most: int = 500, seed: int = 0) -> Comparison:
    """Compares up to `most` images that both hold, drawn at random; UserError if these are not to be had."""
    first.require_sound()
    second.require_sound()
    if first.feature_dim != second.feature_dim:
        dims = f"{first.feature_dim} and {second.feature_dim}"
        raise UserError(f"{first!r} and {second!r} cannot hold the same features: their dimensions are {dims}.")
    lookup = IdLookup(second.encoded_ids)
    found = [(index, lookup.find(str(image_id))) for index, image_id in enumerate(first.image_ids)]
    shared = [pair for pair in found if pair[1] >= 0]
    if not shared:
        raise UserError(f"{first!r} and {second!r} have no image in common: their ids may be written in other ways.")
    chosen = np.random.default_rng(seed).permutation(len(shared))[:most]
    pairs = [(first.at(shared[i][0]), second.at(shared[i][1])) for i in sorted(chosen.tolist())]
    names = [[name.strip().lower() for name in store.label_map.classes] for store in (first, second)]
    matches = [_match(one, other, names) for one, other in pairs]
    same_box, same_tag, cosines, ratios = (np.concatenate(parts) for parts in zip(*matches, strict=True))
    nothing = float("nan")
    return Comparison(
        shared=len(shared),
        images=len(pairs),
        regions=(sum(len(one) for one, _ in pairs), sum(len(other) for _, other in pairs)),
        same_box=_mean(same_box),
        same_tag=_mean(same_tag) if all(names) else None,
        cosine=(_mean(cosines), float(np.quantile(cosines, 0.05)) if len(cosines) else nothing),
        norm_ratio=_mean(ratios),
        other_sizes=sum((one.width, one.height) != (other.width, other.height) for one, other in pairs),
    )


def _match(one: Regions, other: Regions, names: Sequence[Sequence[str]]) -> tuple[np.ndarray, ...]:
    """(R,) whether each region of the first is in the second; of those that are: same tag, cosine, ratio of norms."""
    if len(one) == 0 or len(other) == 0:
        return np.zeros(len(one), dtype=bool), np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0)
    overlaps = _iou(one.boxes.astype(np.float64), other.boxes.astype(np.float64))
    own, features = one.features.astype(np.float32), other.features.astype(np.float32)
    norms, others = np.linalg.norm(own, axis=1)[:, None], np.linalg.norm(features, axis=1)[None]
    cosines = own @ features.T / np.maximum(norms * others, 1e-12)
    # Several classes of one box come as several regions: of boxes that fit alike, the one with the likest feature.
    best = np.where(overlaps >= overlaps.max(axis=1, keepdims=True) - 1e-3, cosines, -np.inf).argmax(axis=1)
    same_box = overlaps[np.arange(len(one)), best] >= SAME_BOX
    kept, partner = np.flatnonzero(same_box), best[same_box]
    same_tag = np.zeros(len(kept), dtype=bool)
    if all(names):
        tags = zip(one.classes[kept].tolist(), other.classes[partner].tolist(), strict=True)
        same_tag = np.array([names[0][own] == names[1][theirs] for own, theirs in tags], dtype=bool)
    return same_box, same_tag, cosines[kept, partner], others[0, partner] / np.maximum(norms[kept, 0], 1e-12)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) overlap of boxes (N, 4) and (M, 4); 0 with empty boxes."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def _percent(share: float, words: str = "") -> str:
    return "nothing to compare" if math.isnan(share) else f"{100 * share:.1f} %{words}"


def _figure(value: float, words: str) -> str:
    return "nothing to compare" if math.isnan(value) else f"{value:.4f}{words}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


if __name__ == "__main__":
    sys.exit(main())

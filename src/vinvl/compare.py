"""Is A better than B? `python -m vinvl.compare RUN_A RUN_B`: two evaluations of one split, with intervals and tests."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import to_builtins

from vinvl.comparison.figures import DRAWS, Difference, RunComparison, compare
from vinvl.comparison.page import MOST, pictures_for, write_comparison
from vinvl.comparison.pairing import Pairs, paired
from vinvl.examples import RIGHT_FROM, examples_of
from vinvl.run.door import Parser, run_command
from vinvl.run.errors import UserError, say
from vinvl.run.files import write_json
from vinvl.run.folders import run_directory
from vinvl.run.progress import print_results

COLUMNS = ("", "n", "A", "B", "A − B", "95 %", "p")
MOST_DRAWS = 10**6  # beyond, memory and patience end
FEW = 30  # pictures; of fewer a percentile interval is too narrow


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 after an error."""
    return run_command(lambda: _run(command_line().parse_args(arguments)))


def command_line() -> Parser:
    """Its options, which completion reads too."""
    parser = Parser(
        prog="python -m vinvl.compare",
        description="Compare two evaluations of one split: differences with intervals, tests, and a page of the "
        "examples on which they differ. vinvl.evaluate, and vinvl.train at its end, write what is compared.",
    )
    add = parser.add_argument
    for name in ("A", "B"):
        add(name.lower(), metavar=name, help="run folder, folder of runs (its newest), or file of examples")
    add("--split", metavar="NAME", help="which, of an evaluation that scored several")
    add("--output", metavar="FOLDER", help="for compare.json and compare.html (default: a new one in runs/compare)")
    add("--images", metavar="FOLDER", help="the pictures, for the page: a folder, or a list file")
    add("--common", action="store_true", help="compare the examples that both have, where one lacks some")
    add("--draws", type=int, default=DRAWS, metavar="N", help="of the bootstrap and the test (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the drawing (default: %(default)s)")
    add("--most", type=int, default=MOST, metavar="N", help="examples on the page (default: %(default)s)")
    return parser


def _run(options: argparse.Namespace) -> int:
    for name, least, most in (("draws", 100, MOST_DRAWS), ("seed", 0, 2**64), ("most", 1, 10**6)):
        if not least <= getattr(options, name) <= most:
            raise UserError(f"--{name}={getattr(options, name)} must be a whole number from {least} to {most:,}.")
    first, second = (examples_of(place, options.split) for place in (options.a, options.b))
    pairs = paired(first, second, options.common)
    pictures, found = (None, "") if options.images is None else pictures_for(pairs, options.images)
    comparison = compare(pairs, options.draws, options.seed)
    output = Path(options.output or run_directory("runs", "compare", None)).expanduser()
    told = notes(pairs, comparison)
    page, results = output / "compare.html", output / "compare.json"
    shown, differing = write_comparison(page, pairs, comparison, told, pictures=pictures, most=options.most)
    about = {name: {"file": str(one.path), **to_builtins(one.about)} for name, one in (("A", first), ("B", second))}
    write_json(results, {"task": pairs.task, "examples": len(pairs), **about, **comparison.plain(), "notes": told})
    files = {"A": first.path, "B": second.path, "results": results, f"page ({shown:,} of {differing:,})": page}
    print_results(f"A and B on {pairs.task}, split '{first.about.split}'", rows_of(comparison), files, COLUMNS)
    say("", *told, *([found] if found else []))
    return 0


def rows_of(comparison: RunComparison) -> list[tuple[str, ...]]:
    """The table that a person sees."""
    rows, grouping = list[tuple[str, ...]](), ""
    for one in comparison.differences:
        if one.grouping != grouping:
            grouping = one.grouping
            rows.append((f"by {grouping}", *[""] * (len(COLUMNS) - 1)))
        p = one.p if one.p_holm is None else one.p_holm
        figures = (f"{one.first:.2f}", f"{one.second:.2f}", f"{one.difference:+.2f}", span(one), f"{p:.4f}")
        rows.append((("  " if grouping else "") + one.name, f"{one.examples:,}", *figures))
    return rows


def span(one: Difference) -> str:
    """The interval."""
    return f"{one.low:+.2f}…{one.high:+.2f}"


def notes(pairs: Pairs, comparison: RunComparison) -> list[str]:
    """What there is to be said of a comparison, the answer first."""
    one, told = comparison.headline, list[str]()
    figure = f"A − B is {one.difference:+.2f}, with 95 % confidence within {span(one)}"
    drawn = f"{comparison.units:,} {comparison.unit}"
    if comparison.units < FEW:
        told.append(f"{drawn} are too few to tell: {figure}.")
    elif one.low > 0 or one.high < 0:
        better, worse = "AB" if one.low > 0 else "BA"
        told.append(f"{better} is better than {worse}: {figure}.")
    else:
        told.append(f"Neither is shown to be better: {figure}, where 0 is too.")
    grouped = " In groups it is adjusted for their number (Holm), and the intervals are not."
    told.append(
        f"95 %: the interval of {comparison.draws:,} bootstrap draws of {drawn}, each with all its examples. p: how "
        "often chance makes as large a difference, where a coin decides for each of them which model is A."
        f"{grouped if len(comparison.differences) > 1 else ''} Neither tells how other seeds of the training would do."
    )
    if (test := comparison.mcnemar) is not None:
        right = f", where right is a score of at least {RIGHT_FROM:.0f}" if pairs.task == "vqa" else ""
        told.append(
            f"McNemar's exact test: {test.only_first:,} examples only A has right, {test.only_second:,} only B{right}: "
            f"p = {test.p:.2g}. It takes all examples for independent, and p above does not."
        )
    if pairs.task == "captioning" and len(comparison.differences) > 1:
        told.append(
            "CIDEr weighs words by the whole split, so that of a domain here is not the domain's own in results.json."
        )
    if any(pairs.left_out):
        alone, other = pairs.left_out
        cider = ", and CIDEr weighs words by each whole split" if pairs.task == "captioning" else ""
        told.append(f"Compared are {len(pairs):,} examples: {alone:,} of A and {other:,} of B have no partner{cider}.")
    return told


if __name__ == "__main__":
    sys.exit(main())

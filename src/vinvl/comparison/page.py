"""The page of the examples on which two models differ."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from vinvl.comparison.figures import Difference, RunComparison
from vinvl.comparison.pairing import Pairs
from vinvl.examples import GROUPINGS, OTHERS, RETRIEVAL, parts_of
from vinvl.pages.pages import write_page
from vinvl.pictures import pictures_of
from vinvl.run.errors import UserError

MOST = 10_000  # examples on a page, which then has some megabytes
LONGEST = 600  # characters of a text


def pictures_for(pairs: Pairs, source: str | Path) -> tuple[dict[str, str], str]:
    """Image id → file of its picture, and by which rule they were found. UserError if there are none, or no files."""
    whole = pairs.one["image_id"].unique().to_pylist()
    ids = sorted({part for one in whole for part in parts_of(pairs.task, one)})
    match = pictures_of(ids, "the split", source)
    packed = next((place for place in match.places.values() if "\0" in place), None)
    if packed is not None:
        raise UserError(f"{source} has its pictures in an archive, and the page only links to files: unpack it first.")
    return {ids[index]: place for index, place in match.places.items()}, match.told


def write_comparison(
    path: Path,
    pairs: Pairs,
    comparison: RunComparison,
    told: Sequence[str],
    *,
    pictures: Mapping[str, str] | None = None,
    most: int = MOST,
) -> tuple[int, int]:
    """Writes the page; returns how many examples it shows, and on how many the two differ.

    Args:
        told: what is said of the comparison, a paragraph each.
        pictures: `pictures_for`; None: there are none.
        most: where they differ on more, those with the largest differences, of equal ones some drawn at random.
    """
    places = differing(pairs)
    chosen = places if len(places) <= most else largest(pairs, places, most, comparison.seed)
    folder = path.parent.resolve()
    links = {one: quote(os.path.relpath(Path(place).resolve(), folder)) for one, place in (pictures or {}).items()}
    groupings = {column: called for column, called in GROUPINGS.get(pairs.task, OTHERS).items()}
    if pairs.task == RETRIEVAL:
        groupings = {"group": "direction"}
    write_page(
        path,
        "compare.html",
        title=f"A and B on {pairs.first.about.task}, split '{pairs.first.about.split}'",
        models=[(one.path, one.about.source) for one in (pairs.first, pairs.second)],
        told=told,
        bars=bars(comparison.differences),
        groupings=groupings,
        rows=rows_of(pairs, chosen, links),
        differing=len(places),
        total=len(pairs),
        has_pictures=pictures is not None,
        ranked=pairs.task == RETRIEVAL,
    )
    return len(chosen), len(places)


def differing(pairs: Pairs) -> np.ndarray:
    """(D,) int64: the examples whose scores differ; of retrieval those whose ranks do."""
    one, other = pairs.numpy("rank" if pairs.task == RETRIEVAL else "score")
    return np.flatnonzero(np.abs(one - other) > 1e-9)


def largest(pairs: Pairs, places: np.ndarray, most: int, seed: int) -> np.ndarray:
    """(most,) int64 of the places, in their order: those with the largest differences of the score."""
    one, other = pairs.numpy("score")
    places = np.random.default_rng(seed).permutation(places)
    order = np.argsort(-np.abs(one - other)[places], kind="stable")
    return np.sort(places[order[:most]])


def rows_of(pairs: Pairs, places: np.ndarray, links: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the page says of examples, the largest differences first."""
    one, other = pairs.one.take(places).to_pylist(), pairs.other.take(places).to_pylist()
    rows = [
        {
            "id": here["id"],
            "pictures": [links[part] for part in parts_of(pairs.task, here["image_id"]) if part in links],
            "image": here["image_id"],
            "group": here["group"],
            "kind": here["kind"],
            "text": here["text"][:LONGEST],
            "truth": [[text[:LONGEST], count] for text, count in Counter(here["truth"]).most_common()],
            "answers": [row["answer"][:LONGEST] for row in (here, there)],
            "scores": [round(row["score"], 2) for row in (here, there)],
            "ranks": [row["rank"] + 1 for row in (here, there)],
        }
        for here, there in zip(one, other, strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row["scores"][0] - row["scores"][1]))


def bars(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Each figure with where its difference and interval lie on a common scale, in percent of its width."""
    ends = [abs(end) for one in differences for end in (one.low, one.high, one.difference) if np.isfinite(end)]
    reach = 1.05 * max(ends, default=0) or 1.0

    def place(value: float) -> float:
        return 50 + 50 * value / reach if np.isfinite(value) else 50.0

    return [
        {"one": one, "low": place(one.low), "high": place(one.high), "middle": place(one.difference)}
        for one in differences
    ]

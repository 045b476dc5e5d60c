"""The page of a run: right and wrong answers with their pictures, curves, figures and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vinvl.examples import (
    GROUPINGS,
    OTHERS,
    RETRIEVAL,
    RIGHT_FROM,
    AboutExamples,
    Examples,
    SeenBox,
    SeenPicture,
    parts_of,
)
from vinvl.pages.curves import charts
from vinvl.pages.drawn import WIDE, drawn, readings_of, with_regions
from vinvl.pages.pages import write_page
from vinvl.pages.run_folder import FinishedRun
from vinvl.pictures import PictureNames, pictures_of
from vinvl.regions.layout import View
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

LONGEST = 600  # characters of a text
THUMBNAIL = 160  # pixels of a picture that a caption found
FIRST = 5  # matches of retrieval
OUTCOMES = {
    RETRIEVAL: ("first", f"among the first {FIRST}", "later"),
    "captioning": ("best third", "middle third", "worst third"),
}
RIGHT_OR_WRONG = ("right", "wrong")
OBJECTS = ("all objects found", "some found", "none found")
ABOUT_BOXES = (
    "These are the first pictures of the split, true boxes left, found ones right.",
    "An object counts as found where one of the best boxes, as many as there are objects, has its class and overlaps "
    "it by half. Found boxes are these and those with a score from 0.2 on.",
)
WAYS = {"image_to_text": "image → text", "text_to_image": "text → image"}
TRUTHS = {"vqa": "people", "captioning": "people", "nlvr2": "label", RETRIEVAL: "true"}


class WhereSeen(NamedTuple):
    """Where the images of examples are to be seen, as far as that is known.

    Attributes:
        store: their regions.
        stored_as: image id → that of the store, where it is another one.
        places: image id → picture; None where no pictures are given.
        told: what a person is to know of it.
    """

    store: RegionStore | None
    stored_as: Mapping[str, str]
    places: Mapping[str, str] | None
    told: tuple[str, ...]

    @classmethod
    def of(
        cls,
        examples: Examples,
        stores: Sequence[str] | None,
        images: str | None,
        names: PictureNames | None = None,
    ) -> WhereSeen:
        """Regions in these stores, or in those that the examples name, and pictures in the source `images`.

        Raises UserError for what is given and cannot be read; stores that are only named may have gone.
        """
        about, told = examples.about, list[str]()
        store = None if stores is None else RegionStore(list(stores))
        if store is None and about.regions:
            store, note = _named_store(about)
            told += [note] if note else []
        if images is None:
            told.append("Without images=DIR there are no pictures, and boxes are drawn on grey.")
            return cls(store, about.stored_as, None, tuple(told))
        whole = examples.table["image_id"].unique().to_pylist()
        ids = sorted({part for one in whole for part in parts_of(about.task, one)})
        said = None if store is None else store.provenance.get("image_id")
        match = pictures_of(ids, "the split", images, names, said)
        places = {ids[index]: place for index, place in match.places.items()}
        return cls(store, about.stored_as, places, (*told, f"{match.told}."))

    def picture(self, image_id: str, max_pixels: int, **options: Any) -> dict[str, Any]:
        """What the page shows of an image."""
        key = self.stored_as.get(image_id, image_id)
        regions = self.store[key] if self.store is not None and key in self.store else None
        path = None if self.places is None else self.places.get(image_id, "")
        labels = None if self.store is None else self.store.label_map
        return drawn(image_id, path, readings_of(self.store, max_pixels), regions, labels, **options)


def _named_store(about: AboutExamples) -> tuple[RegionStore | None, str]:
    paths, views = [path for path, _ in about.regions], [view for _, view in about.regions]
    try:
        return RegionStore(paths, views if any(view != View() for view in views) else None), ""
    except UserError as error:
        return None, f"Boxes are not drawn: {error} Pass store=FILE with the regions of this split."


def report_run(
    run: FinishedRun,
    output: Path,
    *,
    stores: Sequence[str] | None = None,
    images: str | None = None,
    names: PictureNames | None = None,
    ids: Sequence[str] | None = None,
    count: int = 60,
    seed: int = 0,
    max_pixels: int,
) -> tuple[int, tuple[str, ...]]:
    """Writes the page of a run; returns how many examples it shows, and what a person is to know of it.

    Args:
        output: the HTML file.
        stores, images, names: see `WhereSeen.of`; None: the stores of the run, no pictures.
        ids: of examples or of images, whose examples are shown; None draws some.
        count: how many are drawn, as many of each outcome as there are.
        seed: of the drawing.
        max_pixels: of pictures; larger ones are not shown.

    Raises:
        UserError: pictures or a store are given and cannot be read, or an id is of no example.
    """
    told, cards, found = tuple[str, ...](), list[dict[str, Any]](), run.examples
    if found is not None:
        seen = WhereSeen.of(found, stores, images, names)
        codes, told = outcomes(found), seen.told
        places = chosen(codes, count, seed) if ids is None else asked_for(found, ids)
        rows = found.table.take(places).to_pylist()
        kinds = OUTCOMES.get(found.about.task, RIGHT_OR_WRONG)
        pairs = zip(rows, codes[places].tolist(), strict=True)
        cards = [_card(row, kinds, code, found.about.task, seen, max_pixels) for row, code in pairs]
    elif run.boxes:
        told, cards = ABOUT_BOXES, [_card_of_boxes(f"{number}", one) for number, one in enumerate(run.boxes[:count])]
    write_page(
        output,
        "run.html",
        title=f"{run.folder.resolve().name}: {_what(run)}",
        run=run,
        charts=charts(run.curves),
        cards=cards,
        columns={"outcome": "outcome"} if found is None else columns(found.about.task),
        outcomes=counted(cards) if found is None else outcome_counts(found),
        told=told,
        no_examples="" if found is not None or run.boxes else why_none(run),
        truth="truth" if found is None else TRUTHS.get(found.about.task, "truth"),
    )
    return len(cards), told


def _what(run: FinishedRun) -> str:
    if run.examples is not None:
        return f"{run.examples.about.task} on split '{run.examples.about.split}'"
    split, what = run.results.get("split"), "detector on " if run.boxes else ""
    return f"{what}split '{split}'" if split else "a run"


def why_none(run: FinishedRun) -> str:
    """Why there are no examples to show."""
    if "vinvl.pretraining." in run.settings:
        return "Pre-training scores hidden words and pairs, and no examples one by one: there are none to show."
    if not run.results:
        return "This run has not ended, or nothing was scored at its end: there are no examples to show yet."
    if "vinvl.detector." in run.settings:
        return "This run has left no boxes.json, which the test of a detector writes: vinvl.evaluate makes one."
    return "This run has left no examples.parquet, which vinvl.evaluate writes of tasks that tell of each example."


def outcomes(examples: Examples) -> np.ndarray:
    """(N,) int64: of each example the number of its outcome among those of its task."""
    scores = examples.numpy("score")
    if examples.about.task == RETRIEVAL:
        ranks = examples.numpy("rank")
        return np.where(ranks == 0, 0, np.where((ranks > 0) & (ranks < FIRST), 1, 2))
    if examples.about.task == "captioning":
        behind = np.argsort(np.argsort(-scores, kind="stable"))  # 0 for the best
        return behind * 3 // len(scores)
    return np.where(scores >= RIGHT_FROM, 0, 1)


def outcome_counts(examples: Examples) -> list[tuple[str, int]]:
    """How many examples of the split have each outcome."""
    kinds = OUTCOMES.get(examples.about.task, RIGHT_OR_WRONG)
    return list(zip(kinds, np.bincount(outcomes(examples), minlength=len(kinds)).tolist(), strict=True))


def counted(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """How many pictures of a detector have each outcome."""
    return [(name, sum(card["outcome"] == name for card in cards)) for name in OBJECTS]


def columns(task: str) -> dict[str, str]:
    """What examples can be chosen by: column → what it is for a person."""
    groupings = {"group": "direction"} if task == RETRIEVAL else GROUPINGS.get(task, OTHERS)
    return {"outcome": "outcome", **groupings}


def chosen(codes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(M,) int64, ascending: up to `count` places, as many of each code as there are, the rest of the others."""
    order = np.random.default_rng(seed).permutation(len(codes))
    turn = np.empty(len(codes), dtype=np.int64)  # the how manieth of its code a place is
    for code in np.unique(codes):
        own = order[codes[order] == code]
        turn[own] = np.arange(len(own))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def asked_for(examples: Examples, ids: Sequence[str]) -> np.ndarray:
    """(M,) int64: the examples with these ids, or of the images with them. UserError if an id is of none."""
    places = list[int]()
    own, images = examples.table["id"].to_pylist(), examples.table["image_id"].to_pylist()
    for wanted in dict.fromkeys(ids):
        found = [place for place, one in enumerate(own) if one == wanted] or [
            place for place, one in enumerate(images) if wanted in (one, *parts_of(examples.about.task, one))
        ]
        if not found:
            raise UserError(f"{examples.path} has no example and no image {wanted!r}; its ids are like {own[0]!r}.")
        places += found
    return np.array(list(dict.fromkeys(places)), dtype=np.int64)


def _card(
    row: Mapping[str, Any], kinds: Sequence[str], code: int, task: str, seen: WhereSeen, max_pixels: int
) -> dict[str, Any]:
    """What the page says of an example."""
    true = set(map(str.casefold, row["truth"]))
    by_caption = row["group"] == "text_to_image" and task == RETRIEVAL
    best = [
        {"text": text[:LONGEST], "share": share, "right": text.casefold() in true}
        for text, share in zip(row["best"], row["probabilities"], strict=True)
    ] or [{"text": row["answer"][:LONGEST], "share": None, "right": row["answer"].casefold() in true}]
    if by_caption:
        for one in best:
            one["thumbnail"] = seen.picture(one["text"], max_pixels, side=THUMBNAIL)["source"]
    parts, standing = parts_of(task, row["image_id"]), "good" if code == 0 else "bad" if code == len(kinds) - 1 else ""
    pictures = [seen.picture(part, max_pixels, wide=WIDE / len(parts)) for part in parts]
    truth = [(text[:LONGEST], number) for text, number in Counter(row["truth"]).most_common()]
    group = WAYS.get(row["group"], row["group"]) if task == RETRIEVAL else row["group"]
    return {
        **{name: row[name][:LONGEST] for name in ("id", "image_id", "text")},
        "outcome": kinds[code],
        "standing": standing,
        "group": group,
        "kind": row["kind"],
        "score": f"rank {row['rank'] + 1:,}" if task == RETRIEVAL and row["rank"] >= 0 else _plain(row["score"], task),
        "pictures": pictures,
        "best": best,
        "truth": [] if by_caption else truth,
        "by_caption": by_caption,
        "words": " ".join([row["text"], row["answer"], *row["best"], *row["truth"], row["id"]]).lower()[: 4 * LONGEST],
    }


def _card_of_boxes(number: str, one: SeenPicture) -> dict[str, Any]:
    """What the page says of a picture that a detector has looked at: true boxes, and found ones beside them."""

    def boxes(some: Sequence[SeenBox]) -> dict[str, Any]:
        corners = np.array([box.corners for box in some], dtype=np.float32).reshape(-1, 4)
        scores = np.array([box.score for box in some], dtype=np.float32)
        order, nothing = np.arange(len(some), dtype=np.int32), np.zeros((len(some), 0), np.float32)
        regions = Regions(number, nothing, corners, order, scores, width=one.width, height=one.height)
        names, source = LabelMap(tuple(box.name[:LONGEST] for box in some)), f"data:image/jpeg;base64,{one.jpeg}"
        return {"id": number, "note": "", **with_regions(source, one.width, one.height, regions, names, WIDE / 2)}

    code = 0 if one.missed == 0 else 1 if one.missed < len(one.true) else 2
    named = [(name[:LONGEST], count) for name, count in Counter(box.name for box in one.true).most_common()]
    return {
        "id": number,
        "image_id": number,
        "text": "",
        "outcome": OBJECTS[code],
        "standing": ("good", "", "bad")[code],
        "group": "",
        "kind": "",
        "score": f"{len(one.true) - one.missed} of {len(one.true)} objects",
        "pictures": [boxes(one.true), boxes(one.found)],
        "best": [],
        "truth": named,
        "by_caption": False,
        "words": " ".join(box.name for box in (*one.true, *one.found)).lower()[: 4 * LONGEST],
    }


def _plain(score: float, task: str) -> str:
    """A score for a person."""
    figure = {"captioning": "CIDEr", "vqa": "accuracy"}.get(task, "score")
    return f"{figure} {score:.1f}".removesuffix(".0")

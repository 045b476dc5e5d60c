"""What models are asked about a picture, and what they say: plain values for the templates of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.pages.drawn import drawn
from vinvl.pictures import name_of
from vinvl.predictor import Attended, PictureRegions, Predictor
from vinvl.predictor.predictor import NEEDED
from vinvl.run.errors import UserError

SIDE = 800  # the most pixels that a picture in the page is wide or high
MOST_NAMED = 8  # regions, and tags, that are listed as reasons


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture as each of the models has it. The picture itself is not kept, only a small one to draw on.

    Attributes:
        name: of the file.
        regions: by model, the same object where the models share a detector.
        drawings: by model, what `pages.drawn` makes of them.
    """

    name: str
    regions: tuple[PictureRegions, ...]
    drawings: tuple[dict[str, Any], ...]


def able(models: Sequence[Predictor], method: str) -> list[int]:
    """Which of the models have a method: ask, caption or score."""
    return [number for number, model in enumerate(models) if model.trained.task in NEEDED[method][0]]


def pictures_needed(models: Sequence[Predictor]) -> int:
    """Two if a model judges statements about two pictures."""
    return 2 if any(model.trained.task == "nlvr2" for model in models) else 1


def look(models: Sequence[Predictor], path: str) -> Seen:
    """A picture file as each model has it; raises UserError, which calls it by its bare name, if it cannot be used.

    The detector of models that share one looks at it once.
    """
    found = list[tuple[PictureRegions, dict[str, Any]]]()
    name = Path(name_of(path)).name
    try:
        for number, model in enumerate(models):
            before = next((one for one in range(number) if models[one].detector is model.detector), None)
            if before is not None:
                found.append(found[before])
                continue
            seen = model.regions(path)
            found.append((seen, drawn(name, path, [model.reading], seen.regions, seen.label_map, side=SIDE)))
    except UserError as error:
        raise UserError(str(error).replace(path, name)) from None
    regions, drawings = zip(*found, strict=True)
    return Seen(name, regions, drawings)


def differing(models: Sequence[Predictor], seen: Seen) -> list[tuple[str, dict[str, Any]]]:
    """Each drawing once, with the names of the models whose regions it has; no names where all have the same."""
    first = list(dict.fromkeys(map(id, seen.drawings)))
    if len(first) == 1:
        return [("", seen.drawings[0])]
    groups = {one: [number for number, drawing in enumerate(seen.drawings) if id(drawing) == one] for one in first}
    return [
        (", ".join(called(models[number]) for number in group), seen.drawings[group[0]]) for group in groups.values()
    ]


def called(model: Predictor) -> str:
    """What the page calls a model: of a path the last two names."""
    name = model.trained.name.removesuffix("/checkpoints/best.ckpt")
    return "/".join(Path(name).parts[-2:]) if Path(name).exists() else name


def answered(models: Sequence[Predictor], seen: Seen, question: str) -> list[dict[str, Any]]:
    """Of each model that answers questions the five best answers, and what they were read from."""
    told = list[dict[str, Any]]()
    for number in able(models, "ask"):
        model, regions = models[number], seen.regions[number]
        answer = model.ask(regions, question)
        told.append(
            {
                "name": called(model),
                "top": answer.top,
                "independent": model.trained.model.config.loss_type == "bce",
                "why": [reasons(seen, number, model.why(regions, question))],
            }
        )
    return told


def captioned(models: Sequence[Predictor], seen: Seen) -> list[dict[str, Any]]:
    """Of each model that writes captions its captions."""
    return [
        {"name": called(models[number]), "top": models[number].caption(seen.regions[number]).top}
        for number in able(models, "caption")
    ]


def scored(models: Sequence[Predictor], pictures: Sequence[Seen], text: str) -> list[dict[str, Any]]:
    """Of each model that scores texts the probability of one, and what it was read from.

    Raises UserError if a statement is about two pictures and one of them is missing.
    """
    told = list[dict[str, Any]]()
    for number in able(models, "score"):
        model, about = models[number], pictures[: 2 if models[number].trained.task == "nlvr2" else 1]
        if model.trained.task == "nlvr2" and len(about) < 2:
            raise UserError(f"{called(model)} judges statements about two pictures: give the second one too.")
        regions = tuple(seen.regions[number] for seen in about)
        image: Any = regions if len(about) == 2 else regions[0]
        why = model.why(image, text)
        told.append(
            {
                "name": called(model),
                "score": model.score(image, text),
                "statement": len(about) == 2,
                "why": [
                    reasons(seen, number, one)
                    for seen, one in zip(about, why if len(about) == 2 else [why], strict=True)
                ],
            }
        )
    return told


def reasons(seen: Seen, number: int, found: Attended) -> dict[str, Any]:
    """A drawing whose regions are the stronger coloured the more was read from them, and the most read by share.

    Tags of one name are one; they point to the regions of that name.
    """
    most = max(float(found.regions.max(initial=0)), 1e-9)
    regions = [
        region | {"fill": f"hsl(24 95% 50% / {0.6 * share / most:.3f})", "free": False}
        for region, share in zip(seen.drawings[number]["regions"], found.regions.tolist(), strict=True)
    ]
    best = np.argsort(-found.regions, kind="stable")[:MOST_NAMED].tolist()
    tags = dict[str, float]()
    for name, share in found.tags:
        tags[name] = tags.get(name, 0) + share
    named = sorted(tags.items(), key=lambda tag: -tag[1])[:MOST_NAMED]
    return {
        "drawing": seen.drawings[number] | {"regions": regions},
        "regions": [(regions[index], float(found.regions[index])) for index in best if found.regions[index] > 0],
        "tags": [(name, share, [one["number"] for one in regions if one["tag"] == name]) for name, share in named],
        "parts": {"text": found.text, "tags": sum(tags.values()), "regions": float(found.regions.sum())},
        "longest": max([most, *tags.values()]),
    }

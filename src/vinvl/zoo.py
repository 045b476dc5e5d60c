"""What the authors released and reported (conf/_zoo.yaml), what is missing of it, and our figures beside theirs."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vinvl.run.errors import UserError, say
from vinvl.run.folders import config_directory
from vinvl.run.options import IN_QUOTES, as_text

if TYPE_CHECKING:
    from vinvl.data.stores import StoreFile

DATA_OF_FOLDER = {
    "vqa": "vqa2_published",
    "gqa": "gqa_published",
    "GQA": "gqa_published",
    "nlvr2": "nlvr2_published",
    "coco_ir": "coco_retrieval_published",
    "flickr30k_ir": "flickr30k_published",
    "coco_caption": "coco_captions_published",
    "nocaps": "nocaps_published",
    "pretrain_corpus": "oscarplus_published",
}
BESIDE = ("sizes", "predictions", "labels")  # settings of a store that name files
ALL = "all"  # in `costs`: of the files of all splits


@functools.cache
def zoo() -> dict[str, Any]:
    """The table as it is written; not to be changed."""
    table: Any = OmegaConf.to_container(OmegaConf.load(Path(config_directory()) / "_zoo.yaml"))
    return table


def chosen(folder: Path) -> tuple[Path, list[str]]:
    """The root, and the configurations of what lies there; of one task if the folder is that task's."""
    there = {path.stem for path in (Path(config_directory()) / "data").glob("*_published.yaml")}
    for place in (folder, folder.parent):
        if DATA_OF_FOLDER.get(place.name) in there:
            above = place.parent  # image_features may lie beside datasets
            return above.parent if above.name == "datasets" else above, [DATA_OF_FOLDER[place.name]]
    return folder, [name for name in dict.fromkeys(DATA_OF_FOLDER.values()) if name in there]


def comparing(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments of vinvl.evaluate, `published=ROOT/TASK` as the words that choose and compare its data.

    Raises UserError if that is no task's folder, or one without figures, or the data are chosen twice.
    """
    words: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "published":
            words.append(argument)
            continue
        plain = re.sub(r"\\(['\"])", r"\1", value[1:-1]) if IN_QUOTES.fullmatch(value) else value
        folder = Path(os.path.abspath(Path(plain).expanduser()))
        root, names = chosen(folder)
        if len(names) > 1:
            places = (folder, folder / "datasets")
            there = [task for task in DATA_OF_FOLDER if any((place / task).is_dir() for place in places)]
            told = f"one of what is there, {', '.join(there)}" if there else f"one of {', '.join(DATA_OF_FOLDER)}"
            raise UserError(f"{folder} is no folder of one task: pass published={folder}/TASK, TASK being {told}.")
        if names[0] not in zoo()["scored"]:
            raise UserError(
                f"Nothing is published that {folder} could be scored against; pass data={names[0]} instead."
            )
        if any(word.startswith("data=") for word in arguments):
            raise UserError(f"published={plain} chooses the data, {names[0]}: leave out data=…")
        words += [f"data={names[0]}", f"published.root={as_text(str(root))}", f"published.compare={names[0]}"]
        if not any(word.startswith("decoding=") for word in arguments):
            words += zoo()["scored"][names[0]].get("words", [])
    return words


def known_file(path: str | Path) -> dict[str, str]:
    """What the table says of a file or folder of the release; {} where it does not know it."""
    return next((one for one in zoo()["files"] if fnmatch(str(path), f"*/{one['name']}")), {})


def what_to_get(path: str | Path) -> str:
    """A missing file or folder of the release, what it is and where the release had it, in one line."""
    if not (found := known_file(path)):
        return str(path)
    size = f", {found['size']}" if "size" in found else ""
    return f"{path}: {found['what']} ({found['where']}{size})"


def cost_of(path: str | Path, name: str, splits: Sequence[str], of: Sequence[str]) -> str:
    """What cannot be had without a file that is for some `splits` of those `of` the data set `name`."""
    costs, own = zoo()["costs"][name], known_file(path).get("cost")
    if own is not None:
        return f"no {own}"
    if set(splits) >= set(of):
        return f"no {costs.get(ALL, 'run')}"
    others = ", ".join(split for split in splits if split not in costs)
    told = [*(costs[split] for split in splits if split in costs), *([f"split {others}"] if others else [])]
    return f"no {'; no '.join(told)}"


def files_of(data: Mapping[str, Any], split: str) -> Iterator[str]:
    """The files that a split of a released data set is read from, whether they are there or not.

    Of features those that its store is made of, unless that is there already.

    Args:
        data: the composed section `data`, in plain types.
    """
    from vinvl.data.stores import StoreFile

    yield from paths_in(data["splits"][split])
    tags = data.get("tags")
    yield from paths_in(tags.get(split) if isinstance(tags, Mapping) else tags)
    yield from paths_in(data.get("answers"))
    given: Any = (data.get("stores") or {}).get(split, data.get("regions"))
    for one in given if isinstance(given, list) else [given]:
        try:
            files = StoreFile.listed(one, f"data.stores.{split}")
        except UserError:  # a pattern that stands for nothing
            yield str(one["from"])
            continue
        for file in files:
            yield from made_of(file)


def made_of(file: StoreFile) -> list[str]:
    """The files that a store is made of; none where it is there."""
    from vinvl.regions.formats.source import FEATURES_TSV, PREDICTIONS_TSV

    if file.source is None or Path(file.path).exists():
        return []
    features = Path(file.source) / FEATURES_TSV if Path(file.source).is_dir() else Path(file.source)
    beside = [features.with_name(PREDICTIONS_TSV)] if features.name == FEATURES_TSV else []
    return [str(path) for path in (features, *beside, *map(file.features.get, BESIDE)) if path]


def paths_in(value: Any) -> Iterator[str]:
    """All texts in nested dicts and lists that are paths."""
    if isinstance(value, str) and "/" in value:
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from paths_in(one)


def scorable_splits(name: str, data: Mapping[str, Any], chosen: str | None, missing: Sequence[Path]) -> list[str]:
    """The splits of a released data set that are to be scored, in the order of the table: `chosen`, or all there are.

    Args:
        name: of its configuration, such as "nlvr2_published".
        data: see `files_of`.
        missing: what else is not there.

    Raises:
        UserError: files of a split are missing that the release should have; lines before it say what to get.
    """
    known = zoo()["scored"][name]["splits"]
    if chosen is not None and not isinstance(data["splits"].get(chosen), str | list | Mapping):
        raise UserError(f"data.test_split={chosen} is no split of {name}: choose one of {', '.join(known)}.")
    lacking: dict[str, list[Path]] = {}
    for split in known if chosen is None else [chosen]:
        files = [Path(path).expanduser() for path in files_of(data, split)]
        if (official := known.get(split, {}).get("official")) is not None:
            files.append(Path(data["splits"][split]["official"]).with_name(official))
        lacking[split] = [path for path in files if not path.exists()]
    needed = [split for split in lacking if chosen is not None or not known[split].get("optional")]
    paths = dict.fromkeys([*missing, *(path for split in needed for path in lacking[split])])
    whole = [split for split in lacking if not lacking[split]]
    if paths:
        say(*(f"missing: {what_to_get(path)}" for path in paths), error=True)
        other = f"; with data.test_split={whole[0]} what is there is scored" if whole and not missing else ""
        raise UserError(
            f"{name} cannot be scored: {len(paths)} files or folders are missing, which are listed above with the "
            f"places where the release had them{other}."
        )
    for split in lacking.keys() - set(whole):
        say(*(f"{split} is not scored without {what_to_get(path)}" for path in lacking[split]), error=True)
    return whole


# Our figures beside those of a recipe.


@dataclass(frozen=True)
class Compared:
    """A figure of a split, in percent; None where it is not known.

    figure: the published one as it is printed, with † if it is of the paper and from memory.
    """

    metric: str
    split: str
    figure: str | None = None
    ours: float | None = None
    examples: int | None = None

    @property
    def published(self) -> float | None:
        return None if self.figure is None else float(self.figure.rstrip("†"))

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def tolerance(self) -> float | None:
        """Half a unit of the last digit, and what a handful of examples may move (conf/_zoo.yaml)."""
        if self.figure is None or self.examples is None:
            return None
        digits = len(self.figure.rstrip("†").partition(".")[2])
        return float(0.5 * 10.0**-digits + 100 * zoo()["handful"] / self.examples)

    @property
    def within(self) -> bool | None:
        """Whether the difference is within the tolerance."""
        if self.difference is None or self.tolerance is None:
            return None
        return abs(self.difference) <= self.tolerance

    def row(self) -> tuple[str, ...]:
        """For a person, as `COLUMNS`."""
        ours, tolerance = ("–" if one is None else f"{one:.2f}" for one in (self.ours, self.tolerance))
        difference = "–" if self.difference is None else f"{self.difference:+.2f}"
        within = {None: "–", True: "yes", False: "no"}[self.within]
        return self.metric, self.split, self.figure or "–", ours, difference, tolerance, within

    def plain(self) -> dict[str, Any]:
        """For results.json."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = ("metric", "split", "published", "ours", "difference", "tolerance", "within")


def recipe_of(name: str, checkpoint: Path, hidden_size: int) -> tuple[str | None, list[str]]:
    """The recipe that a checkpoint is of, by its place in the release or else its size, and what is to be said of that.

    None where several or none fit: nobody knows figures of it.
    """
    recipes = {key: one for key, one in zoo()["recipes"].items() if one.get("data") == name and "checkpoint" in one}
    placed = [
        key for key, one in recipes.items() if fnmatch(checkpoint.absolute().as_posix(), f"*/{one['checkpoint']}*")
    ]
    sized = [key for key, one in recipes.items() if one["published"]["model.config.hidden_size"] == hidden_size]
    found = placed or sized
    if len(found) != 1:
        return None, [
            f"By its place and its size {checkpoint} is none of the released checkpoints that figures are known of."
        ]
    notes = [recipes[found[0]]["note"]] if "note" in recipes[found[0]] else []
    if found[0] not in sized:
        size = recipes[found[0]]["published"]["model.config.hidden_size"]
        notes.append(f"{checkpoint} is {hidden_size} wide and {found[0]} {size}: this is not the released checkpoint.")
    return found[0], notes


def compared(name: str, recipe: str | None, scores: Mapping[str, Mapping[str, float]], only: bool) -> list[Compared]:
    """The rows of the table: of each split that was scored and, unless `only`, of others with published figures.

    Args:
        scores: split → our figures by the names of the task.
    """
    scored = zoo()["scored"][name]
    figures = {} if recipe is None else zoo()["recipes"][recipe].get("figures", {})
    rows = []
    for split, found in scores.items():
        examples = scored["splits"].get(split, {}).get("examples")
        for keys, metric in scored["metrics"].items():
            ours = next((found[key] for key in keys.split("|") if key in found), None)
            rows.append(Compared(metric, split, figures.get(split, {}).get(metric), ours, examples))
    others = [] if only else [split for split in figures if split not in scores]
    return rows + [Compared(metric, split, one) for split in others for metric, one in figures[split].items()]

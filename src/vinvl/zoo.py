"""What the authors released and reported (conf/_zoo.yaml), what is missing of it, and our figures beside theirs."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vinvl.data.stores import StoreFile
from vinvl.regions.formats.source import FEATURES_TSV, PREDICTIONS_TSV
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory

BESIDE = ("sizes", "predictions", "labels")  # settings of a store that name files
ALL = "all"  # in `costs`: of the files of all splits


@functools.cache
def zoo() -> dict[str, Any]:
    """The table as it is written; not to be changed."""
    table: Any = OmegaConf.to_container(OmegaConf.load(Path(config_directory()) / "_zoo.yaml"))
    return table


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

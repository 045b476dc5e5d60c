"""What the authors released and reported (conf/_zoo.yaml), what is missing of it, and our figures beside theirs."""

import functools
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vinvl.data.stores import StoreFile
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory

BESIDE = ("sizes", "predictions", "labels")  # settings of a store that name files


@functools.cache
def zoo() -> dict[str, Any]:
    """The table as it is written; not to be changed."""
    table: Any = OmegaConf.to_container(OmegaConf.load(Path(config_directory()) / "_zoo.yaml"))
    return table


def what_to_get(path: str | Path) -> str:
    """A missing file or folder of the release, what it is and where the release had it, in one line."""
    found = next((one for one in zoo()["files"] if fnmatch(str(path), f"*/{one['name']}")), None)
    if found is None:
        return str(path)
    size = f", {found['size']}" if "size" in found else ""
    return f"{path}: {found['what']} ({found['where']}{size})"


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
            if file.source is not None and not Path(file.path).exists():
                yield from (str(path) for path in (file.source, *map(file.features.get, BESIDE)) if path)


def paths_in(value: Any) -> Iterator[str]:
    """All texts in nested dicts and lists that are paths."""
    if isinstance(value, str) and "/" in value:
        yield value
    elif isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from paths_in(one)

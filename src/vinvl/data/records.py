"""What the configuration says of a split's files, compared with the known forms."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from vinvl.run.errors import UserError

NULL_REMOVES = "where configurations build upon each other, null takes a key away"


def plain(files: Any) -> Any:
    """What the configuration says in plain dicts and lists, without keys that are null."""
    if OmegaConf.is_config(files):
        files = OmegaConf.to_container(files, resolve=True, throw_on_missing=True)
    if isinstance(files, Mapping):
        return {str(key): value for key, value in files.items() if value is not None}
    return files


def checked_entry(entry: Any, place: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry that names files by keys, of which each must be known.

    Args:
        entry: what the configuration has.
        place: where it has it, for messages: "data.splits.train".
        needed, optional: the keys.

    Raises:
        UserError: it is no mapping, lacks a key, or has another.
    """
    form = f"{{{', '.join(f'{key}: …' for key in (*needed, *optional))}}}"
    given = plain(entry)
    if not isinstance(given, dict):
        raise UserError(f"{place} is {given!r}: give {form}.")
    for key in needed:
        if not isinstance(given.get(key), str):
            raise UserError(f"{place} has {'no' if key not in given else 'no file as'} {key}: give {form}.")
    unknown = [key for key in given if key not in needed and key not in optional]
    if unknown:
        raise UserError(f"{place} has the key {unknown[0]}, which nothing reads: give {form} ({NULL_REMOVES}).")
    return given


def file_names(files: Any, place: str, forms: str) -> list[str]:
    """A file or a list of files.

    Args:
        files: what the configuration has.
        place: where it has it, for messages: "data.splits.train".
        forms: what may be given, for messages.

    Raises:
        UserError: something else is given.
    """
    given = plain(files)
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{place} is {given!r}: give {forms}.")
    return listed

"""Image ids out of longer names, by a regular expression that a person gives."""

from __future__ import annotations

import re

from vinvl.errors import UserError


def check_pattern(pattern: str, setting: str) -> None:
    """Raises UserError, naming the setting, for what is no regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"{setting}={pattern!r} is no regular expression ({error}).") from None
    if groups < 1:
        raise UserError(f"{setting}={pattern!r} has no group in brackets to take the id from, such as '0*(\\d+)$'.")


def id_by_pattern(name: str, pattern: str | None, setting: str) -> str:
    """What the first group of a checked pattern finds in a name; the name itself where there is no pattern.

    Raises:
        UserError: the pattern does not fit; the sentence names the setting that it is from.
    """
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None or not match[1]:
        raise UserError(f"{setting}={pattern!r} does not fit {name!r}.")
    return match[1]

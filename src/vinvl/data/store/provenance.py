"""What store files say of how their features were made, beyond the name of the detector."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vinvl.data.store.layout import ShardHeader
from vinvl.errors import UserError


def common_provenance(headers: Sequence[ShardHeader]) -> dict[str, Any]:
    """What all files say, each key once; a list of the different values, by file, where they do not agree.

    Raises UserError, naming the file, if a provenance is no JSON object.
    """
    said = [_parse(header) for header in headers if header.provenance is not None]
    common: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in said for key in one):
        values = [one.get(key) for one in said]
        distinct = [value for number, value in enumerate(values) if value not in values[:number]]
        common[key] = distinct[0] if len(distinct) == 1 else distinct
    return common


def _parse(header: ShardHeader) -> dict[str, Any]:
    try:
        content = json.loads(header.provenance or "")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{header.path}: root attribute provenance is no JSON object; copy or write the file again.")
    return content

"""The label map: which class and attribute name an index stands for."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vinvl.data.record_fields import shown
from vinvl.errors import UserError

BACKGROUND = "__background__"
NO_ATTRIBUTE = "__no_attribute__"


@dataclass(frozen=True)
class LabelMap:
    """Names by index: `classes[0]` is the background, `attributes[0]` means "no attribute".

    An empty tuple says that the names are not known; indices are then only required not to be negative.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]

    def to_json(self) -> str:
        """The label map as ASCII JSON with the four keys of the published label-map files."""
        return json.dumps(
            {
                "label_to_idx": _index_of_names(self.classes),
                "attribute_to_idx": _index_of_names(self.attributes),
                "idx_to_label": {str(index): name for index, name in enumerate(self.classes)},
                "idx_to_attribute": {str(index): name for index, name in enumerate(self.attributes)},
            }
        )

    @classmethod
    def from_json(cls, text: str, source: str = "the label map") -> LabelMap:
        """Read the published label-map JSON; index 0 may be left out, as it is in the published files.

        `source` names the origin of the text in messages. `idx_to_label` is read where present, `label_to_idx`
        otherwise, and the two must agree; the attribute keys may both be missing.
        Raises UserError for anything that is not such a label map.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source} is not valid JSON ({error}); give the detector's label-map file.") from None
        if not isinstance(content, dict):
            raise UserError(f"{source} is not a JSON object; give the detector's label-map file.")
        if "label_to_idx" not in content and "idx_to_label" not in content:
            raise UserError(f"{source} has neither label_to_idx nor idx_to_label; give the detector's label-map file.")
        return cls(
            classes=_read_names(content, "label", BACKGROUND, source),
            attributes=_read_names(content, "attribute", NO_ATTRIBUTE, source),
        )


def _index_of_names(names: tuple[str, ...]) -> dict[str, int]:
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        indices.setdefault(name, index)
    return indices


def _read_names(content: dict[str, object], kind: str, name_of_zero: str, source: str) -> tuple[str, ...]:
    """The names of one kind ("label" or "attribute") in the order of their indices."""
    forward, backward = content.get(f"{kind}_to_idx", {}), content.get(f"idx_to_{kind}", {})
    if not isinstance(forward, dict) or not isinstance(backward, dict):
        raise UserError(f"{source}: {kind}_to_idx and idx_to_{kind} must be JSON objects.")
    by_index: dict[int, str] = {}
    for key, name in backward.items():
        by_index[_checked_index(key, kind, source)] = _checked_name(name, kind, source)
    for name, value in forward.items():
        index = _checked_index(value, kind, source)
        if by_index.setdefault(index, _checked_name(name, kind, source)) != name:
            raise UserError(
                f"{source}: {kind} {index} has the names {shown(by_index[index])} and {shown(name)}, not one."
            )
    if not by_index:
        return ()
    by_index.setdefault(0, name_of_zero)
    missing = next((index for index in range(len(by_index)) if index not in by_index), None)
    if missing is not None:
        raise UserError(f"{source}: {kind} index {missing} has no name although higher indices do.")
    return tuple(by_index[index] for index in range(len(by_index)))


def _checked_index(value: object, kind: str, source: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
        return value
    raise UserError(f"{source}: {str(value)[:40]!r} is not a {kind} index; indices are whole numbers from 0.")


def _checked_name(name: object, kind: str, source: str) -> str:
    if isinstance(name, str):
        try:
            name.encode("utf-8")
            return name
        except UnicodeEncodeError:
            pass
    raise UserError(f"{source}: a {kind} name is {ascii(name)[:40]}; names are Unicode text.")

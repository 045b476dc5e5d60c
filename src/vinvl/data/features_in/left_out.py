"""Rows and files that cannot be used: the first one is refused, or they are left out and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vinvl.errors import UserError
from vinvl.files import put_in_place

REFUSE, SKIP = ON_DAMAGED = ("refuse", "skip")
HOW_TO_SKIP = f"features.on_damaged={SKIP} leaves out what is damaged, and names it."
NAMED = 5  # told at the end and kept in the store; if there are more, all are listed in a file beside it
LONGEST_REASON = 400


class LeftOut:
    """What was left out so far; the whole list is in a file, so that memory does not grow with it.

    Attributes:
        notes: what else is to be told at the end.
        provenance: what the store says of it, kept up to date; None where damage is refused.
    """

    def __init__(self, on_damaged: str, scratch: Path) -> None:
        self.first: list[str] = []
        self.notes: list[str] = []
        self.provenance: dict[str, Any] | None = None
        if on_damaged == SKIP:
            self.provenance = {"on_damaged": SKIP, "left_out": 0, "left_out_first": self.first}
        self._list = scratch / f"left_out.{id(self)}.txt"

    def add(self, reason: UserError) -> None:
        """Raises the reason unless what is damaged is skipped."""
        if self.provenance is None:
            raise UserError(f"{reason} ({HOW_TO_SKIP})") from None
        sentence = str(reason)[:LONGEST_REASON]
        self.provenance["left_out"] += 1
        if len(self.first) < NAMED:
            self.first.append(sentence)
        with self._list.open("a", encoding="utf-8") as file:
            file.write(sentence + "\n")

    @property
    def skips(self) -> bool:
        return self.provenance is not None

    @property
    def count(self) -> int:
        return self.provenance["left_out"] if self.provenance else 0

    def keep_list(self, target: Path) -> Path | None:
        """The list beside a new store, in place of a former one's; None where the first few are all."""
        if self.count <= NAMED:
            return None
        kept = target.with_name(f"{target.name}.left_out.txt")
        put_in_place(self._list, kept)
        return kept

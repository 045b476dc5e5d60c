"""What the configuration says of a pre-training split: its corpora, and the part that each has in training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vinvl.data.module import checked_entry, plain
from vinvl.pretraining.triplets import checked_mode
from vinvl.run.errors import UserError

SHARES = ("loss_weight", "passes")
MODE = "textb_sample_mode"


class CorpusEntry(NamedTuple):
    """Files that are one corpus, and its part in training; see `CorpusShare` for the numbers."""

    files: tuple[str, ...]
    loss_weight: float = 1.0
    passes: float = 1.0
    textb_sample_mode: int | None = None  # its wrong second texts; None: as all others
    pool: int = 0  # corpora of one number draw wrong texts from each other


def corpus_entries(given: Any, place: str, paired: bool) -> list[CorpusEntry]:
    """The corpora of a split, those that share a pool first; nothing but folders is opened.

    Args:
        given: a file or folder, an entry `{file: FILE or list of files, loss_weight, passes, textb_sample_mode}`, or a
            list of these.
        place: names it for a message, "data.splits.train".
        paired: whether each is a pool of its own, whatever mode it has.

    Raises:
        UserError: it names no corpus, or a number that means nothing.
    """
    given = plain(given)
    listed = given if isinstance(given, list) else [given]
    found = [_entry({"file": one} if isinstance(one, str) else one, place) for one in listed]
    if not found:
        raise UserError(f"{place} names no corpus; give it a file.")
    if paired and (turning := [entry for entry in found if entry.passes != 1]):
        raise UserError(
            f"{place}: {turning[0].files[0]} has passes {turning[0].passes:g}, and data.paired=true takes as many rows "
            "of each corpus: leave passes out."
        )
    own = [paired or entry.textb_sample_mode is not None for entry in found]
    pools = [entry._replace(pool=number) for number, entry in enumerate(found, 1)]
    return [entry for entry, one in zip(found, own, strict=True) if not one] + [
        entry for entry, one in zip(pools, own, strict=True) if one
    ]


def _entry(given: Any, place: str) -> CorpusEntry:
    files = given.get("file") if isinstance(given, dict) else None
    if isinstance(files, list) and files and all(isinstance(file, str) for file in files):
        given = {**given, "file": files[0]}
    else:
        files = None
    entry = checked_entry(given, place, ("file",), (*SHARES, MODE))
    files = files or [entry["file"]]
    weight, passes = (entry.get(key, 1.0) for key in SHARES)
    for key, number in zip(SHARES, (weight, passes), strict=True):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"{place} has the {key} {number!r}: give a number.")
    if not 0 <= weight < float("inf") or not 0 < passes < float("inf"):
        raise UserError(
            f"{place}: {files[0]} has loss_weight {weight} and passes {passes}: give a weight from 0 and more than 0 "
            "passes."
        )
    mode = entry.get(MODE)
    if mode is not None:
        checked_mode(mode, f"{place}: {files[0]} has {MODE}")
    names = tuple(name for file in files for name in _files(file))
    return CorpusEntry(names, float(weight), float(passes), mode)


def _files(path: str) -> Sequence[str]:
    """The corpus files of a folder, by name; a file is itself."""
    if not Path(path).is_dir():
        return [path]
    files = sorted(str(file) for file in Path(path).glob("*.jsonl") if not file.is_dir())
    if not files:
        raise UserError(f"{path} is a folder without corpus files (.jsonl); check the path.")
    return files

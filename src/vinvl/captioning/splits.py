"""The captions of a split, in whichever form the configuration names its file."""

from typing import Any

from pytorch_lightning.utilities import rank_zero_warn

from vinvl.captioning.files import read_caption_jsonl, read_coco_captions, read_karpathy
from vinvl.captioning.records import CaptionRecords
from vinvl.data.records import NULL_REMOVES, plain
from vinvl.run.errors import UserError


def read_caption_split(files: Any, split: str, on_missing_captions: str) -> CaptionRecords:
    """The captioned images of a split; a warning says what was skipped and how many.

    Args:
        files: `{karpathy: FILE, splits: [NAME, …]}`, `{coco: FILE}` (also NoCaps) or `{jsonl: FILE}`.
        split: its name, for messages.
        on_missing_captions: `error` or `skip` images without captions and blank captions.

    Raises:
        UserError: another form, or what the readers refuse.
    """
    if on_missing_captions not in ("error", "skip"):
        raise UserError(f"data.on_missing_captions is '{on_missing_captions}': choose error or skip.")
    handling: Any = on_missing_captions
    match plain(files):
        case {"karpathy": str(path), "splits": [*names], **others} if not others:
            records = read_karpathy(path, names, handling)
        case {"coco": str(path), **others} if not others:
            records = read_coco_captions(path, handling)
        case {"jsonl": str(path), **others} if not others:
            records = read_caption_jsonl(path, handling)
        case other:
            several = isinstance(other, dict) and len({"karpathy", "coco", "jsonl"} & other.keys()) > 1
            raise UserError(
                f"data.splits.{split} is {other!r}: give {'one of ' if several else ''}"
                "{karpathy: FILE, splits: [NAME, …]}, {coco: FILE} or {jsonl: FILE}"
                f"{f' ({NULL_REMOVES})' if several else ''}."
            )
    if records.skipped.images or records.skipped.blank_captions:
        rank_zero_warn(f"data.on_missing_captions=skip: split '{split}' goes without {records.skipped.describe()}.")
    return records

"""Reading captions from files: Karpathy's splits, the COCO layout and JSONL of one's own."""

from vinvl.data.caption_jsonl import read_caption_jsonl
from vinvl.data.caption_packing import OnMissingCaptions
from vinvl.data.caption_records import CaptionRecords, SkippedCaptions, concatenate
from vinvl.data.coco_caption_files import read_coco_captions
from vinvl.data.karpathy_files import read_karpathy

__all__ = [
    "CaptionRecords",
    "OnMissingCaptions",
    "SkippedCaptions",
    "concatenate",
    "read_caption_jsonl",
    "read_coco_captions",
    "read_karpathy",
]

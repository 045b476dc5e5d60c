"""Reading VQA questions and answers from files: the official VQA v2 JSON and JSONL of one's own."""

from vinvl.data.vqa_jsonl import read_jsonl
from vinvl.data.vqa_official import read_official
from vinvl.data.vqa_records import VQARecords, concatenate

__all__ = ["VQARecords", "concatenate", "read_jsonl", "read_official"]

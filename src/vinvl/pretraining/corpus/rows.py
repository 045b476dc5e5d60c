"""One line of a corpus file: a text with the image it belongs to, and the tags of the image or the answer to it."""

from enum import IntEnum
from typing import Any, NamedTuple

from vinvl.data.records import checked_record, checked_text, optional_text, required_id, required_text, shown
from vinvl.run.errors import UserError


class RowKind(IntEnum):
    """What the second text of a row is; the numbers are stored in index files."""

    STORE_TAGS = 0  # a caption, with the classes of the image's regions
    GIVEN_TAGS = 1  # a caption, with tags that the row gives
    ANSWER = 2  # a question, with its answer


class CorpusRow(NamedTuple):
    """A checked row."""

    image_id: str
    text: str
    kind: RowKind
    tags: tuple[str, ...]  # where kind is GIVEN_TAGS
    answer: str  # where kind is ANSWER
    source: str

    @property
    def second_text(self) -> str:
        """What follows the text; tags are joined by blanks, as published Oscar joins them."""
        return " ".join(self.tags) if self.kind == RowKind.GIVEN_TAGS else self.answer


def corpus_row(value: Any, place: str) -> CorpusRow:
    """Checks a parsed line. `place` names it ("corpus.jsonl line 3").

    Keys: "image_id" (integer or text), "text", and at most one of "tags" (list of texts) and "answer" (text); with
    neither, the tags are the classes of the store. Optional: "source" (text), and "id", which is not read.

    Raises:
        UserError: the line is not as described.
    """
    record = checked_record(value, place, "image_id, text, and tags or an answer")
    image_id = str(required_id(record, "image_id", place))
    text = required_text(record, "text", place).strip()
    source = optional_text(record, "source", place) or ""
    has_tags, has_answer = record.get("tags") is not None, record.get("answer") is not None
    if has_tags and has_answer:
        raise UserError(f"{place} has both tags and an answer; keep one of the two.")
    if has_answer:
        answer = required_text(record, "answer", place).strip()
        return CorpusRow(image_id, text, RowKind.ANSWER, (), answer, source)
    if not has_tags:
        return CorpusRow(image_id, text, RowKind.STORE_TAGS, (), "", source)
    tags = record["tags"]
    if not isinstance(tags, list):
        raise UserError(f"{place}: tags is {shown(tags)}, expected a list of names.")
    names = (checked_text(tag, f"{place}: tag {number}").strip() for number, tag in enumerate(tags, start=1))
    return CorpusRow(image_id, text, RowKind.GIVEN_TAGS, tuple(name for name in names if name), "", source)

"""Captions and questions as they are downloaded → corpus rows, one after the other, in little memory."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list, json_parts, reading
from vinvl.run.values import FilledText, Id, checked_id, decoded, json_items, json_listed, json_members, wrong_value

KARPATHY_SPLITS = ("train", "restval")  # those that nobody is scored on


class FoundText(NamedTuple):
    """A caption, or a question with its answer, as a file has it."""

    place: str  # names the record, for messages
    image_id: int | str
    text: str
    own_id: int | str
    answer: str | None = None
    url: str | None = None


class Given(NamedTuple):
    """What is read: files, what is wanted of them, and what is left out, by reason and how often."""

    files: Sequence[Path]
    splits: tuple[str, ...] | None
    ids: LineTable | None
    left_out: Counter[str]


class LineTable:
    """The lines of a file by a key that each has; of a line 16 bytes are held.

    Args:
        key_of: the key of a line; its second argument names the line for messages.

    Raises:
        UserError: the file cannot be read, or two lines have one key.
    """

    def __init__(self, path: Path, key_of: Callable[[bytes, str], str]) -> None:
        self.path, self._key_of = path, key_of
        hashes, offsets, position = array("q"), array("q"), 0
        with reading(path), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    hashes.append(hash(key_of(line, f"{path} line {number}")))
                    offsets.append(position)
                position += len(line)
        found = np.array(hashes, dtype=np.int64)
        order = np.argsort(found, kind="stable")
        self._hashes, self._offsets = found[order], np.array(offsets, dtype=np.int64)[order]
        self._file = path.open("rb")
        if (twins := np.flatnonzero(self._hashes[1:] == self._hashes[:-1])).size:
            key = key_of(self._line(int(twins[0])), str(path))
            raise UserError(f"{path} has more than one line for {key[:80]!r}; keep one of them.")

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, key: str) -> bytes | None:
        """The line that has this key."""
        position = int(np.searchsorted(self._hashes, hash(key)))
        if position == len(self) or self._hashes[position] != hash(key):
            return None
        line = self._line(position)
        return line if self._key_of(line, str(self.path)) == key else None

    def _line(self, position: int) -> bytes:
        self._file.seek(int(self._offsets[position]))
        return self._file.readline()


def text_of(line: bytes, place: str) -> str:
    """A line as text; UserError if it is no UTF-8."""
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def columns_of(line: bytes, place: str, what: str) -> tuple[str, str]:
    """Two columns that a tab is between; `what` they are for messages."""
    first, tab, second = text_of(line, place).partition("\t")
    if not tab or not first.strip() or not second.strip() or "\t" in second:
        raise UserError(f"{place} is not {what}, with a tab between them.")
    return first.strip(), second.strip()


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path} line {number}", line


# COCO's captions and Flickr30k's, in files of their own or in Karpathy's splits.


class KarpathySentence(msgspec.Struct, gc=False):
    raw: str
    sentid: Id | None = None


class CaptionImage(msgspec.Struct, gc=False):
    id: Id | None = None
    split: str | None = None
    filename: FilledText | None = None
    cocoid: Id | None = None
    sentences: list[KarpathySentence] | None = None


class CaptionOfImage(msgspec.Struct, gc=False):
    id: Id
    image_id: Id
    caption: str


def coco_captions(given: Given) -> Iterator[FoundText]:
    """COCO's captions_*.json or Karpathy's dataset_coco.json; of the latter the splits that are asked for."""
    for path in given.files:
        yield from _captions_of(path, given)


def _captions_of(path: Path, given: Given) -> Iterator[FoundText]:
    kinds = {"images": CaptionImage, "annotations": CaptionOfImage}
    listed, captioned, splits = set[Any](), dict[Any, int](), set[str]()
    number = 0
    for key, one in json_listed(
        path, kinds, ["images"], "give captions_*.json of COCO, or a dataset_*.json of Karpathy's"
    ):
        if key == "annotations":
            number += 1
            captioned.setdefault(one.image_id, number)
            yield FoundText(f"{path} annotation {number}", one.image_id, one.caption, one.id)
        elif one.sentences is None:
            listed.add(one.id)
        else:
            splits.add(str(one.split))
            yield from _of_karpathy(one, f"{path}, image {one.filename or one.cocoid}", given)
    if strangers := captioned.keys() - listed:
        one = min(strangers, key=lambda image: captioned[image])
        raise UserError(
            f"{path} annotation {captioned[one]} is about image {one}, which is not among its images "
            f"({len(strangers):,} such images); get the file again."
        )
    _refuse_splits(path, given.splits, splits)


def _refuse_splits(path: Path, wanted: Sequence[str] | None, there: set[str]) -> None:
    if unknown := set(wanted or ()) - there:
        has = f"it has {', '.join(sorted(there))}" if there else "only Karpathy's files have splits"
        raise UserError(f"{path} has no split {min(unknown)!r}: {has}.")


def _of_karpathy(one: CaptionImage, place: str, given: Given) -> Iterator[FoundText]:
    image_id = one.cocoid
    if image_id is None:
        image_id = PurePosixPath(str(checked_id(one.filename, f"{place}, which has no cocoid: filename"))).stem
    sentences = one.sentences or []
    if one.split not in (given.splits or KARPATHY_SPLITS):
        given.left_out[f"of split {one.split}"] += len(sentences)
        return
    for number, said in enumerate(sentences):
        own_id = f"{image_id}#{number}" if said.sentid is None else said.sentid
        yield FoundText(f"{place}, sentence {number + 1}", image_id, said.raw, own_id)


_TOKEN = re.compile(r"(?P<name>[^\t#]+)#(?P<number>\d+)\t(?P<text>.*)")
_CSV = re.compile(r"(?P<name>[^|]+?)\s*\|\s*(?P<number>\d+)\s*\|?(?P<text>.*)")  # one line of it lacks the second |


def flickr30k(given: Given) -> Iterator[FoundText]:
    """Karpathy's dataset_flickr30k.json, results_20130124.token or results.csv."""
    for path in given.files:
        if path.suffix.lower() == ".json":
            yield from _captions_of(path, given)
            continue
        _refuse_splits(path, given.splits, set())
        for place, line in _lines(path):
            text = text_of(line, place)
            if text.replace(" ", "").startswith("image_name|"):
                continue
            match = _TOKEN.fullmatch(text) or _CSV.fullmatch(text)
            if match is None:
                raise UserError(
                    f"{place} is no caption of Flickr30k: NAME.jpg#0, a tab and the text, or NAME.jpg|0|text."
                )
            image_id = PurePosixPath(match["name"].strip()).stem
            yield FoundText(place, image_id, match["text"], f"{image_id}#{match['number']}")


# Captions of pictures in the web, which are called by the number of their row, or as a list says.


def read_ids(path: Path) -> LineTable:
    """A list of the pictures that are there: row number (from 0) or address, a tab, and the image id."""
    return LineTable(path, lambda line, place: columns_of(line, place, "a row number or an address and an image id")[0])


def _from_the_web(rows: Iterator[tuple[str, str, str]], given: Given) -> Iterator[FoundText]:
    """Of (place, caption, address)."""
    for number, (place, caption, url) in enumerate(rows):
        image_id: int | str = number
        if given.ids is not None:
            line = given.ids.find(url) or given.ids.find(str(number))
            if line is None:
                given.left_out[f"of pictures that {given.ids.path} does not have"] += 1
                continue
            image_id = columns_of(line, str(given.ids.path), "")[1]
        yield FoundText(place, image_id, caption, number, url=url)


def conceptual_captions(given: Given) -> Iterator[FoundText]:
    """Train_GCC-training.tsv: caption, tab, address."""

    def rows() -> Iterator[tuple[str, str, str]]:
        for path in given.files:
            for place, line in _lines(path):
                caption, url = columns_of(line, place, "a caption and an address")
                if "://" not in url:
                    raise UserError(f"{place} has the address {url[:60]!r}, which is none: give caption, tab, address.")
                yield place, caption, url

    return _from_the_web(rows(), given)


def sbu(given: Given) -> Iterator[FoundText]:
    """sbu-captions-all.json, or …_urls.txt and …_captions.txt, whose lines belong together."""
    if len(given.files) == 1:
        listed = [_listed(given.files[0], "image_urls"), _listed(given.files[0], "captions")]
        place = f"{given.files[0]} caption"
    elif len(given.files) == 2:
        listed = [_plain_lines(path) for path in given.files]
        place = f"{given.files[1]} line"
    else:
        raise UserError("sbu takes sbu-captions-all.json alone, or two text files: of addresses, and of captions.")

    def rows() -> Iterator[tuple[str, str, str]]:
        for number, (url, caption) in enumerate(zip_longest(*listed), start=1):
            if url is None or caption is None:
                raise UserError(
                    f"{place} {number} has no {'address' if url is None else 'caption'}: get the files again."
                )
            if "://" not in url:
                raise UserError(f"{place} {number} has the address {url[:60]!r}, which is none: give addresses first.")
            yield f"{place} {number}", caption, url.strip()

    return _from_the_web(rows(), given)


def _listed(path: Path, name: str) -> Iterator[str]:
    """One of the two lists of sbu-captions-all.json; it is read twice, so that none of them is held."""
    lists, remedy = {"image_urls": str, "captions": str}, "give sbu-captions-all.json, or the two text files"
    return (one for key, one in json_listed(path, lists, lists, remedy) if key == name)


def _plain_lines(path: Path) -> Iterator[str]:
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield text_of(line, f"{path} line {number}")


# Questions, whose answer is the second text.


class VqaQuestion(msgspec.Struct, gc=False):
    question_id: Id
    image_id: Id
    question: str


class PersonsAnswer(msgspec.Struct, gc=False):
    answer: str


class VqaAnnotation(msgspec.Struct, gc=False):
    question_id: Id
    image_id: Id
    multiple_choice_answer: str | None = None
    answers: list[PersonsAnswer] = []

    def answer(self) -> str:
        """The commonest as the file states it; else the one that most people gave, of several the first."""
        if self.multiple_choice_answer:
            return self.multiple_choice_answer
        said = Counter(one.answer.strip() for one in self.answers)
        return said.most_common(1)[0][0] if said else ""


def vqa(given: Given) -> Iterator[FoundText]:
    """VQA's files, of each split its questions and then its annotations."""
    if len(given.files) % 2:
        raise UserError("vqa takes files in pairs: QUESTIONS ANNOTATIONS [QUESTIONS ANNOTATIONS …].")
    for questions, answered in zip(given.files[::2], given.files[1::2], strict=True):
        answers: dict[int | str, tuple[int | str, str]] = {}
        remedy = "give the annotations of VQA behind their questions"
        for _, said in json_listed(answered, {"annotations": VqaAnnotation}, ["annotations"], remedy):
            if said.question_id in answers:
                raise UserError(f"{answered} answers question {said.question_id} more than once; get it again.")
            answers[said.question_id] = (said.image_id, said.answer())
        asked = json_listed(questions, {"questions": VqaQuestion}, ["questions"], "give the questions of VQA")
        for number, (_, one) in enumerate(asked, start=1):
            place = f"{questions} record {number}"
            image_id, answer = answers.pop(one.question_id, (None, ""))
            if image_id != one.image_id:
                wrong = "no answer to" if image_id is None else f"an answer about another image, {image_id}, to"
                raise UserError(
                    f"{answered} has {wrong} question {one.question_id} about image {one.image_id} ({place}); "
                    "take both of one split, each once."
                )
            yield FoundText(place, one.image_id, one.question, one.question_id, answer)
        if answers:
            raise UserError(
                f"{answered} answers {len(answers):,} questions that {questions} does not hold, the first being "
                f"{next(iter(answers))}; take both of one split."
            )


class GqaQuestion(msgspec.Struct, gc=False):
    imageId: Id  # noqa: N815
    question: str
    answer: str | None = None


def gqa(given: Given) -> Iterator[FoundText]:
    """GQA's question files; a folder stands for its .json files, as train_all_questions comes."""
    for path in json_parts(given.files):
        for number, (own_id, value) in enumerate(json_members(path, "question ids with their questions"), start=1):
            try:
                one = msgspec.convert(value, GqaQuestion)
            except msgspec.ValidationError as error:
                raise wrong_value(error, f"{path} record {number} (question {own_id})") from None
            yield FoundText(f"{path} record {number}", one.imageId, one.question, own_id, one.answer or "")


class VgQuestion(msgspec.Struct, gc=False):
    question: str
    answer: str
    qa_id: Id


class VgQuestions(msgspec.Struct, gc=False):
    id: Id
    qas: list[VgQuestion]


def vg_qa(given: Given) -> Iterator[FoundText]:
    """Visual Genome's question_answers.json; of an answer the full stop at its end is dropped."""
    for path in given.files:
        for number, image in enumerate(json_items(path, VgQuestions, "images with their questions"), start=1):
            for one in image.qas:
                answer = one.answer.strip().removesuffix(".")
                yield FoundText(
                    f"{path} record {number}, question {one.qa_id}", image.id, one.question, one.qa_id, answer
                )


# Captions that a captioner wrote, of pictures that have none.


class Written(msgspec.Struct, gc=False):
    """A line of predictions.jsonl, a record of captions.json, or a line of what vinvl.predict image=… writes."""

    image_id: Id | None = None
    image: FilledText | None = None
    caption: str | None = None
    top: Annotated[list[Any], msgspec.Meta(min_length=1)] | None = None
    filled_in: bool = False


_WRITTEN = msgspec.json.Decoder(Written)


def open_images(given: Given) -> Iterator[FoundText]:
    """What vinvl.predict wrote about Open Images, or any other pictures; captions that only stand in are left out."""
    for path in given.files:
        if begins_a_list(path):
            listed = enumerate(json_items(path, Written, "captions"), start=1)
            records = ((f"{path} record {number}", one) for number, one in listed)
        else:
            records = ((place, decoded(line, _WRITTEN, place)) for place, line in _lines(path))
        for place, one in records:
            best = one.top[0] if one.top else {}
            caption = one.caption or (best.get("caption") if isinstance(best, dict) else None)
            if not isinstance(caption, str) or (one.image_id is None and one.image is None):
                raise UserError(f"{place} is no caption with its image; give what vinvl.predict of a captioner wrote.")
            image_id = PurePosixPath(str(one.image)).stem if one.image_id is None else one.image_id
            if one.filled_in:
                given.left_out["that stand in for images without regions"] += 1
                continue
            yield FoundText(place, image_id, caption, str(image_id))

"""Files of captions: COCO's and NoCaps' `[{"image_id", "caption"}]`, our predictions.jsonl, and Oscar's TSV."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from vinvl.captioning.files import CaptionRecords
from vinvl.captioning.task import CaptioningTask, caption_examples, caption_rows, caption_scores, domains_of
from vinvl.run.errors import UserError, say
from vinvl.run.files import json_lines
from vinvl.run.values import Id, decoded, decoded_records
from vinvl.said import Scored, by_name, matched

BYTE_ORDER_MARK = "\ufeff".encode()  # which some editors write
OSCAR = ".tsv"  # pred.DATA.SPLIT.beamN….tsv: image id, tab, [{"caption", "conf"}]


class Captioned(msgspec.Struct, gc=False):
    caption: str


class Captions(msgspec.Struct, gc=False):
    image_id: Id
    caption: str | UnsetType = UNSET
    top: list[Captioned] | UnsetType = UNSET


def read_captions_given(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, image, caption) of each entry, the best of several. Raises UserError for one that is something else."""
    if path.suffix == OSCAR:
        yield from _oscar_rows(path)
        return
    for file, number, one in decoded_records(path, msgspec.json.Decoder(Captions)):
        caption = one.caption if one.caption is not UNSET else one.top[0].caption if one.top else UNSET
        if isinstance(caption, UnsetType):
            raise UserError(f'{file} {number} is no caption: give [{{"image_id": …, "caption": …}}].')
        yield f"{file} {number}", str(one.image_id), caption


def _oscar_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    decoder = msgspec.json.Decoder(list[Captioned])
    for number, (line, place) in json_lines(path, lambda line, place: (line, place)):
        name, tab, said = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).partition(b"\t")
        if not tab:
            raise UserError(f'{place} has no tab: give an image id and [{{"caption": …}}] with a tab between them.')
        captions = decoded(said.strip(), decoder, place)
        if not captions:
            raise UserError(f"{place} has no caption: give one, or leave the line out.")
        yield place, name.decode("utf-8", "replace").strip(), captions[0].caption


def score(data: Any, records: CaptionRecords, path: Path, missing: str, java: bool = False) -> Scored:
    """The caption metrics in percent, also of each domain. Images are called by id, Open Images id or file name."""
    names = [by_name(records["image_id"])]
    names += [by_name(records[name]) for name in ("open_images_id", "file_name") if name in records]
    if "file_name" in records:
        names.append(by_name(PurePosixPath(name).stem for name in records["file_name"]))
    said = matched(read_captions_given(path), names, records, path, missing)
    image_ids, references = list(records["image_id"]), list(records["captions"])
    captions = {image_ids[place]: said.values[place] for place in said.places}
    gold = {image_ids[place]: references[place] for place in said.places}
    scores, written, without = caption_scores(captions, gold, domains_of(records), java)
    for name, why in without.items():
        say(f"{name} was not computed: {why}")
    examples = caption_examples(records, written)
    return Scored(scores, CaptioningTask.headline, caption_rows(scores), examples, said.told, said.missing)

"""Captions of the demo world in the layout of the Karpathy splits (dataset_coco.json)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vinvl.data.demo.generate import image_file_name

# One of every ten pictures of train is "restval", as COCO's Karpathy split has part of its training: the second, so
# that a world of a few pictures has some of both.
RESTVAL_EVERY, RESTVAL_PLACE = 10, 2


@dataclass(frozen=True)
class CaptionedImage:
    """A picture of the world with its captions; `split` is train, val or test of the world."""

    image_id: int
    split: str
    captions: tuple[str, ...]


def karpathy_layout(images: Iterable[CaptionedImage], folder: str) -> dict[str, object]:
    """The content of a Karpathy file; images and sentences are numbered from 0 in the order given.

    Args:
        images: the pictures, those of the training split in the order of their ids.
        folder: goes to `filepath`.
    """
    entries: list[dict[str, object]] = []
    num_sentences = num_train = 0
    for imgid, image in enumerate(images):
        num_train += image.split == "train"
        in_rest = image.split == "train" and num_train % RESTVAL_EVERY == RESTVAL_PLACE
        sentids = list(range(num_sentences, num_sentences + len(image.captions)))
        num_sentences += len(sentids)
        entries.append(
            {
                "filepath": folder,
                "filename": image_file_name(image.image_id),
                "cocoid": image.image_id,
                "split": "restval" if in_rest else image.split,
                "imgid": imgid,
                "sentids": sentids,
                "sentences": [
                    {"raw": caption, "tokens": re.findall("[a-z0-9]+", caption.lower()), "imgid": imgid, "sentid": sent}
                    for sent, caption in zip(sentids, image.captions, strict=True)
                ],
            }
        )
    return {"dataset": "demo", "images": entries}

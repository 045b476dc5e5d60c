"""Why a model says what it says: which regions and tags of a picture it has read that from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.inputs import PlacedImage
from vinvl.run.errors import printable

SHOWN = 10  # regions and tags when they are printed


@dataclass(frozen=True, eq=False)
class Attended:
    """What an answer, or the score of a text, was read from, by attention rollout (`attention_rollout`).

    All shares together with that of the text add up to 1. They say what the model has looked at, not whether it speaks
    for the answer or against it.

    Attributes:
        regions: (R,) float32, of each region of the picture; 0 for those beyond what the model is given.
        tags: the tags that the model was given, each with its share, in the order of their regions.
        text: of the question or the text, and of the tokens around it.
    """

    regions: np.ndarray
    tags: tuple[tuple[str, float], ...]
    text: float

    def __str__(self) -> str:
        best = np.argsort(-self.regions, kind="stable")[:SHOWN]
        tags = sorted(self.tags, key=lambda tag: -tag[1])[:SHOWN]
        lines = [
            f"text {self.text:.1%}, tags {sum(share for _, share in self.tags):.1%}, regions {self.regions.sum():.1%}",
            "regions  " + ", ".join(f"{index} {self.regions[index]:.1%}" for index in best),
            "tags     " + ", ".join(f"{name} {share:.1%}" for name, share in tags),
        ]
        return "\n".join(printable(line.rstrip()) for line in lines)


def attended_of(batch: Batch, shares: Tensor, places: list[PlacedImage]) -> list[Attended]:
    """What each row of a batch was read from.

    Args:
        shares: (B, L + R), of `attention_rollout`.
        places: the picture of each row.
    """
    length, found = batch.input_ids.shape[1], list[Attended]()
    exists = batch.attention_mask if batch.attention_mask.dim() == 2 else batch.attention_mask.any(dim=-1)  # (B, L + R)
    ends = exists[:, :length].sum(dim=1).tolist()  # of text and tags
    firsts = (exists[:, :length] & (batch.token_type_ids == 0)).sum(dim=1).tolist()  # the first token of the tags
    values = shares.cpu().numpy()
    for row, placed in enumerate(places):
        text, count = placed.region_text, int(batch.regions.counts[row])
        regions = np.zeros(len(text.store.at(placed.image)), dtype=np.float32)
        regions[:count] = values[row, length : length + count]
        tags, start, end = list[tuple[str, float]](), firsts[row], ends[row] - 1  # the last one is [SEP]
        for name, tokens in text.tags.named(placed.image, text.limits.max_regions) if text.limits.use_tags else ():
            if start < end:  # there was room for it, or for its beginning
                tags.append((name, float(values[row, start : min(start + tokens, end)].sum())))
            start += tokens
        rest = 1 - float(regions.sum()) - sum(share for _, share in tags)
        found.append(Attended(regions, tuple(tags), rest))
    return found

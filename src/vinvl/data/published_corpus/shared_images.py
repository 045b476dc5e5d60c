"""Whether two datasets of the published corpus use one image id, which one store of regions could not hold twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vinvl.data.line_chunks import Chunk
from vinvl.data.published_corpus.rows import dataset_of
from vinvl.errors import UserError


def refuse_shared_ids(chunks: Sequence[Chunk], datasets: Sequence[str]) -> None:
    """Looks through the first column of a corpus TSV; ids of the given datasets are to be used as they are.

    An image id is the last part of the image info. It is unique within a dataset: labels are looked up by it.

    Raises:
        UserError: two of the datasets have an image of the same id.
    """
    if len(datasets) < 2:
        return
    parts = [_ids_by_dataset(chunk, datasets) for chunk in chunks]
    ids, owners = [], []
    for number, dataset in enumerate(datasets):
        mine = _merged(part[dataset] for part in parts if dataset in part)
        ids.append(mine)
        owners.append(np.full(len(mine), number, dtype=np.int16))
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    repeats = np.flatnonzero(every[order[1:]] == every[order[:-1]])
    if len(repeats):
        owner = np.concatenate(owners)
        first, second = order[repeats[0] : repeats[0] + 2]
        one, other, image = datasets[owner[first]], datasets[owner[second]], every[first].decode("utf-8", "replace")
        raise UserError(
            f"{chunks[0].path}: {one} and {other} both have an image '{image}' ({len(repeats):,} such images in all), "
            f"which a store could not tell apart; pass --prefix-image-ids {other} to call the latter's "
            f"'{other}_{image}', as their store must, or --prefix-image-ids none if the same id is the same image."
        )


def _ids_by_dataset(chunk: Chunk, datasets: Sequence[str]) -> dict[str, np.ndarray]:
    found: dict[str, set[bytes]] = {dataset: set() for dataset in datasets}
    for line in chunk.content().split(b"\n"):
        ids = found.get(dataset_of(line))
        if ids is not None:
            ids.add(line.partition(b"\t")[0].strip().rpartition(b"_")[2])
    return {dataset: np.array(sorted(ids), dtype=np.bytes_) for dataset, ids in found.items() if ids}


def _merged(parts: Iterable[np.ndarray]) -> np.ndarray:
    arrays = list(parts)
    return np.unique(np.concatenate(arrays)) if arrays else np.zeros(0, dtype="S1")

"""What the scores of a retrieval run depend on, as one short text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinvl.data.retrieval_candidates import Fold, RetrievalCandidates

DIGEST_BYTES = 12
PROBED_IMAGES = 16  # whose features are looked at; all of them would be gigabytes


def scores_fingerprint(
    weights: Mapping[str, Tensor], candidates: RetrievalCandidates, folds: Sequence[Fold], settings: Mapping[str, Any]
) -> str:
    """24 hexadecimal digits that change with weights, images, captions, tags, limits and settings.

    Of the region features only `PROBED_IMAGES` images are read, evenly spread; of the others the number of regions.

    Args:
        weights: the model's, by name.
        candidates: images and captions.
        folds: which of them are scored with which.
        settings: anything else that the scores depend on, in plain types.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(_bytes_of(weights[name]))
    text, table = candidates.region_text, candidates.captions
    used = np.concatenate([fold.images for fold in folds])
    stored = candidates.images[used]
    captions = np.concatenate([fold.captions for fold in folds])
    arrays = [np.array([len(fold.images) for fold in folds]), text.store.num_regions[stored], captions]
    arrays += [table.tokens.lengths()[captions], *(table.tokens[int(caption)] for caption in captions)]
    arrays += [text.tag_ids(int(image)) for image in stored]
    probed = stored[np.linspace(0, len(stored) - 1, min(PROBED_IMAGES, len(stored))).astype(np.int64)]
    arrays += [text.region_rows(int(image)) for image in probed]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"|")
    digest.update("\n".join(str(image_id) for image_id in candidates.records.image_ids[used]).encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    content: bytes = plain.numpy().tobytes()
    return content

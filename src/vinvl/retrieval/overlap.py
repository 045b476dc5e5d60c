"""Cheap scores of images with captions from words alone: how much of a caption the image's tags name."""

import numpy as np

from vinvl.data.text import flat_ranges
from vinvl.retrieval.data import Fold, RetrievalCandidates
from vinvl.retrieval.two_stage import CheapScores


def terms_of(tokens: np.ndarray) -> np.ndarray:
    """The different tokens of a text (n,), and its different pairs of neighbours, as numbers (m,) int64, ascending."""
    tokens = tokens.astype(np.int64)
    return np.unique(np.concatenate([tokens, (tokens[:-1] + 1) << 32 | tokens[1:]]))


def tag_overlap(candidates: RetrievalCandidates, fold: Fold) -> CheapScores:
    """The cosine of a caption's terms and those of the image's tags, each weighted by how rare it is in the captions.

    The tags are those that the model sees. The weight is log(1 + captions / captions with the term).
    """
    terms = [terms_of(candidates.tokens[caption]) for caption in fold.captions.tolist()]
    counts = np.array([len(one) for one in terms])
    flat = np.concatenate(terms)
    order = np.argsort(flat, kind="stable")
    known, starts, holders = np.unique(flat[order], return_index=True, return_counts=True)
    captions = np.repeat(np.arange(len(terms)), counts)[order]  # holders of each known term, one term after the other
    weights = np.log1p(len(terms) / holders) ** 2
    lengths = np.sqrt(np.bincount(captions, np.repeat(weights, holders), len(terms)))  # of captions; > 0: none is empty
    unknown = np.log1p(len(terms)) ** 2  # as of one caption
    stored, text = candidates.images[fold.images], candidates.region_text

    def of_image(image: int) -> np.ndarray:
        own = terms_of(text.tag_ids(int(stored[image])))
        places = np.minimum(np.searchsorted(known, own), len(known) - 1)
        found = places[known[places] == own]
        length = np.sqrt(weights[found].sum() + unknown * (len(own) - len(found))) or 1.0
        held = captions[flat_ranges(starts[found], holders[found])]
        shared = np.bincount(held, np.repeat(weights[found], holders[found]), len(terms))
        cosine: np.ndarray = shared / (lengths * length)
        return cosine

    return lambda start, stop: np.stack([of_image(image) for image in range(start, stop)])

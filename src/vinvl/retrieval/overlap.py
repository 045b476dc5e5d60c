"""Cheap scores of images with captions from words alone: how much of a caption the image's tags name."""

import hashlib
from dataclasses import replace
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.inputs import RegionText
from vinvl.data.tags import StoreTags, TagChoice, TagTokens
from vinvl.data.text import RaggedTokens, flat_ranges
from vinvl.retrieval.data import Fold, RetrievalCandidates
from vinvl.retrieval.two_stage import Cheap, CheapScores


def cheap_overlap(candidates: RetrievalCandidates, tokenizer: PreTrainedTokenizerBase, choice: TagChoice) -> Cheap:
    """The `tag_overlap` of all candidates: of their tags as `with_attributes` has them."""
    text = with_attributes(candidates.region_text, tokenizer, choice)
    rows = [text.tag_ids(image) for image in candidates.images.tolist()]
    tags = RaggedTokens.of_lengths(np.concatenate(rows), np.array(list(map(len, rows))))
    digest = hashlib.blake2b(tags.values.tobytes() + tags.offsets.tobytes(), digest_size=8).hexdigest()
    return Cheap(f"tag overlap {digest}", partial(tag_overlap, tags, candidates.tokens))


def with_attributes(text: RegionText, tokenizer: PreTrainedTokenizerBase, choice: TagChoice) -> RegionText:
    """The same with the surest attribute of each region before its class, where the tags are classes of a store.

    Captions name attributes, whether the model sees them as tags or not; a store without attributes gives none.
    """
    if not isinstance(text.tags, StoreTags):
        return text
    labels = text.tags.store.label_map
    tokens = TagTokens.of_labels(labels, tokenizer, replace(choice, form="attribute+class"))
    return replace(text, tags=replace(text.tags, tag_tokens=tokens))


def terms_of(tokens: np.ndarray) -> np.ndarray:
    """The different tokens of a text (n,), and its different pairs of neighbours, as numbers (m,) int64, ascending."""
    tokens = tokens.astype(np.int64)
    return np.unique(np.concatenate([tokens, (tokens[:-1] + 1) << 32 | tokens[1:]]))


def tag_overlap(tags: RaggedTokens, tokens: RaggedTokens, fold: Fold) -> CheapScores:
    """The cosine of a caption's terms and those of the image's tags, each weighted by how rare it is in the captions.

    The weight is log(1 + captions / captions with the term).

    Args:
        tags: token ids of the tags of all images.
        tokens: of all captions.
    """
    terms = [terms_of(tokens[caption]) for caption in fold.captions.tolist()]
    counts = np.array([len(one) for one in terms])
    flat = np.concatenate(terms)
    order = np.argsort(flat, kind="stable")
    known, starts, holders = np.unique(flat[order], return_index=True, return_counts=True)
    captions = np.repeat(np.arange(len(terms)), counts)[order]  # holders of each known term, one term after the other
    weights = np.log1p(len(terms) / holders) ** 2
    lengths = np.sqrt(np.bincount(captions, np.repeat(weights, holders), len(terms)))  # of captions; > 0: none is empty
    unknown = np.log1p(len(terms)) ** 2  # as of one caption

    def of_image(image: int) -> np.ndarray:
        own = terms_of(tags[int(fold.images[image])])
        places = np.minimum(np.searchsorted(known, own), len(known) - 1)
        found = places[known[places] == own]
        length = np.sqrt(weights[found].sum() + unknown * (len(own) - len(found))) or 1.0
        held = captions[flat_ranges(starts[found], holders[found])]
        shared = np.bincount(held, np.repeat(weights[found], holders[found]), len(terms))
        cosine: np.ndarray = shared / (lengths * length)
        return cosine

    return lambda start, stop: np.stack([of_image(image) for image in range(start, stop)])

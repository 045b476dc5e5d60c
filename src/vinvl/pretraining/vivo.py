"""VIVO pre-training (Hu et al. 2021): an image's tags, some of them hidden, and its regions; no caption at all.

What the encoder sees is `tags [SEP]` and the regions, as the captioning model sees them behind its caption: in segment
1, without [CLS], at the positions from `data.tag_position` on. Hidden tags are guessed as a set
(`vinvl.models.tag_sets`).

With `data.tags_as_words` (not published) hidden tags stand as a caption's hidden words will: in segment 0, at random
places among the first `max_tokens` positions, and the other tags are left out. A small model, trained briefly,
otherwise learns what is not among the shown tags, at tags' places alone, and takes nothing of it to captions.

A tag of several pieces is as many tokens: each is hidden by itself, as the paper hides 15 % of the tokens, and each is
matched by itself. Of an image's tokens the first `max_tokens - 1` are read, and at least one of them is hidden, so
that every image has a loss; an image's only tag is guessed from its regions alone.
"""

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import Batch, gather_regions
from vinvl.data.text import encode_texts, flat_ranges
from vinvl.models.packing import PackedLayout
from vinvl.pretraining.corpus import Corpus, RowKind
from vinvl.pretraining.triplets import CorpusRows, mask_tokens
from vinvl.run.errors import UserError
from vinvl.run.values import shown


def tag_sets(
    rows: np.ndarray,
    corpus: CorpusRows,
    generator: np.random.Generator,
    *,
    mask_probability: float,
    position: int,
    as_words: bool,
    words: int,
    unk_token_id: int | None,
) -> Batch:
    """The batch of B rows (B,) of a corpus: their tags, given ones or classes of the store, without their texts.

    Args:
        mask_probability: the share of an image's tokens that is hidden, rounded, and at least one.
        position: of the first tag.
        as_words: hidden tags stand as a caption's hidden words do, see the module.
        words: hidden tokens become random ones from 0 … words - 1.
        unk_token_id: what is never hidden, because guessing it teaches nothing.
    """
    text = corpus.region_text
    tags = corpus.texts(rows, np.ones_like(rows))
    lengths = np.minimum(tags.lengths(), text.limits.max_tokens - 1)
    place = np.arange(int(lengths.max()) + 1)
    is_tag, is_token = place < lengths[:, None], place <= lengths[:, None]
    true_ids = np.full(is_tag.shape, text.special.pad_token_id, dtype=np.int64)
    true_ids[is_tag] = tags.values[flat_ranges(tags.offsets[:-1], lengths)]
    true_ids[np.arange(len(rows)), lengths] = text.special.sep_token_id
    hidden = chosen(is_tag & (true_ids != unk_token_id), generator.random(is_tag.shape), mask_probability)
    starts = np.full(len(rows), position)
    if as_words:
        stays = hidden | (place == lengths[:, None])
        order = np.argsort(~stays, axis=1, kind="stable")[:, : int(stays.sum(axis=1).max())]
        true_ids, hidden, is_token = (np.take_along_axis(one, order, axis=1) for one in (true_ids, hidden, stays))
        starts += generator.integers(0, text.limits.max_tokens + 1 - is_token.sum(axis=1))
    input_ids, masked = mask_tokens(
        true_ids,
        hidden,
        generator.random(hidden.shape),
        generator.integers(0, words, hidden.shape),
        text.special.mask_token_id,
        mask_probability=1.0,
    )
    regions = gather_regions([text.image_regions(int(image)) for image in corpus.image_of(rows)])
    attention_mask = np.concatenate([is_token, np.arange(regions.slots) < regions.stored[:, 1:]], axis=1)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_type_ids=torch.from_numpy((is_token & (not as_words)).astype(np.int64)),
        attention_mask=torch.from_numpy(attention_mask),
        regions=regions,
        labels=torch.from_numpy(true_ids[masked]),
        records=tuple({"index": row} for row in rows.tolist()),
        position_ids=torch.from_numpy(np.where(is_token, starts[:, None] + np.arange(is_token.shape[1]), 0)),
        masked_positions=torch.from_numpy(masked),
        layout=PackedLayout.of_mask(attention_mask, input_ids.shape[1]),
    )


def chosen(maskable: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """(B, L) bool: of each row's maskable tokens the share that comes first in `order`, rounded, and at least one."""
    count = np.maximum(np.rint(share * maskable.sum(axis=1)), 1)
    rank = np.where(maskable, order, np.inf).argsort(axis=1).argsort(axis=1)
    return np.asarray(maskable & (rank < count[:, None]))


def tagged_rows(rows: CorpusRows) -> CorpusRows:
    """The rows that have tags; a warning counts the others.

    Raises:
        UserError: tags are withheld, or no row has any.
    """
    if not rows.region_text.limits.use_tags:
        raise UserError("data.variant=vivo learns tags, which data.use_tags=false withholds: leave that out.")
    everything = np.arange(len(rows))
    tagged = rows.has_second(everything) & (rows.mixture.column("kinds") != RowKind.ANSWER)
    if tagged.all():
        return rows
    first = rows.mixture.describe(int(tagged.argmin()))
    if not tagged.any():
        raise UserError(
            f"data.variant=vivo learns tags, and no row has any ({first} is the first): give a corpus of tags."
        )
    count = int((~tagged).sum())
    rank_zero_warn(
        f"data.variant=vivo: {count:,} of {len(rows):,} rows have no tags and are left out, such as {first}; "
        "give them tags in the corpus to have them."
    )
    return CorpusRows(rows.mixture.select(tagged), rows.images[tagged], rows.region_text)


def check_tag_words(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warns of given tags with pieces that the tokenizer does not know, which are never hidden.

    Raises:
        UserError: it knows none of the tags.
    """
    names = list(corpus.facts.tags)
    encoded = encode_texts(tokenizer, names)
    unknown = np.repeat(np.arange(len(names)), encoded.lengths())[encoded.values == tokenizer.unk_token_id]
    strange = np.union1d(unknown, np.flatnonzero(encoded.lengths() == 0))
    if not len(strange):
        return
    told = f"{corpus.source}: the tokenizer does not know {len(strange):,} of {len(names):,} tags, such as "
    told += shown(names[strange[0]])
    if len(strange) == len(names):
        raise UserError(f"{told}; give tags in its language and letters.")
    rank_zero_warn(f"{told}; what it does not know of them is never hidden; give them other words to have it.")

"""From a batch of images to what captions are decoded from, and from what was decoded to texts."""

from collections.abc import Callable, Iterator

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import Batch
from vinvl.data.caption_masking import CaptionLimits
from vinvl.models.generation import CaptionContext, DecodingOptions, GeneratedCaptions


def tag_shift(decoding: DecodingOptions, max_caption_tokens: int) -> int:
    """How far the tags' positions at decoding are behind those in training.

    There they stand after the longest caption there may be; the data put them after the longest that is read.
    """
    return max(0, decoding.max_length - max_caption_tokens)


def positions_needed(limits: CaptionLimits, decoding: DecodingOptions) -> int:
    """Positions of caption and tags, as training reads them or, if longer, as captions are written."""
    tags = max(limits.max_tokens - limits.max_caption_tokens, 0)
    return max(limits.max_caption_tokens, decoding.max_length) + tags


def context_of(batch: Batch, shift: int) -> CaptionContext:
    """The tags and regions of a batch of images, the tags' positions shifted (`tag_shift`)."""
    assert batch.position_ids is not None
    text = batch.input_ids.shape[1]
    return CaptionContext(
        tag_ids=batch.input_ids,
        tag_position_ids=batch.position_ids + shift,
        tag_token_type_ids=batch.token_type_ids,
        tag_mask=batch.attention_mask[:, :text],
        region_features=batch.region_features,
        region_mask=batch.attention_mask[:, text:],
    )


def caption_texts(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Captions (C, length) as texts."""
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def n_best(
    written: GeneratedCaptions, texts: Callable[[Tensor], list[str]]
) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The captions and scores of each image, best first; an n-best list may not have been filled."""
    for ids, lengths, scores in zip(written.ids, written.lengths, written.log_probs, strict=True):
        count = max(int((lengths > 0).sum()), 1)
        yield tuple(texts(ids[:count])), tuple(scores[:count].tolist())

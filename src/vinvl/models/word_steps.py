"""The logits of the next word of captions that share a context, step by step, on a GPU as CUDA graphs.

Shapes: B images, N captions per image, P words so far, T tag tokens, R regions, C = T + R, H hidden size, V words.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import CaptionContext, DecodingOptions, adjusted_logits
from vinvl.models.encoder import as_bias

# Keys and values of a layer's context, (B, heads, C, H / heads).
KeysValues = tuple[Tensor, Tensor]


def encode_context(model: VinVLForCaptioning, context: CaptionContext) -> tuple[KeysValues, ...]:
    """Encode tags and regions, once per image: they attend to no caption, so no word will ever change them.

    Raises:
        UserError: region rows of another width, or training with gradient checkpointing, which keeps no memory.
    """
    mask, config = context.mask, model.config
    if mask.shape[1] == 0:
        first: Any = model.bert.encoder.layer[0]
        # Projected, so that the dtype is that of keys, also under autocast.
        none = model.bert.embeddings.word_embeddings.weight.new_zeros(len(mask), 0, config.hidden_size)
        nothing = first.attention.self.key(none).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
        return ((nothing, nothing),) * config.num_hidden_layers
    cache = DynamicCache()
    model.bert(
        context.tag_ids,
        token_type_ids=context.tag_token_type_ids,
        # The three-dimensional form is the one that is safe for an image with neither tags nor regions.
        attention_mask=mask[:, None, :].expand(-1, mask.shape[1], -1),
        region_features=context.region_features,
        position_ids=context.tag_position_ids,
        past_key_values=cache,
    )
    layers: list[Any] = list(cache.layers)
    return tuple((layer.keys, layer.values) for layer in layers)


class Step:
    """One step for N captions of B images: the same operations on the same tensors whichever word is the next.

    The last words and a [MASK] after each are fed. Slot p of a caption's memory holds keys and values of its word p;
    those of the [MASK] are overwritten by the next word's. Nothing is moved where captions are chosen: `sources` tell
    in whose slots a caption's words are.

    Attributes:
        words: (B, n) int64, the last ones; n ≤ N, as chosen captions may have one and the same beginning.
        position: () int64, where they stand.
        context, is_real: of each layer, and (B, C) bool: which of it exists.
        memory: of each layer (B, N, heads, slots, 2 · H / heads), keys before values. Under autograd nothing is written
            in place: there it grows by a slot with every step, and begins as None.
        sources: (B, n, slots) int64; None: all words are in the caption's own slots.
    """

    def __init__(
        self, model: VinVLForCaptioning, mask_token_id: int, context: tuple[KeysValues, ...], is_real: Tensor,
        captions: int, slots: int, moves: bool = False,
    ) -> None:  # fmt: skip
        """`captions`: N; `moves`: they will be chosen among."""
        self._model, self._mask_token_id = model, mask_token_id
        self.context, self.is_real = context, is_real
        keys = context[0][0]
        images, heads, _, width = keys.shape
        self.words = torch.zeros(images, captions, dtype=torch.long, device=keys.device)
        self.position = torch.zeros((), dtype=torch.long, device=keys.device)
        self.sources = _own_slots(self.words, slots).clone() if moves else None
        size = (images, captions, heads, slots, 2 * width)
        self.memory = [None if torch.is_grad_enabled() else keys.new_zeros(size) for _ in context]

    def take(self, context: tuple[KeysValues, ...], is_real: Tensor) -> None:
        """Begin with another context, of at most the size of this one.

        Sources stay: captions begin alike, in whose slots ever, and choosing sets those of all that follows.
        """
        for kept, given in zip(self.context, context, strict=True):
            for ours, theirs in zip(kept, given, strict=True):
                ours[: theirs.shape[0], :, : theirs.shape[2]] = theirs
        self.is_real.zero_()
        self.is_real[: is_real.shape[0], : is_real.shape[1]] = is_real

    def logits(self, upto: int) -> Tensor:
        """(B, n, V) float32 of the next words, by the first `upto` slots, those after the [MASK]'s being masked."""
        words, device = self.words, self.words.device
        new = torch.stack([words, torch.full_like(words, self._mask_token_id)], dim=-1).flatten(0, 1)
        places = self.position + torch.arange(2, device=device)
        embedded = self._model.bert.embeddings(input_ids=new, position_ids=places[None].expand(len(new), -1))
        hidden = embedded.unflatten(0, words.shape)  # (B, n, 2, H)
        seen = torch.arange(upto, device=device) <= places[:, None]  # the word does not see the mask after it
        of_context = as_bias(self.is_real, hidden.dtype)[:, None, None, None, :].expand(-1, -1, -1, 2, -1)
        of_caption = as_bias(seen, hidden.dtype).expand(len(hidden), 1, 1, -1, -1)
        bias = torch.cat([of_context, of_caption], dim=-1)  # (B, 1, 1, 2, C + upto)
        rows = self._rows(upto)
        layer: Any  # a BertLayer
        for index, layer in enumerate(self._model.bert.encoder.layer):
            attention = layer.attention.self
            query, keys_values = _projected(attention, hidden)
            of_words = self._with(index, keys_values, places, rows, upto)
            attended = _attend(attention, query, self.context[index], of_words, bias)
            hidden = layer.feed_forward_chunk(layer.attention.output(attended, hidden))
        logits: Tensor = self._model.cls.predictions(hidden[:, :, 1]).float()
        return logits

    def _rows(self, upto: int) -> Tensor | None:
        """(B · n · heads · upto,) int64: which rows of a layer's memory the captions' words are."""
        memory = self.memory[0]
        if self.sources is None or memory is None:
            return None
        images, captions, heads, slots = memory.shape[:4]
        first, every = (torch.arange(count, device=memory.device) for count in (images, heads))
        rows = (first[:, None, None] * captions + self.sources[..., :upto])[:, :, None] * heads + every[:, None]
        return (rows * slots + torch.arange(upto, device=memory.device)).flatten()

    def _with(self, layer: int, new: Tensor, places: Tensor, rows: Tensor | None, upto: int) -> Tensor:
        """Keys and values of all words (B, n, heads, upto, 2 · H / heads), with the `new` ones (B, n, heads, 2, …)."""
        memory = self.memory[layer]
        if torch.is_grad_enabled():
            words = new if memory is None else torch.cat([memory, new], dim=3)
            self.memory[layer] = words[..., :-1, :]
            return words
        assert memory is not None
        memory[:, : new.shape[1]].index_copy_(3, places, new)
        if rows is None:
            return memory[:, : new.shape[1], :, :upto]
        return memory.view(-1, memory.shape[-1]).index_select(0, rows).view(*new.shape[:3], upto, -1)


class StepGraphs:
    """Steps on a GPU as CUDA graphs, captured once and then replayed: the host starts one thing a step, not hundreds.

    A graph is for so many captions per image, and for as many images and as long contexts as it was made for, or
    fewer; lengths are rounded up to multiples of `bucket`. On other devices the same steps run plainly.

    Args:
        most: graphs that are kept. Each has its own memory: about 0.5 GB for 64 images, 5 beams, base size, bfloat16.
    """

    def __init__(self, bucket: int = 32, most: int = 4) -> None:
        self._bucket, self._most = bucket, most
        self._kept: dict[Any, tuple[Step, Callable[[], Tensor]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # graphs are of this process, and of this model
        return StepGraphs, (self._bucket, self._most)

    def step_for(
        self, model: VinVLForCaptioning, mask_token_id: int, context: tuple[KeysValues, ...], captions: int, slots: int,
        moves: bool,
    ) -> tuple[Step, Callable[[], Tensor]]:  # fmt: skip
        """A step that has room for a context and more, to be filled, and what computes its logits by all slots."""
        keys = context[0][0]
        images, heads, length, width = keys.shape
        length = -(-length // self._bucket) * self._bucket
        autocast = (torch.is_autocast_enabled(keys.device.type), torch.get_autocast_dtype(keys.device.type))
        # A graph reads the weights where they were when it was captured.
        weights = tuple(weight.data_ptr() for weight in model.parameters())
        kind = (captions, slots, length, moves, mask_token_id, keys.device, keys.dtype, autocast, weights)
        images = min((size for size, other in self._kept if other == kind and size >= images), default=images)
        found = self._kept.pop((images, kind), None)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # else only inference mode could write into its tensors
                room = [keys.new_zeros(images, heads, length, width) for _ in range(2 * len(context))]
                is_real = torch.zeros(images, length, dtype=torch.bool, device=keys.device)
                places = tuple(zip(room[::2], room[1::2], strict=True))
                step = Step(model, mask_token_id, places, is_real, captions, slots, moves)
            found = step, self.capture(lambda: step.logits(slots), keys.device)
        self._kept[images, kind] = found  # at the end: the first is what has not been used for longest
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return found

    def capture(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        """What does as `run` does, with the same tensors."""
        if device.type != "cuda":
            return run
        stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # Without its cache, because what autocast keeps is gone when the graph is replayed.
        with torch.cuda.device(device), torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            with torch.cuda.stream(stream):
                run()  # libraries prepare themselves in their first call
            torch.cuda.current_stream(device).wait_stream(stream)
            # What other threads do meanwhile, such as pinning batches, is let pass.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                logits = run()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


class WordStepper:
    """Captions of B images under construction, n of each image; n may change from step to step.

    Tags and regions are encoded once, and never copied for captions. Each step feeds the last word and a [MASK], whose
    logits are those of the next word. With `graphs`, unless there is training or autograd, steps have fixed shapes.
    """

    def __init__(
        self, model: VinVLForCaptioning, context: CaptionContext, options: DecodingOptions, special: SpecialTokens,
        captions: int = 1, graphs: StepGraphs | None = None,
    ) -> None:  # fmt: skip
        """`captions`: the most of an image that there will be."""
        self._options, self._end, slots = options, special.sep_token_id, options.max_length
        # Where the host would wait for an answer it asks no question that it can do without.
        self._drops = graphs is None and context.device.type == "cpu"
        self._asked: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._run: Callable[[], Tensor] | None = None
        encoded, mask = encode_context(model, context), special.mask_token_id
        if graphs is None or torch.is_grad_enabled() or model.training:
            self._step = Step(model, mask, encoded, context.mask, captions, slots)
        else:
            self._step, self._run = graphs.step_for(model, mask, encoded, captions, slots, options.num_beams > 1)
            self._step.take(encoded, context.mask)

    def next_logits(self, captions: Tensor) -> Tensor:
        """Logits (B, n, V) float32 of the word after captions (B, n, P), which are one word longer than before."""
        words, length, step = captions[..., -1], captions.shape[-1], self._step
        step.position.fill_(length - 1)
        if self._run is None:
            step.words = words
            logits = step.logits(length + 1)
        else:
            step.words[: len(words)] = words  # also one for all
            logits = self._run()[: len(words), : words.shape[1]]
        return adjusted_logits(logits, captions, self._options, self._end)

    def choose(self, parents: Tensor) -> None:
        """Continue with captions `parents` (B, n) int64, numbers within each image; they may repeat or be left out."""
        step, slots = self._step, self._options.max_length
        before = _own_slots(step.words, slots) if step.sources is None else step.sources[: len(parents)]
        chosen = before.gather(1, parents[..., None].expand(-1, -1, slots))
        is_written = torch.arange(slots, device=parents.device) <= step.position
        chosen = torch.where(is_written, chosen, _own_slots(parents, slots))
        if self._run is None:
            step.sources = chosen
        else:
            assert step.sources is not None
            step.sources[: len(parents)] = chosen

    def remaining(self, is_open: Tensor) -> Tensor:
        """The numbers (b,) int64 of the images to go on with, of those that `is_open` (B,) bool says; none at the end.

        On a GPU the host would have to wait: there all go on, and that none is open is seen one step late.
        """
        if self._drops:
            return is_open.nonzero().squeeze(1)
        before, told = self._asked, is_open.any().to("cpu", non_blocking=True)
        self._asked = told, torch.cuda.current_stream(is_open.device).record_event() if is_open.is_cuda else None
        if before is None:
            return torch.arange(len(is_open), device=is_open.device)
        if before[1] is not None:
            before[1].synchronize()
        return torch.arange(len(is_open) if before[0] else 0, device=is_open.device)

    def keep_images(self, images: Tensor) -> None:
        """Go on with the images of these numbers, (b,) int64, only."""
        step = self._step
        step.context = tuple((keys[images], values[images]) for keys, values in step.context)
        step.is_real = step.is_real[images]
        step.memory = [None if memory is None else memory[images] for memory in step.memory]
        step.words, step.sources = step.words[images], None if step.sources is None else step.sources[images]


def _own_slots(captions: Tensor, slots: int) -> Tensor:
    """(B, N, slots) int64: the number of each of so many captions (B, N)."""
    return torch.arange(captions.shape[1], device=captions.device)[:, None].expand(*captions.shape, slots)


def _projected(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Of states (B, N, Q, H) the queries (B, N, heads, Q, H / heads), and keys and values (…, 2 · H / heads)."""
    query, key, value = (
        part(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(2, 3)
        for part in (attention.query, attention.key, attention.value)
    )
    return query / math.sqrt(attention.attention_head_size), torch.cat([key, value], dim=-1)


def _attend(attention: Any, query: Tensor, context: KeysValues, of_words: Tensor, bias: Tensor) -> Tensor:
    """One layer's attention (B, N, Q, H), before its output projection: one softmax over context and own caption.

    Scores over the context come from one product per image, with the N·Q queries of its captions as rows; those over
    the captions, (B, N, heads, P, 2 · H / heads), from one product per caption. Only the scores are joined.
    """
    images, captions, heads, new, size = query.shape
    (context_keys, context_values), (keys, values) = context, of_words.chunk(2, dim=-1)
    by_image = query.transpose(1, 2).reshape(images, heads, captions * new, size)
    on_context = (by_image @ context_keys.transpose(-1, -2)).view(images, heads, captions, new, -1).transpose(1, 2)
    on_caption = query @ keys.transpose(-1, -2)  # (B, N, heads, Q, P)
    scores = torch.cat([on_context, on_caption], dim=-1) + bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    weights = F.dropout(weights, attention.dropout.p, attention.training)

    length = context_keys.shape[2]
    for_context = weights[..., :length].transpose(1, 2).reshape(images, heads, captions * new, length)
    from_context = (for_context @ context_values).view(images, heads, captions, new, size).transpose(1, 2)
    attended = from_context + weights[..., length:] @ values
    return attended.transpose(2, 3).flatten(3)

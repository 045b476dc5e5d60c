"""Greedy decoding and sampling: captions that grow one word at a time, each by itself."""

import torch
from torch import Tensor

from vinvl.models.generation.distribution import adjusted_logits, sampling_logits
from vinvl.models.generation.options import DecodingOptions, SpecialTokens
from vinvl.models.generation.result import GeneratedCaptions, finish
from vinvl.models.generation.stepping import WordStepper


def decode_stepwise(
    stepper: WordStepper,
    images: int,
    options: DecodingOptions,
    special: SpecialTokens,
    device: torch.device,
    generator: torch.Generator | None,
) -> GeneratedCaptions:
    """`options.num_return_sequences` captions of each image, by the best word or, with `options.sample`, a drawn one.

    Under autograd, gradients flow from `log_probs` to the model. Images whose captions have all ended are dropped
    from the batch. The draws of a batch come from one generator, so they depend on what else is in the batch.
    """
    captions, size = options.num_return_sequences, options.max_length
    ids = torch.full((images, captions, size), special.pad, device=device)
    ids[..., 0] = special.begin
    sums = torch.zeros(images, captions, device=device)
    is_open = torch.ones(images, captions, dtype=torch.bool, device=device)
    lengths = torch.ones(images, captions, dtype=torch.long, device=device)
    active = torch.arange(images, device=device)  # images with an open caption
    for length in range(1, size):
        earlier = ids[active, :, :length]
        logits = adjusted_logits(stepper.next_logits(earlier[..., -1]), earlier, options, special.end)
        if options.sample:
            logits = sampling_logits(logits, options)
        words = _choose(logits.detach(), options.sample, generator)
        chosen = logits.log_softmax(dim=-1).gather(-1, words[..., None]).squeeze(-1)

        was_open = is_open[active]
        sums = sums.index_add(0, active, torch.where(was_open, chosen, 0.0))
        words = torch.where(was_open, words, special.pad)
        ids[active, :, length] = words
        lengths[active] += was_open
        is_open[active] = was_open & (words != special.end)

        still = is_open[active].any(dim=1).nonzero().squeeze(1)
        if len(still) == 0 or length + 1 == size:
            break
        if len(still) < len(active):
            stepper.keep_images(still)
            active = active[still]
    return finish(ids, lengths, sums / (lengths - 1), special)


def _choose(logits: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
    if not sample:
        return logits.argmax(dim=-1)
    drawn = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), num_samples=1, generator=generator)
    return drawn.view(logits.shape[:-1])

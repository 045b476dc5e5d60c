"""Beam search."""

import torch
from torch import Tensor

from vinvl.models.generation.distribution import adjusted_logits
from vinvl.models.generation.hypotheses import NBestLists
from vinvl.models.generation.options import DecodingOptions, SpecialTokens
from vinvl.models.generation.result import GeneratedCaptions
from vinvl.models.generation.stepping import WordStepper

CANDIDATES_PER_BEAM = 2  # each beam ends at most once per step, so this many leave every beam open


@torch.no_grad()
def beam_search(
    stepper: WordStepper, images: int, options: DecodingOptions, special: SpecialTokens, device: torch.device
) -> GeneratedCaptions:
    """The published beam search: 2 · `num_beams` candidates per step, of which those that end enter an n-best list.

    A candidate that ends counts only if it ranks before the `num_beams`-th open one. At the greatest length every
    candidate ends. Images that are done are dropped from the batch.
    """
    beams, size = options.num_beams, options.max_length
    lists = NBestLists(images, options.num_return_sequences, size, options.length_penalty, device, special.pad)
    active = torch.arange(images, device=device)
    ids = torch.full((images, 1, size), special.pad, device=device)  # beams are alike at first: one stands for all
    ids[..., 0] = special.begin
    sums = torch.zeros(images, 1, device=device)
    for length in range(1, size):
        earlier = ids[..., :length]
        logits = adjusted_logits(stepper.next_logits(earlier[..., -1]), earlier, options, special.end)
        totals = (sums[..., None] + logits.log_softmax(dim=-1)).flatten(1)
        best, places = totals.topk(CANDIDATES_PER_BEAM * beams, dim=1)
        parents, words = places // logits.shape[-1], places % logits.shape[-1]
        candidates = pick_captions(ids, parents)
        candidates[..., length] = words

        is_last = length + 1 == size
        is_ended = torch.ones_like(words, dtype=torch.bool) if is_last else words == special.end
        open_before = (~is_ended).cumsum(dim=1) - (~is_ended).long()
        is_done = lists.is_done(active, best[:, 0])
        lists.add(active, candidates, best, is_ended & (open_before < beams) & ~is_done[:, None], length)
        still = (~is_done).nonzero().squeeze(1)
        if is_last or len(still) == 0:
            break

        chosen = is_ended.long().argsort(dim=1, stable=True)[:, :beams]  # the best open candidates
        ids, sums = pick_captions(candidates, chosen), best.gather(1, chosen)
        stepper.choose(parents.gather(1, chosen))
        if len(still) < len(active):
            stepper.keep_images(still)
            active, ids, sums = active[still], ids[still], sums[still]
    return lists.result(special)


def pick_captions(ids: Tensor, numbers: Tensor) -> Tensor:
    """Captions `numbers` (B, n) of each image, out of ids (B, N, L): (B, n, L)."""
    return ids.gather(1, numbers[..., None].expand(-1, -1, ids.shape[2]))

"""Only attention, over packed sequences of COCO-like lengths: the ways that torch has for sequences of unlike lengths.

    python benchmarks/attention_ways.py [--sequences 16] [--rounds 20] [--device cuda] [--flex]

Forward and backward of one layer's attention at base size, in float32 on a CPU and in bfloat16 on a GPU: SDPA over
groups of like length (what `vinvl.models.packing` does), a call for each sequence, SDPA with a mask over the batch
padded to 128 + 50, SDPA of nested tensors, and on GPUs FlashAttention for any lengths, our kernel for short sequences,
both also with dropout, and, with --flex, compiled FlexAttention (on CPUs it has no gradients).
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from made_data import timed
from torch import Tensor
from torch.nn import functional
from vqa_step import coco_like_examples

from vinvl.models.packing import PackedLayout, PackedSequences, in_slots

HEADS, SIZE, SLOTS = 12, 64, 178
Way = Callable[[Tensor, Tensor, Tensor, PackedLayout], Tensor]


def nested(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
    """(T, heads, d) by SDPA of jagged nested tensors."""
    offsets = layout.offsets.long()
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(one, offsets, max_seqlen=layout.longest).transpose(1, 2)
        for one in (query, key, value)
    )
    attended: Tensor = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).values()
    return attended


def one_by_one(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """(T, heads, d) by a call of SDPA for each sequence."""
    lengths = layout.offsets.diff().tolist()
    parts = zip(*(one.transpose(0, 1)[None].split(lengths, dim=2) for one in (query, key, value)), strict=True)
    attended = [functional.scaled_dot_product_attention(*part)[0].transpose(0, 1) for part in parts]
    return torch.cat(attended)


def padded(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
    """(T, heads, d) by SDPA over the padded batch."""
    sequences, places = len(layout.offsets) - 1, layout.places
    mask = torch.zeros(sequences * SLOTS, dtype=torch.bool, device=query.device).index_fill(0, places, True)
    q, k, v = (
        in_slots(one.flatten(1), layout.places, sequences, SLOTS).unflatten(2, (HEADS, SIZE)).transpose(1, 2)
        for one in (query, key, value)
    )
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.view(sequences, 1, 1, SLOTS))
    return attended.transpose(1, 2).flatten(0, 1)[places]


def flex(layout: PackedLayout, device: torch.device) -> Way:
    """Compiled FlexAttention over the packed sequences as one, each of which sees only itself."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    owner = torch.repeat_interleave(layout.offsets.diff())
    total = len(owner)
    mask = create_block_mask(lambda b, h, q, k: owner[q] == owner[k], None, None, total, total, device=device.type)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout) -> Tensor:
        q, k, v = (one.transpose(0, 1)[None] for one in (query, key, value))
        attended: Any = compiled(q, k, v, block_mask=mask)
        of_one: Tensor = attended[0].transpose(0, 1)
        return of_one

    return attend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--flex", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    examples = coco_like_examples(8 * options.sequences, np.random.default_rng(0))
    skip = 3 * options.sequences  # a batch of like lengths, from the middle
    lengths = np.sort([len(one.input_ids) + len(one.regions) for one in examples])[-options.sequences - skip : -skip]
    exists = np.arange(SLOTS) < np.minimum(lengths, SLOTS)[:, None]
    layout = PackedLayout.of_mask(exists, SLOTS).with_tensors(lambda tensor: tensor.to(device))
    whole = torch.ones(1, 1)  # two dimensions: everyone in a sequence sees everyone
    # The model has queries, keys and values in one tensor already; here `attend` is given what is stacked on the way.
    given = torch.randn(3, len(layout.places), HEADS, SIZE, device=device, dtype=dtype)

    def in_groups(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
        # Masks, of the groups that there are anyway, keep the kernel for any lengths out.
        masks = tuple(one.real[:, None, None] for one in layout.groups)
        return PackedSequences(layout, masks).attend(torch.stack([query, key, value], dim=1), dropout)

    def by_flash(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
        sequences = replace(PackedSequences.of(layout, whole), short=False)
        return sequences.attend(torch.stack([query, key, value], dim=1), dropout)

    def by_ours(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, dropout: float = 0.0) -> Tensor:
        return PackedSequences.of(layout, whole).attend(torch.stack([query, key, value], dim=1), dropout)

    ways: dict[str, Way] = {
        "SDPA over groups of like length": in_groups,
        "SDPA of each sequence": one_by_one,
        "SDPA, padded to 128 + 50": padded,
        "SDPA of nested tensors": nested,
    }
    if device.type == "cuda":
        ways["FlashAttention for any lengths"] = by_flash
        ways["our kernel for short sequences"] = by_ours
        ways["FlashAttention, dropout of 0.1"] = lambda q, k, v, layout: by_flash(q, k, v, layout, 0.1)
        ways["our kernel, dropout of 0.1"] = lambda q, k, v, layout: by_ours(q, k, v, layout, 0.1)
        ways["groups, dropout of 0.1"] = lambda q, k, v, layout: in_groups(q, k, v, layout, 0.1)
        ways["nested tensors, dropout of 0.1"] = lambda q, k, v, layout: nested(q, k, v, layout, 0.1)
    if options.flex:
        ways["FlexAttention, compiled"] = flex(layout, device)
    expected = in_groups(given[0], given[1], given[2], layout)
    groups = f"{len(layout.groups)} groups"
    print(f"{len(layout.places)} positions in {options.sequences} sequences, {groups}, {dtype}, {device}")
    for name, way in ways.items():
        try:
            seconds, error = measured(lambda inputs, way=way: way(*inputs, layout), given, expected, options.rounds)  # type: ignore[misc]
        except (RuntimeError, NotImplementedError) as refusal:  # not every torch has every way on every device
            print(f"{name:34}not here: {type(refusal).__name__} {str(refusal).splitlines()[0]}")
            continue
        print(f"{name:34}{1e3 * seconds:9.2f} ms   largest difference {error:.0e}")


def measured(attend: Callable[[Tensor], Tensor], given: Tensor, expected: Tensor, rounds: int) -> tuple[float, float]:
    """Median seconds of forward and backward, and how far the result is from what is expected."""
    inputs = given.clone().requires_grad_()
    attended: list[Tensor] = []

    def both() -> None:
        attended[:] = [attend(inputs)]
        attended[0].sum().backward()

    seconds = [timed(both, inputs.device) for _ in range(rounds)]
    return float(np.median(seconds)), float((attended[0] - expected).detach().abs().max())


if __name__ == "__main__":
    main()

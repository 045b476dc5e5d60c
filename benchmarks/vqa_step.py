"""VQA at base size: what people use against ours, on COCO-like lengths, in one run: training steps, or only forward.

    python benchmarks/vqa_step.py [--forward] [--batch-size 16] [--steps 4] [--threads 2] [--ways padded,ours]

Examples have questions of about 8 tokens, one tag of one or two tokens per region, 10 to 50 regions. The ways:

    padded      the same weights on batches padded to 128 + 50, every layer whole, as the published code does
    bucketed    the same weights on batches of similar lengths, padded to their longest, every layer whole
    ours        the same batches packed end to end without padding, the last layer only at [CLS]
    visualbert  transformers' VisualBertForQuestionAnswering of the same size on batches padded to 128 + 50

A step is forward, loss, backward, clipping and AdamW, in float32 on a CPU; on a GPU in bfloat16 (autocast), except the
way `padded_float32`. The ways take turns, so that all meet the same state of the machine: one step each on a CPU, ten
on a GPU, which are queued as training queues them. --compile compiles our encoder's layers. On a GPU it also prints how
much of the device's measured bfloat16 matrix rate our step uses.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from made_data import made_regions, matrix_rate, timed, whole_layers
from torch import Tensor, nn
from transformers import VisualBertConfig, VisualBertForQuestionAnswering

from vinvl.data.batch import Batch, BatchRegions, Example, ImageRegions, collate, soft_targets
from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.models import VinVLConfig, VinVLForAnswering, answer_loss
from vinvl.task import parameter_groups

NUM_ANSWERS, MAX_TOKENS, MAX_REGIONS, ROW = 3129, 128, 50, 2054
PADDED, PADDED_FLOAT32, BUCKETED, OURS, VISUALBERT = "padded", "padded_float32", "bucketed", "ours", "visualbert"
WAYS = (PADDED, PADDED_FLOAT32, BUCKETED, OURS, VISUALBERT)


def coco_like_examples(count: int, rng: np.random.Generator) -> list[Example]:
    """Examples of random content and COCO-like lengths; the features are views of one array, to spare memory."""
    most = made_regions(MAX_REGIONS, ROW - 6, rng)
    examples = []
    for _ in range(count):
        regions = int(np.clip(rng.normal(33, 12), 10, 50))
        question = int(np.clip(rng.normal(8, 2.2), 3, 24))
        tags = regions + int(rng.binomial(regions, 0.1))
        tokens = 3 + question + tags
        examples.append(
            Example(
                input_ids=rng.integers(1000, 30000, size=tokens),
                token_type_ids=(np.arange(tokens) >= question + 2).astype(np.int64),
                regions=ImageRegions(most, regions, position=-1),
                label_ids=rng.choice(NUM_ANSWERS, size=3, replace=False),
                label_scores=np.array([1.0, 0.6, 0.3], dtype=np.float32),
                record={},
            )
        )
    return examples


def batches_of(count: int, batch_size: int) -> Iterator[Batch]:
    """Batches as training has them: of like lengths."""
    examples = coco_like_examples(max(64, count) * batch_size, np.random.default_rng(0))
    lengths = np.array([len(example.input_ids) + len(example.regions) for example in examples])
    sampler = iter(LengthBucketBatchSampler(lengths, batch_size, seed=0))
    for _ in range(count):
        chosen = [examples[draw.index] for draw in next(sampler)]
        yield collate(chosen, pad_token_id=0, labels=soft_targets(chosen, NUM_ANSWERS))


def pad_fixed(batch: Batch) -> Batch:
    """The batch padded to 128 tokens and 50 regions."""
    size, text = batch.input_ids.shape
    regions = batch.regions.slots

    def widen(tensor: Tensor, width: int) -> Tensor:
        wide = tensor.new_zeros((size, width, *tensor.shape[2:]))
        wide[:, : tensor.shape[1]] = tensor
        return wide

    mask = torch.zeros((size, MAX_TOKENS + MAX_REGIONS), dtype=torch.bool)
    mask[:, :text] = batch.attention_mask[:, :text]
    mask[:, MAX_TOKENS : MAX_TOKENS + regions] = batch.attention_mask[:, text:]
    return replace(
        batch,
        input_ids=widen(batch.input_ids, MAX_TOKENS),
        token_type_ids=widen(batch.token_type_ids, MAX_TOKENS),
        regions=BatchRegions.of_padded(widen(batch.region_features, MAX_REGIONS)),
        attention_mask=mask,
        layout=None,
    )


def packed(model: VinVLForAnswering, batch: Batch) -> Tensor:
    logits: Tensor = model(**batch.inputs()).logits
    return logits


def by_visualbert(model: VisualBertForQuestionAnswering, batch: Batch) -> Tensor:
    text = batch.input_ids.shape[1]
    logits: Tensor = model(
        input_ids=batch.input_ids,
        token_type_ids=batch.token_type_ids,
        attention_mask=batch.attention_mask[:, :text].long(),
        visual_embeds=batch.region_features,
        visual_attention_mask=batch.attention_mask[:, text:].long(),
        visual_token_type_ids=torch.ones_like(batch.attention_mask[:, text:]).long(),
    ).logits
    return logits


@dataclass
class Way:
    """How one way comes from a batch to logits."""

    model: nn.Module
    logits: Callable[[nn.Module, Batch], Tensor]
    pad: Callable[[Batch], Batch]
    optimizer: torch.optim.Optimizer
    half: bool

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Named once: looking for them takes as long as clipping itself."""
        return list(self.model.parameters())


def make_ways(names: list[str], layers: int, device: torch.device, compile: bool) -> dict[str, Way]:
    """Those asked for; all of ours share the weights and the optimiser."""
    torch.manual_seed(0)
    model: Any = VinVLForAnswering(VinVLConfig(num_labels=NUM_ANSWERS, num_hidden_layers=layers))
    model.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=5e-5, fused=True)

    def by_sdpa(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, VinVLForAnswering)
        return whole_layers(model, batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.region_features)

    if compile:
        model.bert.compile_layers()
    half = device.type == "cuda"
    ways = {
        PADDED: Way(model, by_sdpa, pad_fixed, optimizer, half),
        PADDED_FLOAT32: Way(model, by_sdpa, pad_fixed, optimizer, False),
        BUCKETED: Way(model, by_sdpa, lambda batch: batch, optimizer, half),
        OURS: Way(model, packed, lambda batch: batch, optimizer, half),  # type: ignore[arg-type]
    }
    if VISUALBERT in names:
        config = VisualBertConfig(visual_embedding_dim=ROW, num_hidden_layers=layers)
        config.num_labels = NUM_ANSWERS
        other: Any = VisualBertForQuestionAnswering(config)
        other.to(device)
        other_optimizer = torch.optim.AdamW(parameter_groups(other, 0.05), lr=5e-5, fused=True)
        ways[VISUALBERT] = Way(other, by_visualbert, pad_fixed, other_optimizer, half)  # type: ignore[arg-type]
    return {name: ways[name] for name in names}


def step(way: Way, batch: Batch, device: torch.device, forward_alone: bool) -> None:
    on_device = batch.to(device, non_blocking=True)
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=way.half),
        torch.no_grad() if forward_alone else nullcontext(),
    ):
        logits = way.logits(way.model, on_device)
    if forward_alone:
        return
    assert on_device.labels is not None
    answer_loss(logits, on_device.labels, "bce").backward()
    nn.utils.clip_grad_norm_(way.parameters, 1.0)
    way.optimizer.step()
    way.optimizer.zero_grad()


def steps(way: Way, batches: list[Batch], device: torch.device, forward_alone: bool) -> None:
    for batch in batches:
        step(way, batch, device, forward_alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward", action="store_true", help="evaluation: only forward, dropout off")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ways", default=None, help=f"of {','.join(WAYS)}; the first is what ratios are against")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    usual = (
        [PADDED_FLOAT32, PADDED, BUCKETED, VISUALBERT, OURS]
        if device.type == "cuda"
        else [PADDED, BUCKETED, VISUALBERT, OURS]
    )
    names = usual if options.ways is None else options.ways.split(",")
    ways = make_ways(names, options.layers, device, options.compile)
    for way in ways.values():
        way.model.train(not options.forward)

    turn = 10 if device.type == "cuda" else 1
    turns = math.ceil(options.steps / turn)
    batches = iter(batches_of((turns + 1) * turn, options.batch_size))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    lengths: list[Tensor] = []
    padded = 0
    for number in range(turns + 1):
        drawn = list(islice(batches, turn))
        for name, way in ways.items():
            prepared = [way.pad(batch).pin_memory() if device.type == "cuda" else way.pad(batch) for batch in drawn]
            if number == 0 or device.type == "cuda":  # kernels may have to be compiled for these lengths
                steps(way, prepared, device, options.forward)
            if number > 0:
                elapsed = timed(lambda w=way, p=prepared: steps(w, p, device, options.forward), device)  # type: ignore[misc]
                seconds[name].append(elapsed)
        if number > 0:
            lengths.extend(batch.attention_mask.sum(dim=1) for batch in drawn)
            padded += sum(batch.attention_mask.numel() for batch in drawn)

    samples = turns * turn * options.batch_size
    real = int(torch.cat(lengths).sum())
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{machine}; torch {torch.__version__}; batch {options.batch_size}; {turns * turn} steps of each way")
    fixed = MAX_TOKENS + MAX_REGIONS
    print(f"positions a sample: padded {fixed}, bucketed {padded / samples:.1f}, real {real / samples:.1f}")
    print(f"{'way':16}{'s a step':>10}{'samples/s':>11}{names[0] + ' / it':>22}")
    for name, times in seconds.items():
        total = sum(times)
        print(f"{name:16}{total / turns / turn:10.4f}{samples / total:11.2f}{sum(seconds[names[0]]) / total:22.2f}")
    if device.type == "cuda" and OURS in seconds:
        rate = matrix_rate(device)
        passes = 1 if options.forward else 3
        whole, done = (passes * flops(torch.cat(lengths), options.layers, short) for short in (False, True))
        shares = [f"{counted / sum(seconds[OURS]) / rate:.1%}" for counted in (whole, done)]
        print(f"ours: {shares[0]} of the measured bfloat16 matrix rate, {rate / 1e12:.0f} TFLOP/s, with every layer")
        print(f"counted whole as is usual; {shares[1]} with the operations that it does")


def flops(lengths: Tensor, layers: int, short: bool, hidden: int = 768, heads: int = 12) -> float:
    """FLOPs of a forward pass of the layers over sequences of these lengths; the last one only at [CLS] if `short`."""
    each = lengths.double()
    linear = 24 * hidden**2 * each
    attention = 4 * hidden * each.square()
    last = 24 * hidden**2 + 4 * heads * hidden * each if short else linear + attention
    return float(((layers - 1) * (linear + attention) + last).sum())


if __name__ == "__main__":
    main()

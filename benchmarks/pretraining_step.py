"""The pre-training step at base size: ours against the published way, on the same weights and samples, in one run.

    python benchmarks/pretraining_step.py [--batch-size 16] [--rounds 3] [--threads 1] [--workers 8] [--device cuda]

Ours packs a batch end to end, and takes only the hidden tokens through the vocabulary head. The published way pads it
to 35 tokens and 50 regions, and takes every token through the head. Between them stand our step with one of these
undone, to tell what each is worth. A step is taking a batch from the loader of `PretrainingDataModule`, its way to the
device, forward, loss, backward, clipping and AdamW, in float32 on a CPU and in bfloat16 (autocast) on a GPU; on a CPU
the time is what this process computed, so that other programs do not count.

With --workers batches are made as training makes them: by so many data workers, ahead of the step; without, on the
spot. All ways take the same batches of one made corpus: captions of about 11 words, 10 to 30 tags, 18 to 50 regions, in
batches of like lengths; each turn begins with as many untimed steps as batches can lie ready. The share of the rate
is what `TrainingPace` counts, as training logs it, against large matrix products in the same run; "taking" is the time
that the training process spends until it has a batch. --compile compiles the encoder's layers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from made_data import matrix_rate
from pretraining_feed import make_data
from torch.nn import functional as F

from vinvl.data.batch import Batch, BatchRegions
from vinvl.models import VinVLConfig, VinVLForPreTraining
from vinvl.pretraining.data import PretrainingDataModule
from vinvl.pretraining.task import StepCosts, TrainingPace
from vinvl.task import parameter_groups

MAX_TOKENS, MAX_REGIONS, ROW = 35, 50, 2054
AHEAD = 2  # batches that torch's loader has each worker make ahead
NOT_HIDDEN = -100


@dataclass(frozen=True)
class Way:
    """How a step is done."""

    title: str
    fixed_padding: bool = False
    head_everywhere: bool = False


WAYS = (
    Way("ours"),
    Way("ours, padded to 35 + 50", fixed_padding=True),
    Way("ours, head at every token", head_everywhere=True),
    Way("published way", fixed_padding=True, head_everywhere=True),
)


class Step:
    """One model and optimiser that all ways train in turn."""

    def __init__(self, data: PretrainingDataModule, layers: int, device: torch.device, compile: bool = False) -> None:
        config = VinVLConfig(
            num_labels=data.num_pair_classes,
            num_hidden_layers=layers,
            use_img_layernorm=True,
            img_feature_dim=ROW,
        )
        torch.manual_seed(0)
        self.data = data
        self.device = device
        model: Any = VinVLForPreTraining(config)
        self.model = model.to(device)
        if compile:
            self.model.bert.compile_layers()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.01), lr=5e-5, fused=True)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        self.pace = TrainingPace(StepCosts.of(config), clock)

    def take(self, way: Way, batch: Batch) -> None:
        batch = self.data.transfer_batch_to_device(batch, self.device, 0)
        batch = self.data.on_after_batch_transfer(batch, 0)
        assert batch.labels is not None
        self.pace.add(batch.attention_mask, batch.input_ids.shape[1], len(batch.labels))
        if way.fixed_padding:
            batch = pad_to_limits(batch)
        # Packed sequences have no padding to compute with.
        self.model.config._attn_implementation = "sdpa" if way.fixed_padding else "packed"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss_of(batch, way.head_everywhere)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss_of(self, batch: Batch, head_everywhere: bool) -> torch.Tensor:
        """The sum of both losses; the same number either way."""
        assert batch.masked_positions is not None and batch.labels is not None
        output = self.model(
            **batch.inputs(),
            masked_positions=None if head_everywhere else batch.masked_positions,
            masked_ids=None if head_everywhere else batch.labels,
            pair_labels=batch.pair_labels,
        )
        if not head_everywhere:
            ours: torch.Tensor = output.loss
            return ours
        targets = torch.full_like(batch.input_ids, NOT_HIDDEN).masked_scatter(batch.masked_positions, batch.labels)
        return output.loss + F.cross_entropy(output.logits.float(), targets.flatten(), ignore_index=NOT_HIDDEN)


def pad_to_limits(batch: Batch) -> Batch:
    """The batch padded to 35 tokens and 50 regions."""
    assert batch.masked_positions is not None
    text = batch.input_ids.shape[1]
    to_tokens, to_regions = (0, MAX_TOKENS - text), (0, MAX_REGIONS - batch.regions.slots)
    mask = [F.pad(batch.attention_mask[:, :text], to_tokens), F.pad(batch.attention_mask[:, text:], to_regions)]
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, to_tokens),
        token_type_ids=F.pad(batch.token_type_ids, to_tokens),
        attention_mask=torch.cat(mask, dim=1),
        regions=BatchRegions.of_padded(F.pad(batch.region_features, (0, 0, *to_regions))),
        layout=None,
        masked_positions=F.pad(batch.masked_positions, to_tokens),
    )


def endless(data: PretrainingDataModule) -> Iterator[Batch]:
    """One pass over the training data after the other."""
    loader = data.train_dataloader()
    while True:
        yield from loader


@dataclass
class Turns:
    """What the timed steps of a way took and held."""

    batches: Iterator[Batch]
    seconds: float = 0.0
    taking: float = 0.0  # of these, until there was a batch
    samples: int = 0
    slots: int = 0
    flops: float = 0.0

    def take(self, step: Step, way: Way, untimed: int, timed_steps: int) -> None:
        """A turn: first steps that count for nothing, and then steps that are queued as training queues them."""
        for batch in islice(self.batches, untimed):
            step.take(way, batch)
        clock = step.pace.clock
        wait(step.device)
        step.pace.restart()
        start = clock()
        for _ in range(timed_steps):
            begin = clock()
            batch = next(self.batches)
            self.taking += clock() - begin
            step.take(way, batch)
            self.samples += len(batch)
            self.slots += batch.attention_mask.numel()
        wait(step.device)
        elapsed = clock() - start
        self.seconds += elapsed
        self.flops += elapsed * float(step.pace.read(devices=1, peak=1.0)["flops_utilisation"])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way in a turn")
    parser.add_argument("--turns", type=int, default=2, help="of each way")
    parser.add_argument("--workers", type=int, default=0, help="of the loader (default: 0, batches made on the spot)")
    parser.add_argument("--cache", help="data.cache: ram or device")
    parser.add_argument("--rows", type=int, default=5000, help="of the corpus (default: 5000)")
    parser.add_argument("--images", type=int, default=500, help="in the store (default: 500)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ways", type=int, nargs="+", default=[*range(len(WAYS))], help="numbers of them, from 0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    told = {"batch_size": options.batch_size, "num_workers": options.workers, "cache": options.cache, "tags": (10, 30)}
    with tempfile.TemporaryDirectory() as name:
        data = make_data(Path(name), rows=options.rows, images=options.images, **told)
        step = Step(data, options.layers, device, options.compile)
        turns = {WAYS[number]: Turns(endless(data)) for number in options.ways}
        ready = 1 + AHEAD * options.workers
        for number in range(options.turns):
            for way in turns if number % 2 else reversed(turns):
                turns[way].take(step, way, ready, options.rounds)
                print(f"turn {number + 1} of {options.turns}: {way.title}", flush=True)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    feed = f"{options.workers} data workers" if options.workers else "batches made on the spot"
    print(f"{machine}; torch {torch.__version__}; batch {options.batch_size}; {feed}")
    rate, first = matrix_rate(device), turns[WAYS[options.ways[0]]]
    print(f"positions a sample: fixed {MAX_TOKENS + MAX_REGIONS}, ours with padding {first.slots / first.samples:.1f}")
    of_rate, taking = f"of {rate / 1e12:.3g} TFLOP/s", "µs taking a sample"
    print(f"{'way':<26}{'samples/s':>10}{'time / first':>14}{of_rate:>20}{taking:>20}")
    for way, one in turns.items():
        pace, share = one.samples / one.seconds, one.flops / one.seconds / rate
        longer = first.samples / first.seconds / pace
        print(f"{way.title:<26}{pace:>10,.2f}{longer:>14.2f}{share:>20.1%}{1e6 * one.taking / one.samples:>20.0f}")


if __name__ == "__main__":
    main()

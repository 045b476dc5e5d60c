"""The pre-training step at base size: ours against the published way, on the same weights and samples, in one run.

    python benchmarks/pretraining_step.py [--batch-size 16] [--rounds 3] [--threads 1] [--device cuda]

Ours makes a batch at once, pads it to its longest text and most regions, and takes only the hidden tokens through the
vocabulary head. The published way makes one sample after the other in Python, pads to 35 tokens and 50 regions, and
takes every token through the head. Between them stand our step with one of these undone, to tell what each is worth.
A step is making the batch, forward, loss, backward, clipping and AdamW, in float32 on a CPU and in bfloat16 (autocast)
on a GPU; on a CPU the time is what this process computed, so that other programs do not count.

All take turns on the same rows of one made corpus: captions of about 11 words, 10 to 30 tags, 18 to 50 regions, in
batches of like lengths. What is made row by row is timed and put aside: its random numbers differ, and all must
train on the same hidden tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from made_data import timed
from pretraining_feed import make_dataset, row_by_row
from store_reads import write_images
from torch.nn import functional as F

from vinvl.data.batch import Batch, BatchRegions
from vinvl.data.sampling import Draw, LengthBucketBatchSampler
from vinvl.models import VinVLConfig, VinVLForPreTraining
from vinvl.pretraining.data import PretrainingDataset
from vinvl.task import parameter_groups

MAX_TOKENS, MAX_REGIONS, ROW = 35, 50, 2054
NOT_HIDDEN = -100


@dataclass(frozen=True)
class Way:
    """How a step is done."""

    title: str
    rows_one_by_one: bool = False
    fixed_padding: bool = False
    head_everywhere: bool = False


WAYS = (
    Way("ours"),
    Way("ours, rows one by one", rows_one_by_one=True),
    Way("ours, padded to 35 + 50", fixed_padding=True),
    Way("ours, head at every token", head_everywhere=True),
    Way("published way", rows_one_by_one=True, fixed_padding=True, head_everywhere=True),
)


class Step:
    """One model and optimiser that all ways train in turn."""

    def __init__(self, dataset: PretrainingDataset, layers: int, device: torch.device) -> None:
        config = VinVLConfig(
            num_labels=3,
            num_hidden_layers=layers,
            use_img_layernorm=True,
            img_feature_dim=ROW,
        )
        torch.manual_seed(0)
        self.dataset = dataset
        self.device = device
        model: Any = VinVLForPreTraining(config)
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.01), lr=5e-5, fused=True)

    def take(self, way: Way, draws: Sequence[Draw]) -> None:
        batch = self.dataset.collate(draws)
        if way.rows_one_by_one:
            row_by_row(self.dataset, draws)
        if way.fixed_padding:
            batch = pad_to_limits(batch)
        batch = batch.to(self.device)
        # Packed sequences have no padding to compute with.
        self.model.config._attn_implementation = "sdpa" if way.fixed_padding else "packed"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss_of(batch, way.head_everywhere)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
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


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """Seconds: those of the clock on an accelerator, those that this process computed on a CPU."""
    if device.type != "cpu":
        return timed(work, device)
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(step: Step, batches: Sequence[Sequence[Draw]], report: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each way on each batch but the first, which warms all of them up."""
    seconds: dict[str, list[float]] = {way.title: [] for way in WAYS}
    for number, draws in enumerate(batches):
        for way in WAYS if number % 2 else reversed(WAYS):
            elapsed = seconds_of(lambda way=way, draws=draws: step.take(way, draws), step.device)  # type: ignore[misc]
            if number > 0:
                seconds[way.title].append(elapsed)
        report(f"round {number} of {len(batches) - 1}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each way")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "store.h5", 500, 36, ROW - 6)
        dataset = make_dataset(folder, folder / "store.h5", rows=5000, images=500, tags=(10, 30))
        sampler = LengthBucketBatchSampler(dataset.lengths(), options.batch_size, seed=0)
        batches = list(sampler)[: options.rounds + 1]
        step = Step(dataset, options.layers, device)
        begin = time.perf_counter()
        seconds = measure(step, batches, lambda line: print(line, flush=True))
        made = [dataset.collate(draws) for draws in batches[1:]]
    samples = sum(map(len, made))
    slots = sum(batch.attention_mask.numel() for batch in made) / samples
    real = sum(int(batch.attention_mask.sum()) for batch in made) / samples
    hidden = sum(len(batch.labels) for batch in made if batch.labels is not None) / samples
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{machine}; torch {torch.__version__}; batch {options.batch_size}; {time.perf_counter() - begin:.0f} s")
    print(f"positions: fixed {MAX_TOKENS + MAX_REGIONS}, ours {slots:.1f}, real {real:.1f}; hidden tokens {hidden:.1f}")
    ours = sum(seconds[WAYS[0].title])
    for title, times in seconds.items():
        print(f"{title:<26}{samples / sum(times):8.2f} samples/s   {sum(times) / ours:5.2f} times as long as ours")


if __name__ == "__main__":
    main()

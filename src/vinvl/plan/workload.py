"""What samples are made of, as batches have it: tokens, regions, padding; and what that costs the device."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

from vinvl.data.batch import Batch
from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.metrics.model_flops import StepCosts

SAMPLED_BATCHES, SAMPLING_SECONDS = 64, 8.0  # batches looked at, or as many as there is time for


@dataclass(frozen=True)
class Workload:
    """Counts over some batches. A sample is an item of the dataset; some tasks make several rows of it.

    Attributes:
        samples: items.
        rows: sequences that go through the model.
        text_tokens: tokens of text and tags, special ones included, without padding.
        regions: without padding.
        masked_tokens: tokens to be guessed.
        slots: positions of the joint sequences, padding included.
        region_slots: those of regions.
        attended_pairs: slots squared, by row: what attention works through.
    """

    samples: int = 0
    rows: int = 0
    text_tokens: int = 0
    regions: int = 0
    masked_tokens: int = 0
    slots: int = 0
    region_slots: int = 0
    attended_pairs: int = 0

    @classmethod
    def of(cls, batch: Batch, samples: int) -> Workload:
        """Of a batch that was made of `samples` items."""
        rows, text_slots = batch.input_ids.shape
        mask = batch.attention_mask.bool()
        present = mask if mask.dim() == 2 else mask.any(dim=-1)  # (B, S): padding attends to nothing
        length = present.shape[1]
        return cls(
            samples=samples,
            rows=rows,
            text_tokens=int(present[:, :text_slots].sum()),
            regions=int(present[:, text_slots:].sum()),
            masked_tokens=0 if batch.masked_positions is None else int(batch.masked_positions.sum()),
            slots=rows * length,
            region_slots=rows * (length - text_slots),
            attended_pairs=rows * length**2,
        )

    def __add__(self, other: Workload) -> Workload:
        return Workload(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def padding_share(self) -> float:
        """Share of the slots that nothing is in."""
        return 1 - (self.text_tokens + self.regions) / self.slots

    def flops(self, costs: StepCosts) -> int:
        """Of one forward and backward pass as the device computes it, padding included."""
        return int(
            costs.total(
                tokens=self.slots,
                attended_pairs=self.attended_pairs,
                regions=self.region_slots,
                masked_tokens=self.masked_tokens,
                rows=self.rows,
            )
        )

    def flops_per_sample(self, costs: StepCosts) -> float:
        return self.flops(costs) / self.samples


def sampled_workload(datamodule: Any, seconds: float = SAMPLING_SECONDS) -> Workload:
    """Of the first batches that training of a datamodule that has been set up would see, made for real."""
    dataset = datamodule.datasets["train"]
    sampler = LengthBucketBatchSampler(dataset.lengths(), datamodule.batch_size, seed=datamodule.seed)
    end, total = time.perf_counter() + seconds, Workload()
    for number, draws in enumerate(sampler):
        total += Workload.of(dataset.collate([dataset[draw] for draw in draws]), len(draws))
        if number + 1 == SAMPLED_BATCHES or time.perf_counter() > end:
            break
    return total

"""Batches of random content that stand in for data that are not there, and a task that can train on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vinvl.data.batch import Batch
from vinvl.data.gqa import GQADataModule
from vinvl.data.image_regions import BatchRegions
from vinvl.data.pretraining import PretrainingDataModule
from vinvl.data.vqa import VQADataModule
from vinvl.errors import UserError
from vinvl.plan.workload import Workload
from vinvl.tasks.base import MakeOptimizer, MakeScheduler
from vinvl.tasks.pretraining import PretrainingTask

BERT_WORDS = 30522  # bert-base-uncased, where the tokenizer cannot be asked


class RepeatedBatch:
    """One batch again and again."""

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch = batch
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch for _ in range(self.times))


class MadeData:
    """Training batches in which each row is as long as the limits permit: what they cost is an upper bound.

    Attributes:
        batch_size: samples of a batch, each of which becomes `rows_per_sample` rows.
    """

    def __init__(self, datamodule: Any, *, feature_dim: int, vocab_size: int) -> None:
        """For the limits of a datamodule of which nothing has been read.

        Raises:
            UserError: there are no stand-ins for data of this kind.
        """
        if not isinstance(datamodule, PretrainingDataModule | VQADataModule | GQADataModule):
            raise UserError(
                "Made batches can stand in for the data of pre-training, VQA and GQA alone, not for a "
                f"{type(datamodule).__name__}"
            )
        self.batch_size = datamodule.batch_size
        self.limits = datamodule.limits
        self.feature_dim = feature_dim
        self.vocab_size = vocab_size
        self.mask_probability, variant = 0.0, "matched"
        if isinstance(datamodule, PretrainingDataModule):
            self.mask_probability, variant = datamodule.mask_probability, datamodule.variant
        self.rows_per_sample = 2 if variant == "mmf" else 1
        self.contrast = variant != "matched"

    def batch(self) -> Batch:
        """(B·rows, L + R) of random tokens and regions; nothing is hidden for tasks other than pre-training."""
        generator = torch.Generator().manual_seed(0)
        rows, text = self.batch_size * self.rows_per_sample, self.limits.max_tokens
        regions = self.limits.max_regions if self.limits.use_regions else 0
        ids = torch.randint(self.vocab_size, (rows, text), generator=generator)
        hidden = torch.rand((rows, text), generator=generator) < self.mask_probability
        hidden[self.batch_size :] = False
        return Batch(
            input_ids=ids,
            token_type_ids=torch.zeros_like(ids),
            attention_mask=torch.ones(rows, text + regions, dtype=torch.bool),
            regions=BatchRegions.of_padded(torch.randn((rows, regions, self.feature_dim), generator=generator)),
            labels=ids[hidden],
            records=tuple({} for _ in range(rows)),
            masked_positions=hidden,
            pair_labels=torch.zeros(rows, dtype=torch.long) if self.contrast else None,
        )

    def train_dataloader(self) -> RepeatedBatch:
        return RepeatedBatch(self.batch(), times=1_000_000)

    def workload(self) -> Workload:
        return Workload.of(self.batch(), self.batch_size)


def stand_in_task(
    *,
    model: Mapping[str, Any],
    init: None,
    init_answers: str | None = None,
    gradient_checkpointing: bool,
    optimizer: MakeOptimizer,
    scheduler: MakeScheduler,
    weight_decay: float,
    seed: int,
    options: Mapping[str, Any],
) -> PretrainingTask:
    """A pre-training task of the configured size: the encoder of every task, and heads that cost next to nothing.

    Arguments are those of `VinVLTask.build`; `init_answers` and `options`, settings of the real task, are left aside.
    """
    return PretrainingTask(
        variant="oscar",
        num_pair_classes=3,
        model_config={**model, "vocab_size": model["vocab_size"] or BERT_WORDS, "tie_word_embeddings": True},
        init=init,
        gradient_checkpointing=gradient_checkpointing,
        optimizer=optimizer,
        scheduler=scheduler,
        weight_decay=weight_decay,
        seed=seed,
    )

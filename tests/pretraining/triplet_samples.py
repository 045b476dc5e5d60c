"""Pre-training batches made by hand, and the plain forward pass to hold the task against."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vinvl.data.batch import Batch, BatchRegions
from vinvl.pretraining.task import PretrainingTask

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "img_feature_dim": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TOKENS, REGIONS = 10, 4


def task_of(variant: str = "oscar", classes: int = 3, learning_rate: float = 0.0, **settings: Any) -> PretrainingTask:
    """A tiny task with seeded weights, ready to train."""
    torch.manual_seed(0)
    settings.setdefault("optimizer", lambda groups: torch.optim.SGD(groups, lr=learning_rate, momentum=0.9))
    settings.setdefault("scheduler", lambda optimizer, total_steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
    return PretrainingTask(variant=variant, num_pair_classes=classes, model_config=dict(SIZES), **settings)


def triplets(size: int, seed: int = 0, hidden_share: float = 0.3, classes: int = 3) -> Batch:
    """`size` rows of text, tags and regions, with hidden tokens and classes."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(size, TOKENS, generator=generator) < hidden_share
    attended = torch.ones(size, TOKENS + REGIONS, dtype=torch.bool)
    attended[::2, -1] = False  # every other image has a region less
    input_ids = torch.randint(5, 40, (size, TOKENS), generator=generator)
    return Batch(
        input_ids=input_ids,
        token_type_ids=(torch.arange(TOKENS) >= TOKENS // 2).long().expand(size, -1).contiguous(),
        attention_mask=attended,
        regions=BatchRegions.of_padded(torch.randn(size, REGIONS, 10, generator=generator)),
        labels=torch.randint(5, 40, (int(masked.sum()),), generator=generator),
        records=tuple({} for _ in range(size)),
        masked_positions=masked,
        pair_labels=torch.randint(0, classes, (size,), generator=generator),
    )


def changed(batch: Batch, **values: Any) -> Batch:
    return replace(batch, **values)


def unlabelled(batch: Batch) -> Batch:
    """The rows with no part in the contrastive loss."""
    return replace(batch, pair_labels=torch.full((len(batch),), -1))


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both, one batch after the other."""
    values = {
        name: torch.cat([value, getattr(second, name)])
        for name, value in vars(first).items()
        if isinstance(value, Tensor)
    }
    regions = BatchRegions.of_padded(torch.cat([first.region_features, second.region_features]))
    return replace(first, records=first.records + second.records, regions=regions, **values)


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Rows `start` to `stop`."""
    rows = slice(start, stop)
    assert batch.masked_positions is not None and batch.labels is not None
    of_label = batch.masked_positions.nonzero()[:, 0]
    chosen = torch.arange(len(batch))[rows]
    values = {
        name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor) and name != "labels"
    }
    values["labels"] = batch.labels[torch.isin(of_label, chosen)]
    regions = BatchRegions.of_padded(batch.region_features[rows])
    return replace(batch, records=batch.records[rows], regions=regions, **values)


def plain_forward(task: PretrainingTask, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the hidden tokens and of the classes, by encoder and heads alone."""
    model: Any = task.model
    encoded = model.bert(
        batch.input_ids,
        token_type_ids=batch.token_type_ids,
        attention_mask=batch.attention_mask,
        region_features=batch.region_features,
    )
    text = encoded.last_hidden_state[:, : batch.input_ids.shape[1]]
    return model.cls.predictions(text[batch.masked_positions]), model.cls.seq_relationship(encoded.pooler_output)

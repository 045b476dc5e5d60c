"""What several tests of models begin with."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vinvl.models import LoadingReport, VinVLConfig
from vinvl.models.weight_files import Weights, find_checkpoint
from vinvl.models.weights import initialise_from

SIZES: dict[str, Any] = {  # of a BERT that takes no time
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 20,
}  # fmt: skip


def assert_gradients(model: Any, recorded: Mapping[str, float | None], rel: float = 1e-4, least: float = 1e-6) -> None:
    """Every recorded norm is that of the parameter's gradient; None is recorded of those that have none."""
    norms = {name: None if one.grad is None else one.grad.norm().item() for name, one in model.named_parameters()}
    for name, norm in recorded.items():
        # A key bias shifts all scores of a query alike, so its gradient is zero but for rounding.
        assert (not norms[name]) if norm is None else norms[name] == pytest.approx(norm, rel=rel, abs=least), name
    assert not recorded or set(recorded) == set(norms)


def as_region_features(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a recording, by our names."""
    names = {"img_feats": "region_features"}
    recorded = ("input_ids", "token_type_ids", "attention_mask", "img_feats")
    return {names.get(key, key): tensors[f"inputs.{key}"] for key in recorded}


def initialise_with_report(
    model_class: type[Any], config: VinVLConfig, init: str | Path, *, strict_head: bool = False
) -> tuple[Any, LoadingReport]:
    """`initialise` with the report that it logs."""
    return initialise_from(model_class, config, Weights.of(find_checkpoint(init)), strict_head=strict_head)


def attention_written_out(projected: Tensor, offsets: Tensor, kept: Tensor | None = None, dropout: float = 0) -> Tensor:
    """What positions (T, 3, heads, d) of sequences end to end read, where of their weights those `kept` are used.

    `kept` (T, heads, longest) bool; None: all of them are.
    """
    parts = []
    for start, end in pairwise(offsets.tolist()):
        query, key, value = projected[start:end].float().unbind(1)
        weights = torch.einsum("qhd,khd->qhk", query, key).mul(query.shape[-1] ** -0.5).softmax(dim=-1)
        if kept is not None:
            weights = weights * kept[start:end, :, : end - start] / (1 - dropout)
        parts.append(torch.einsum("qhk,khd->qhd", weights, value))
    return torch.cat(parts)

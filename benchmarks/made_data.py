"""What several benchmarks share: made-up regions, a stopwatch, and the way that the published code uses the weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vinvl.models import VinVLForAnswering
from vinvl.models.config import SpecialTokens
from vinvl.regions import Regions

SPECIAL = SpecialTokens(cls_token_id=101, sep_token_id=102, pad_token_id=0, mask_token_id=103, unk_token_id=100)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def made_regions(count: int, feature_dim: int, rng: np.random.Generator) -> Regions:
    """Regions of random features and boxes."""
    corners = rng.random((count, 2)) * 300
    none = np.zeros((count, 0), dtype=np.int32)
    return Regions(
        image_id="made",
        features=rng.normal(size=(count, feature_dim)).astype(np.float16),
        boxes=np.concatenate([corners, corners + 100], axis=1).astype(np.float32),
        classes=np.ones(count, dtype=np.int32),
        class_scores=np.ones(count, dtype=np.float32),
        attributes=none,
        attribute_scores=none.astype(np.float32),
        width=640,
        height=480,
    )


def whole_layers(
    model: VinVLForAnswering, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, region_features: Tensor
) -> Tensor:
    """Logits by transformers' "sdpa" attention with a mask: padding is computed with, and every layer whole."""
    ours = model.config._attn_implementation
    model.config._attn_implementation = "sdpa"
    encoded = model.bert(
        input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask, region_features=region_features
    )
    model.config._attn_implementation = ours
    logits: Tensor = model.classifier(model.dropout(encoded.pooler_output))
    return logits

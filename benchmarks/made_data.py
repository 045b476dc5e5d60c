"""What several benchmarks share: made-up regions, a stopwatch, and the way that the published code uses the weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from vinvl.models import VinVLForAnswering
from vinvl.models.config import SpecialTokens
from vinvl.regions import Regions
from vinvl.regions.layout import CHECKSUMS

SPARSE_REGIONS = 36
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


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of large matrix products: of bfloat16 on a GPU, of float32 on a CPU."""
    size, dtype, times = (8192, torch.bfloat16, 20) if device.type == "cuda" else (1024, torch.float32, 5)
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    torch.mm(left, right)
    return 2 * size**3 / min(timed(lambda: torch.mm(left, right), device) for _ in range(times))


# What a loader's batches cost. Processor time, so that other programs on the machine do not count.

FEED_TITLES = (
    f"{'workers':>7}{'samples/s by clock':>20}{'µs a sample: makers':>21}{'main thread':>13}{'main process':>14}"
    "   MB own + shared, each maker"
)
ROUNDS = 2  # the first warms up


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> tuple[int, int]:
    """Megabytes that a process has for itself, and that it shares with others: forked pages, mapped files."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines}
    return found["Private_Clean"] + found["Private_Dirty"], found["Shared_Clean"] + found["Shared_Dirty"]


def print_feed(loader: Any, workers: int) -> None:
    """A row of `FEED_TITLES`: a pass over a loader whose persistent workers have made one before.

    "makers" are all workers together; "main process" is the training process with all of its threads. Without workers
    the latter makes the batches.
    """
    makers: list[int] = []
    for _ in range(ROUNDS):
        before, start = sum(map(cpu_seconds, makers)), time.perf_counter()
        thread, process, samples = time.thread_time(), time.process_time(), 0
        for batch in loader:
            samples += len(batch)
        seconds = time.perf_counter() - start
        own = time.thread_time() - thread, time.process_time() - process
        makers = [worker.pid for worker in loader._iterator._workers] if workers else []
        made = sum(map(cpu_seconds, makers)) - before
    each = "".join(f"{1e6 * one / samples:>{width}.1f}" for one, width in zip((made, *own), (21, 13, 14), strict=True))
    held = ", ".join("{} + {}".format(*memory(process)) for process in makers or [os.getpid()])
    print(f"{workers:>7}{samples / seconds:>20,.0f}{each}   {held}", flush=True)


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


def write_sparse_store(path: Path, template: Path, ids: np.ndarray) -> None:
    """A store of images of 36 regions and of these ids (bytes), whose row arrays were never written."""
    images = len(ids)
    with h5py.File(template) as source, h5py.File(path, "w") as file:
        file.attrs.update({name: value for name, value in source.attrs.items() if name != CHECKSUMS})
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for name, dataset in source.items():
            if name in ("offsets", "sizes", "image_ids"):
                continue
            shape = (images * SPARSE_REGIONS, *dataset.shape[1:])
            if 0 in shape:
                file.create_dataset(name, shape, dataset.dtype)
                continue
            h5py.h5d.create(file.id, name.encode(), dataset.id.get_type(), h5py.h5s.create_simple(shape), plan)
        file.create_dataset("offsets", data=np.arange(images + 1, dtype=np.int64) * SPARSE_REGIONS)
        file.create_dataset("sizes", data=np.tile(np.array([[640, 480]], dtype=np.int32), (images, 1)))
        text = h5py.string_dtype("utf-8", ids.dtype.itemsize)
        file.create_dataset("image_ids", data=ids.astype(text), dtype=text)


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

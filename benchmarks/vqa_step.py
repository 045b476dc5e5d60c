"""The VQA training step at base size: batches padded to 128 + 50 against ours, on the same weights, in one run.

    python benchmarks/vqa_step.py [--batch-size 16] [--steps 4] [--threads 2]

Examples have COCO-like lengths: questions of about 8 tokens, one tag of one or two tokens per region, 10 to 50 regions.
Ours: length-bucketed batches, padded to their longest text and largest number of regions. Fixed: the same examples,
padded as the published code does. A step is forward, loss, backward, clipping and AdamW, in float32 on a CPU and in
bfloat16 (autocast) on a GPU. The paddings take turns, so that both meet the same state of the machine.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vinvl.data.batch import Batch, Example, collate, soft_targets
from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.tasks.parameter_groups import parameter_groups

NUM_ANSWERS, MAX_TOKENS, MAX_REGIONS, ROW = 3129, 128, 50, 2054


def coco_like_examples(count: int, rng: np.random.Generator) -> list[Example]:
    """Examples of random content and COCO-like lengths; the features are views of one array, to spare memory."""
    rows = rng.normal(size=(MAX_REGIONS, ROW)).astype(np.float32)
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
                region_rows=rows[:regions],
                label_ids=rng.choice(NUM_ANSWERS, size=3, replace=False),
                label_scores=np.array([1.0, 0.6, 0.3], dtype=np.float32),
                record={},
            )
        )
    return examples


def pad_fixed(batch: Batch) -> Batch:
    """The batch padded to 128 tokens and 50 regions."""
    size, text = batch.input_ids.shape
    regions = batch.region_features.shape[1]

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
        region_features=widen(batch.region_features, MAX_REGIONS),
        attention_mask=mask,
    )


def timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each padding")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)

    examples = coco_like_examples(64 * options.batch_size, np.random.default_rng(0))
    lengths = np.array([len(example.input_ids) + len(example.region_rows) for example in examples])
    sampler = iter(LengthBucketBatchSampler(lengths, options.batch_size, seed=0))
    config = VinVLConfig(num_labels=NUM_ANSWERS, num_hidden_layers=options.layers, attn_implementation="sdpa")
    model: nn.Module = VinVLForAnswering(config)
    model.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=5e-5, fused=True)

    def train_on(batch: Batch) -> None:
        on_device = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            output = model(
                input_ids=on_device.input_ids,
                token_type_ids=on_device.token_type_ids,
                attention_mask=on_device.attention_mask,
                region_features=on_device.region_features,
                labels=on_device.labels,
            )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds: dict[str, list[float]] = {"fixed 128 + 50": [], "ours": []}
    tokens, padded = 0, 0
    for number in range(options.steps + 1):
        chosen_examples = [examples[draw.index] for draw in next(sampler)]
        labels = soft_targets(chosen_examples, NUM_ANSWERS)
        ours = collate(chosen_examples, pad_token_id=0, labels=labels)
        fixed = pad_fixed(ours)
        for title, batch in (("fixed 128 + 50", fixed), ("ours", ours)):
            elapsed = timed(lambda chosen=batch: train_on(chosen), device)  # type: ignore[misc]
            if number > 0:  # the first step of each warms up
                seconds[title].append(elapsed)
        if number > 0:
            tokens += int(ours.attention_mask.sum())
            padded += ours.attention_mask.numel()

    samples = options.steps * options.batch_size
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{name}; torch {torch.__version__}; batch {options.batch_size}; {options.steps} steps each")
    print(f"positions: fixed {MAX_TOKENS + MAX_REGIONS}, ours {padded / samples:.1f}, real {tokens / samples:.1f}")
    for title, times in seconds.items():
        print(f"{title:<16}{samples / sum(times):8.2f} samples/s   {sum(times) / len(times):7.3f} s a step")
    print(f"ratio ours / fixed: {sum(seconds['fixed 128 + 50']) / sum(seconds['ours']):.2f}")


if __name__ == "__main__":
    main()

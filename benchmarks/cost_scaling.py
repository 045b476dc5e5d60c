"""What a sample costs against sequence length, batch size and the size of the store; printed, and drawn.

    python benchmarks/cost_scaling.py [--layers 12] [--threads 2] [--images 1000 10000 100000 1000000]

Training steps (forward, backward, AdamW) of the VQA model at base size on sequences of one length, and batches made
from stores of so many images. The large stores are sparse files, whose features take no room on the disk; questions are
asked about the same number of images of each, spread over the store. Writes docs/images/cost.png (pip install
'vinvl[bench]').
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_data import made_regions, write_sparse_store
from pretraining_feed import make_tokenizer
from vqa_feed import ANSWERS, datamodule_of, write_questions, write_store
from vqa_step import NUM_ANSWERS, ROW

from vinvl.data.batch import Batch, Example, ImageRegions, collate, soft_targets
from vinvl.models import VinVLConfig, VinVLForAnswering, answer_loss
from vinvl.task import parameter_groups

PLOT = Path(__file__).parents[1] / "docs" / "images" / "cost.png"
ASKED_ABOUT = 500
LENGTHS, BATCH_SIZES = (20, 40, 80, 120, 178), (1, 2, 4, 8, 16, 32)
USUAL_LENGTH, USUAL_BATCH = 80, 8
Curve = dict[int, float]


def batch_of(length: int, size: int) -> Batch:
    """Sequences of one length, four tenths of which are regions."""
    generator = np.random.default_rng(length)
    regions = int(0.4 * length)
    tokens = length - regions
    image = ImageRegions(made_regions(regions, ROW - 6, generator), regions, position=-1)
    examples = [
        Example(
            input_ids=generator.integers(1000, 30_000, tokens),
            token_type_ids=np.zeros(tokens, dtype=np.int64),
            regions=image,
            label_ids=np.array([3]),
            label_scores=np.ones(1, dtype=np.float32),
        )
        for _ in range(size)
    ]
    return collate(examples, pad_token_id=0, labels=soft_targets(examples, NUM_ANSWERS))


def step_costs(layers: int, device: torch.device) -> tuple[Curve, Curve]:
    """Samples a second by sequence length, and by batch size."""
    torch.manual_seed(0)
    model: Any = VinVLForAnswering(VinVLConfig(num_labels=NUM_ANSWERS, num_hidden_layers=layers)).train()
    model.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=5e-5, fused=True)

    def rate(length: int, size: int) -> float:
        batch, seconds = batch_of(length, size).to(device), 0.0
        for timed in (False, True):
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = model(**batch.inputs()).logits
            assert batch.labels is not None
            answer_loss(logits, batch.labels, "bce").backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start if timed else 0.0
        return size / seconds

    by_length = {length: rate(length, USUAL_BATCH) for length in LENGTHS}
    return by_length, {size: rate(USUAL_LENGTH, size) for size in BATCH_SIZES}


def feed_costs(sizes: list[int], folder: Path) -> Curve:
    """Samples a second of one core that makes batches, by the number of images in the store."""
    write_store(folder / "template.h5", 2)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    rates = {}
    for images in sizes:
        write_sparse_store(folder / "regions.h5", folder / "template.h5", np.arange(images).astype(bytes))
        files = write_questions(folder, 10 * ASKED_ABOUT, ASKED_ABOUT, every=images // ASKED_ABOUT)
        data = datamodule_of(folder, files, batch_size=128, workers=0)
        data.setup("fit")
        for _ in range(2):  # the first pass brings everything into memory
            start = time.process_time()
            samples = sum(len(batch) for batch in data.train_dataloader())
            rates[images] = samples / (time.process_time() - start)
        (folder / "regions.h5").unlink()
    return rates


def draw(curves: dict[str, Curve], machine: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.4), layout="constrained")
    for axis, (title, curve) in zip(axes, curves.items(), strict=True):
        axis.plot(list(curve), list(curve.values()), marker="o")
        axis.set(xlabel=title, ylabel="samples/s", xscale="log", ylim=(0, 1.15 * max(curve.values())))
        axis.set_xticks(list(curve), [f"{number:,}" for number in curve], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.suptitle(machine, fontsize=9)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)
    print(f"drawn: {PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    by_length, by_batch = step_costs(options.layers, device)
    with tempfile.TemporaryDirectory() as name:
        by_store = feed_costs(options.images, Path(name))
    curves = {
        f"positions a sample (training, batch {USUAL_BATCH})": by_length,
        f"samples a batch (training, {USUAL_LENGTH} positions)": by_batch,
        "images in the store (feed, one core)": by_store,
    }
    for title, curve in curves.items():
        print(title)
        for number, rate in curve.items():
            print(f"{number:>12,}{rate:>12,.2f} samples/s")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    draw(curves, f"{machine}, torch {torch.__version__}, {options.layers} layers")


if __name__ == "__main__":
    main()

"""Pairs per second of retrieval scoring: ours against fixed 70 + 70 padding, base size, on one machine in one run.

Images and captions are made up, of COCO-like lengths as in `vqa_step.py`: captions of about 12 tokens, 10 to 50 regions
an image (33 on average), a tag of one or two tokens for each region; with `--crowded` 10 to 70 regions (40 on average)
whose tags have 1.5 tokens on average. Both sides score the same pairs, and the scores are compared.

    python benchmarks/retrieval_scoring.py --threads 2
    python benchmarks/retrieval_scoring.py --device cuda --images 64 --captions 5000 --rows 256 --block 8
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from made_data import SPECIAL, made_regions, timed, whole_layers
from torch import Tensor

from vinvl.data.batch import Example, ImageRegions, collate
from vinvl.data.text import RaggedTokens
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.retrieval.data import caption_first
from vinvl.retrieval.scoring import PairScorer

MAX_TOKENS = MAX_REGIONS = 70
ROW_WIDTH = 2054


@dataclass
class Pairs:
    """Images and captions, every one to be scored with every other."""

    captions: list[np.ndarray]
    tags: list[np.ndarray]
    regions: list[Tensor]

    def images(self, start: int, count: int) -> "Pairs":
        """Some of the images, with all captions."""
        part = slice(start, start + count)
        return Pairs(self.captions, self.tags[part], self.regions[part])


def coco_like(images: int, captions: int, crowded: bool, generator: np.random.Generator, device: torch.device) -> Pairs:
    """Captions of 12 tokens on average, at least 7 as people write them."""
    lengths = 7 + generator.poisson(5, captions)
    counts = np.clip(generator.normal(33, 12, images), 10, 50).round().astype(int)
    second_tokens = 0.1  # share of the tags with two tokens
    if crowded:
        counts, second_tokens = np.linspace(10, MAX_REGIONS, images).round().astype(int), 0.5
    return Pairs(
        [generator.integers(1000, 30_000, length) for length in lengths],
        [generator.integers(1000, 30_000, count + generator.binomial(count, second_tokens)) for count in counts],
        [torch.from_numpy(generator.random((count, ROW_WIDTH), dtype=np.float32)).to(device) for count in counts],
    )


@dataclass
class Padded:
    """What the published data loader gives: every pair written out, 70 tokens and 70 regions long."""

    model: VinVLForAnswering
    pairs: Pairs
    rows: int

    def score(self) -> Tensor:
        """(I, C) differences of the logits; padding is prepared for `rows` captions of an image at a time."""
        device, scores = self.model.device, []
        none = ImageRegions(made_regions(0, ROW_WIDTH - 6, np.random.default_rng(0)), 0, position=-1)
        for tags, regions in zip(self.pairs.tags, self.pairs.regions, strict=True):
            features = torch.zeros((1, MAX_REGIONS, ROW_WIDTH), device=device)
            features[0, : len(regions)] = regions
            for start in range(0, len(self.pairs.captions), self.rows):
                chunk = self.pairs.captions[start : start + self.rows]
                texts = [caption_first(one, tags, max_tokens=MAX_TOKENS, special=SPECIAL) for one in chunk]
                # An empty example of the full length makes the batch as wide as the published one.
                full = np.zeros(MAX_TOKENS, dtype=np.int64)
                rows = [Example(ids, types, none) for ids, types in [*texts, (full, full)]]
                batch = collate(rows, pad_token_id=0).to(device)
                seen = (torch.arange(MAX_REGIONS, device=device) < len(regions)).expand(len(chunk), -1)
                logits = whole_layers(
                    self.model,
                    batch.input_ids[:-1],
                    batch.token_type_ids[:-1],
                    torch.cat([batch.attention_mask[:-1], seen], dim=1),
                    features.expand(len(chunk), -1, -1),
                ).float()
                scores.append(logits[:, 1] - logits[:, 0])
        return torch.cat(scores).view(len(self.pairs.tags), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=7)
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16, help="pairs in one forward pass")
    parser.add_argument("--block", type=int, default=1, help="images scored together; 8 in training runs")
    parser.add_argument("--crowded", action="store_true", help="more regions and longer tags")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = VinVLConfig(num_labels=2, num_hidden_layers=options.layers, loss_type="ce")
    model = VinVLForAnswering(config).eval().to(device)
    pairs = coco_like(options.images, options.captions, options.crowded, np.random.default_rng(0), device)
    offsets = np.insert(np.cumsum([len(one) for one in pairs.captions]), 0, 0)
    tokens = RaggedTokens(np.concatenate(pairs.captions).astype(np.int32), offsets)
    captions = np.arange(len(tokens))
    scorer = PairScorer(model, SPECIAL, MAX_TOKENS, options.rows)

    def ours(block: Pairs) -> Tensor:
        return scorer.score(block.tags, block.regions, tokens, captions)

    def fixed(block: Pairs) -> Tensor:
        return Padded(model, block, options.rows).score()

    def keep(scores: dict[str, Tensor], title: str, score: Callable[[Pairs], Tensor], block: Pairs) -> None:
        scores[title] = score(block)

    seconds = {"fixed 70 + 70": 0.0, "ours": 0.0}
    difference = 0.0
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    blocks = [pairs.images(start, options.block) for start in range(0, options.images, options.block)]
    with torch.inference_mode(), half:
        # The sides take turns, so that both meet the same state of the machine; the first block warms up.
        for number, block in enumerate([blocks[0], *blocks]):
            scores: dict[str, Tensor] = {}
            for title, score in (("fixed 70 + 70", fixed), ("ours", ours)):
                took = timed(partial(keep, scores, title, score, block), device)
                seconds[title] += took if number else 0.0
            difference = max(difference, float((scores["ours"] - scores["fixed 70 + 70"]).abs().max()))
    total = options.images * options.captions
    lengths = [np.minimum(len(one) + 3 + len(tags), 70) for one in pairs.captions for tags in pairs.tags]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{name}; torch {torch.__version__}; {options.images} images, {options.captions} captions, {total:,} pairs")
    print(f"positions a pair: fixed 140, ours {np.mean(lengths) + np.mean([len(one) for one in pairs.regions]):.1f}")
    for title, times in seconds.items():
        print(f"{title:<16}{total / times:10.2f} pairs/s")
    print(f"largest difference of the scores: {difference:.1e}")
    print(f"ratio ours / fixed: {seconds['fixed 70 + 70'] / seconds['ours']:.2f}")


if __name__ == "__main__":
    main()

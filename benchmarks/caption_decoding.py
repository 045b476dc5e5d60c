"""Captions of 20 tokens at base size, by steps whose shapes grow and by steps of fixed shapes: CUDA graphs on a GPU.

    python benchmarks/caption_decoding.py [--images 4] [--rounds 2] [--threads 2] [--device cpu] [--precision float32]
        [--searches beam sample train]

"beam" has 5 beams, "sample" draws 5 captions of each image, and "train" adds the gradients of their log-probabilities,
as self-critical training does: with gradients there are no graphs. Images have COCO-like lengths: 10 to 50 regions, a
tag of one or two tokens for each. Random weights, the end token held back until the last place, so that every caption
takes all its steps. bfloat16 is autocast. Rounds of the two ways take turns. Whether they wrote the same captions is
told; in bfloat16 near ties need not fall alike.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
from made_data import SPECIAL, timed
from torch import Tensor

from vinvl.models import VinVLConfig, VinVLForCaptioning
from vinvl.models.decoding import CaptionContext, DecodingOptions
from vinvl.models.generate import generate_captions
from vinvl.models.word_steps import StepGraphs

MAX_LENGTH, TAG_START, ROW, COUNT = 20, 40, 2054, 5
SAMPLE = {"sample": True, "num_return_sequences": COUNT}
SEARCHES: dict[str, dict[str, Any]] = {"beam": {"num_beams": COUNT}, "sample": SAMPLE, "train": SAMPLE}


def coco_like_context(images: int, rng: np.random.Generator, device: torch.device) -> CaptionContext:
    """Tags and regions of random content and COCO-like lengths."""
    regions = np.clip(rng.normal(33, 12, size=images), 10, 50).astype(int)
    tags = np.minimum(regions + rng.binomial(regions, 0.1), 29) + 1  # with [SEP]; 70 − 40 places
    tag_mask = torch.from_numpy(np.arange(tags.max()) < tags[:, None])
    region_mask = torch.from_numpy(np.arange(regions.max()) < regions[:, None])
    tag_ids = torch.from_numpy(rng.integers(1000, 30000, size=tag_mask.shape))
    context = CaptionContext(
        tag_ids=tag_ids,
        tag_position_ids=(TAG_START + torch.arange(int(tags.max()))).expand(images, -1),
        tag_token_type_ids=torch.ones_like(tag_ids),
        tag_mask=tag_mask,
        region_features=torch.from_numpy(rng.normal(size=(*region_mask.shape, ROW)).astype(np.float32)),
        region_mask=region_mask,
    )
    return CaptionContext(**{name: value.to(device) for name, value in vars(context).items()})


def decode(
    model: VinVLForCaptioning, context: CaptionContext, search: str, graphs: StepGraphs | None, half: bool
) -> Tensor:
    """The captions (B, n, length)."""
    options = DecodingOptions(max_length=MAX_LENGTH, min_length=MAX_LENGTH, **SEARCHES[search])
    device = context.device
    drawn, train = torch.Generator(device).manual_seed(0), search == "train"
    with torch.inference_mode(not train), torch.autocast(device.type, torch.bfloat16, enabled=half):
        found = generate_captions(model, context, options, special=SPECIAL, generator=drawn, graphs=graphs)
    if train:
        model.zero_grad()
        found.log_probs.mean().backward()
    return found.ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=4, help="images decoded together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=["beam"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, images = torch.device(arguments.device), arguments.images
    model = (
        VinVLForCaptioning(VinVLConfig(num_hidden_layers=arguments.layers, initializer_range=0.05)).eval().to(device)
    )
    context = coco_like_context(images, np.random.default_rng(0), device)
    print(f"{images} images, {MAX_LENGTH} tokens, {arguments.layers} layers, {device}, {arguments.precision}")
    half = arguments.precision == "bfloat16"
    for search in arguments.searches:
        graphs: list[StepGraphs | None] = [None] if search == "train" else [None, StepGraphs()]
        ways = [partial(decode, model, context, search, one, half) for one in graphs]
        written = [way() for way in ways]  # warms up, and captures
        rounds = [[timed(way, device) for way in ways] for _ in range(arguments.rounds)]
        rates = [images * (COUNT if search != "beam" else 1) / min(seconds) for seconds in zip(*rounds, strict=True)]
        told = " and ".join(f"{rate:.3f}" for rate in rates) + f" captions/s (best of {arguments.rounds})"
        if len(rates) == 2:
            alike = torch.equal(*written)
            told = f"growing and fixed shapes {told}, ratio {rates[1] / rates[0]:.3f}, same captions: {alike}"
        print(f"{search}: {told}")


if __name__ == "__main__":
    main()

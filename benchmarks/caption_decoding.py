"""Beam-5 captions of 20 tokens at base size.

    python benchmarks/caption_decoding.py [--images 4] [--rounds 2] [--threads 2] [--device cpu]

Images have COCO-like lengths: 10 to 50 regions, a tag of one or two tokens for each. Random weights, the end token held
back until the last place, so that every caption takes all its steps. float32 on a CPU, bfloat16 (autocast) on a GPU.
"""

import argparse

import numpy as np
import torch
from made_data import SPECIAL, timed

from vinvl.models import VinVLConfig, VinVLForCaptioning
from vinvl.models.decoding import CaptionContext, DecodingOptions
from vinvl.models.generate import generate_captions

MAX_LENGTH, TAG_START, ROW = 20, 40, 2054


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=4, help="images decoded together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    config = VinVLConfig(num_hidden_layers=arguments.layers, initializer_range=0.05)
    model = VinVLForCaptioning(config).eval().to(device)
    options = DecodingOptions(max_length=MAX_LENGTH, min_length=MAX_LENGTH, num_beams=5)
    context = coco_like_context(arguments.images, np.random.default_rng(0), device)

    @torch.inference_mode()
    def decode() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            generate_captions(model, context, options, special=SPECIAL)

    decode()  # warms up
    seconds = min(timed(decode, device) for _ in range(arguments.rounds))
    print(f"{arguments.images} images, 5 beams, {MAX_LENGTH} tokens, {arguments.layers} layers, {device}")
    print(f"{arguments.images / seconds:.3f} captions/s (best of {arguments.rounds})")


if __name__ == "__main__":
    main()

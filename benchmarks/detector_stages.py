"""The detector stage by stage on a picture of 600 × 900, at full size with random weights: seconds an image.

    python benchmarks/detector_stages.py [--rounds 1] [--proposals 300] [--threads 2] [--device cpu]
        [--half] [--contiguous]

The picture is noise in a JPEG. Class scores are made as sharp as a trained detector's, so that suppression has the work
that it has there. --half runs backbone, RPN and C5 head in bfloat16, --contiguous leaves out the channels-last memory
that `load_detector` gives. Attributes are read off proposals' own vectors or off 36 refined boxes, both are shown.
"""

import argparse
import io
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from vinvl.detection import Detector, DetectorConfig, network_input, pad_batch

Result = TypeVar("Result")
REFINED = 36  # boxes that attributes are read off


class Stopwatch:
    """Seconds by stage; on a GPU a stage ends when the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result


def noise_jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, size=(600, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((900, 600)).save(file, "JPEG")
    return file.getvalue()


def one_image(detector: Detector, jpeg: bytes, watch: Stopwatch, memory_format: torch.memory_format) -> None:
    """Every stage of one image; what a stage takes is what the one before made."""
    config = detector.config
    tensor = watch("decode, resize", lambda: network_input(Image.open(io.BytesIO(jpeg)), config))
    batch, sizes = pad_batch([tensor], 32)
    batch = batch.to(watch.device).contiguous(memory_format=memory_format)
    extractor = detector.roi_heads.box.feature_extractor
    c4 = watch("backbone", lambda: detector.backbone(batch))
    proposals = watch("RPN, its NMS", lambda: detector.propose(c4, sizes))
    vectors = watch("RoIAlign, C5", lambda: extractor(c4, proposals, config.boxes_per_pass))
    sharp = torch.randn(len(vectors), vectors.shape[1], device=watch.device)
    selections, boxes = watch("classes, NMS", lambda: detector.classify(sharp, proposals, sizes))
    few = [of_image[:REFINED] for of_image in boxes]
    watch(f"RoIAlign, C5 of {REFINED} refined boxes", lambda: extractor(c4, few, config.boxes_per_pass))
    watch("attributes", lambda: detector.attribute.predictor(vectors[: len(boxes[0])].float(), selections[0].labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=1, help="measured images, after one that warms up on a GPU")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--contiguous", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    memory_format = torch.contiguous_format if arguments.contiguous else torch.channels_last
    detector = Detector(DetectorConfig(rpn_proposals=arguments.proposals)).eval().to(device)
    torch.nn.init.normal_(detector.roi_heads.box.predictor.cls_score.weight, std=0.15)
    detector.to(memory_format=memory_format)  # type: ignore[call-overload]
    jpeg = noise_jpeg()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=arguments.half):
        if device.type == "cuda":
            one_image(detector, jpeg, Stopwatch(device), memory_format)
        watch = Stopwatch(device)
        for _ in range(arguments.rounds):
            one_image(detector, jpeg, watch, memory_format)
    for stage, seconds in watch.seconds.items():
        print(f"{stage:35} {min(seconds):8.3f} s")
    print(f"{'sum':35} {sum(min(seconds) for seconds in watch.seconds.values()):8.3f} s")


if __name__ == "__main__":
    main()

"""From a picture to its regions, stage by stage, at full size with random weights: seconds an image, and the ratio.

    python benchmarks/extraction.py [--pictures 2] [--rounds 1] [--batch-size 1] [--size 900 600] [--threads 2]
        [--device cpu] [--half] [--compile] [--only-ours]

The pictures are noise in JPEGs. Class scores are made as sharp as a trained detector's, so that suppression has the
work that it has there, and the 36 best regions are kept. Ours is what `vinvl.extract` runs: channels-last memory, norms
within the convolutions, the C5 head's first convolutions once over the map. Compared with the same weights used as
the published code uses them: contiguous memory, norms by themselves, regions pooled before they are convolved. Pooling
and suppression are ours in both; the published code has them in C++. Both find the same regions. --half runs the
networks in bfloat16, only ours.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
import torch
from made_data import timed
from PIL import Image
from torch import Tensor, nn

from vinvl.detector import DetectedRegions, Detector, DetectorConfig, networks
from vinvl.detector.boxes import box_bins
from vinvl.detector.detector import normalised, pad_batch, resized_pixels
from vinvl.detector.networks import FrozenBatchNorm2d, RegionFeatures, RegionMaps
from vinvl.extraction.run import store_regions
from vinvl.pictures import ReadingOptions, read_picture
from vinvl.regions import LabelMap, RegionStoreWriter

Result = TypeVar("Result")
STAGES = ("decode, resize", "backbone", "RPN, its NMS", "RoIAlign, C5 head", "classes, NMS", "attributes", "write")


class Stopwatch:
    """Seconds by stage; on a GPU a stage ends when the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        results: list[Result] = []
        self.seconds.setdefault(stage, []).append(timed(lambda: results.append(work()), self.device))
        return results[0]


def noise_jpegs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def sharp_detector(device: torch.device) -> Detector:
    """Random weights, but class scores as peaked as a trained detector's."""
    torch.manual_seed(0)
    detector = Detector(DetectorConfig(pad_multiple=32, max_boxes=36)).eval().requires_grad_(False)
    with torch.no_grad():
        for name, module in detector.named_modules():
            if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
                module.get_buffer("weight").fill_(0.3)  # so that 152 layers of random weights do not explode
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        predictor = detector.roi_heads.box.predictor
        nn.init.normal_(predictor.cls_score.weight, std=0.05)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.001)
        predictor.cls_score.bias[0] = 6.0
    return detector.to(device)


def one_batch(
    detector: Detector, paths: list[Path], watch: Stopwatch, writer: RegionStoreWriter, number: int
) -> list[DetectedRegions]:
    """Every stage of some pictures; what a stage takes is what the one before made."""
    config, features = detector.config, detector.roi_heads.box.feature_extractor
    reading = ReadingOptions()

    def read() -> tuple[list[Tensor], list[tuple[int, int]]]:
        pictures = [read_picture(path, reading) for path in paths]
        return [resized_pixels(picture, config) for picture in pictures], [picture.size for picture in pictures]

    def backbone() -> tuple[Tensor, list[tuple[int, int]]]:
        batch, sizes = pad_batch([normalised(one.to(detector.device)) for one in pixels], config.pad_multiple)
        if detector.rpn.head.conv.weight.is_contiguous(memory_format=torch.channels_last):
            batch = batch.contiguous(memory_format=torch.channels_last)
        return detector.backbone(batch), sizes

    def regions() -> tuple[RegionMaps, Tensor]:
        maps = features.projections(c4)
        return maps, features.of_boxes(maps, proposals, config.boxes_per_pass).float()

    def write() -> None:
        for index, one in enumerate(found):
            writer.add(store_regions(f"{number}-{index}", one, torch.float16))

    pixels, original_sizes = watch("decode, resize", read)
    c4, sizes = watch("backbone", backbone)
    proposals = watch("RPN, its NMS", lambda: detector.propose(c4, sizes).boxes)
    maps, vectors = watch("RoIAlign, C5 head", regions)
    selections = watch("classes, NMS", lambda: detector.classify(vectors, proposals, sizes))
    of_images = zip(vectors.split([len(one) for one in proposals]), selections, strict=True)
    chosen = [of_image[kept.proposals] for of_image, kept in of_images]
    attributes = watch("attributes", lambda: detector.describe(maps, chosen, selections))
    found = [
        DetectedRegions(
            selections[i].boxes, selections[i].boxes, selections[i].labels, selections[i].scores, chosen[i],
            attributes[i][0], attributes[i][1], original_sizes[i],
        )
        for i in range(len(paths))
    ]  # fmt: skip
    watch("write", write)
    return found


def separate_norm(features: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    result: Tensor = norm(convolution(features))
    return result


def maps_alone(features: RegionFeatures, c4: Tensor) -> RegionMaps:
    return c4, c4


def pooled_first(features: RegionFeatures, maps: RegionMaps, boxes: Tensor, images: Tensor) -> Tensor:
    c5: Tensor = features.head(box_bins(boxes, images, maps[0]).pool(maps[0]))
    return c5.mean(dim=(2, 3))


@contextmanager
def as_published() -> Iterator[None]:
    with (
        mock.patch.object(networks, "normalised_convolution", separate_norm),
        mock.patch.object(RegionFeatures, "projections", maps_alone),
        mock.patch.object(RegionFeatures, "_of_one_pass", pooled_first),
    ):
        yield


def measure(detector: Detector, batches: list[list[Path]], folder: Path, half: bool, rounds: int) -> Stopwatch:
    """The fastest of some rounds counts; on a GPU one before warms up."""
    device = detector.device
    label_map = LabelMap((), ())
    watch = Stopwatch(device)
    with (
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=half),
        RegionStoreWriter(
            folder / "f.h5", feature_dim=2048, detector="benchmark", label_map=label_map, num_attributes=16
        ) as writer,
    ):
        if device.type == "cuda":
            one_batch(detector, batches[0], Stopwatch(device), writer, -1)
        for number in range(rounds):
            for index, batch in enumerate(batches):
                found = one_batch(detector, batch, watch, writer, number * len(batches) + index)
    print(f"{np.mean([len(one) for one in found]):.0f} regions an image", flush=True)
    return watch


def table(columns: dict[str, Stopwatch], batch_size: int) -> None:
    """Medians a picture, and the ratio of the columns."""
    print(f"{'seconds an image':20}" + "".join(f"{name:>14}" for name in columns))
    sums = dict.fromkeys(columns, 0.0)
    for stage in STAGES:
        values = {name: float(np.median(watch.seconds[stage])) / batch_size for name, watch in columns.items()}
        sums = {name: sums[name] + value for name, value in values.items()}
        print(f"{stage:20}" + "".join(f"{value:14.3f}" for value in values.values()))
    print(f"{'sum':20}" + "".join(f"{value:14.3f}" for value in sums.values()))
    print(f"{'images/s':20}" + "".join(f"{1 / value:14.3f}" for value in sums.values()))
    if len(sums) > 1:
        theirs, ours = sums.values()
        print(f"ratio: {theirs / ours:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(900, 600), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--half", action="store_true", help="the networks in bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only-ours", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = sharp_detector(torch.device(arguments.device))
    columns: dict[str, Stopwatch] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = noise_jpegs(folder, arguments.pictures, *arguments.size)
        batches = [paths[i : i + arguments.batch_size] for i in range(0, len(paths), arguments.batch_size)]
        if not arguments.only_ours:
            with as_published():
                columns["as published"] = measure(detector, batches, folder, False, arguments.rounds)
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if arguments.compile:
            detector.compile_networks(dynamic=False)
            measure(detector, batches[:1], folder, arguments.half, 1)
        columns["ours"] = measure(detector, batches, folder, arguments.half, arguments.rounds)
    table(columns, arguments.batch_size)


if __name__ == "__main__":
    main()

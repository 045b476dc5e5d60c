"""From a picture to its regions at full size with random weights: stage by stage, and as `vinvl.extract` runs it.

    python benchmarks/extraction.py [--ways published,ours] [--pictures 2] [--batch-size 1] [--size 900 600]
        [--device cpu] [--threads 2] [--workers 2] [--peak TFLOPS] [--stream N]

The pictures are noise in JPEGs. Class scores are made as sharp as a trained detector's, so that suppression has the
work that it has there, and the 36 best regions are kept. A way is one of two with what is changed of it, joined by `+`:

    published    the same weights as the published code uses them: contiguous memory, norms by themselves, regions
                 pooled before they are convolved; pooling and suppression are ours (there they are C++ and loops)
    ours         what `vinvl.extract` runs: channels-last, norms within convolutions, C5's first ones once over the map
    +half        networks in bfloat16; tells how much regions differ from those in float32
    +contiguous  without channels-last
    +compiled    `compile=true`

Each stage is timed alone, on a CPU in processor seconds divided by threads. Its share of the matrix rate is that of
--peak, or of a large product of this run. --stream N sends so many pictures through the loop of `vinvl.extract`, where
decoding, the device and writing overlap: pictures a second from the second batch to the last.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
from made_data import timed
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vinvl.detector import DetectedRegions, Detector, DetectorConfig, networks
from vinvl.detector.boxes import box_bins, iou
from vinvl.detector.detector import normalised, pad_batch, resized_pixels
from vinvl.detector.networks import FrozenBatchNorm2d, RegionFeatures, RegionMaps
from vinvl.extraction.feed import FeedOptions, PictureFeed
from vinvl.extraction.provenance import Target
from vinvl.extraction.run import DetectionModule, Recorder, store_regions
from vinvl.pictures import PictureNames, ReadingOptions, find_pictures, read_picture
from vinvl.regions import LabelMap, RegionStoreWriter
from vinvl.regions.regions import StoreAttributes

Result = TypeVar("Result")
WARM_UP = 2  # batches of a stream that are not counted


class Stopwatch:
    """Seconds and operations by stage, of each batch; a stage within another is taken from that."""

    def __init__(self, device: torch.device, counts: bool = False) -> None:
        self.device, self.counts = device, counts
        self.batches: list[dict[str, float]] = []
        self.operations: dict[str, int] = {}
        self._within = [0.0, 0.0]

    def __call__(self, stage: str, work: Callable[[], Result]) -> Result:
        results: list[Result] = []
        outside, self._within = self._within, [0.0, 0.0]
        with FlopCounterMode(display=False) if self.counts else nullcontext() as counter:
            seconds = self._timed(lambda: results.append(work()))
        operations = 0 if counter is None else counter.get_total_flops()
        of_stage = self.batches[-1]
        of_stage[stage] = of_stage.get(stage, 0.0) + seconds - self._within[0]
        self.operations[stage] = self.operations.get(stage, 0) + operations - int(self._within[1])
        self._within = [outside[0] + seconds, outside[1] + operations]
        return results[0]

    def _timed(self, work: Callable[[], object]) -> float:
        if self.device.type != "cpu":
            return timed(work, self.device)
        start = time.process_time()
        work()
        return (time.process_time() - start) / torch.get_num_threads()

    def seconds(self, stage: str) -> float:
        return float(np.median([one.get(stage, 0.0) for one in self.batches]))


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


def one_batch(detector: Detector, paths: list[Path], watch: Stopwatch, writer: RegionStoreWriter, number: int) -> int:
    """Every stage of some pictures, what a stage takes is what the one before made; how many regions were found."""
    config, features, device = detector.config, detector.roi_heads.box.feature_extractor, detector.device
    watch.batches.append({})
    layout = torch.channels_last if channels_last(detector) else torch.contiguous_format

    def inner(stage: str, owner: object, name: str) -> Any:
        function = getattr(owner, name)
        return mock.patch.object(owner, name, lambda *given: watch(stage, lambda: function(*given)))

    def regions() -> tuple[RegionMaps, Tensor]:
        maps = features.projections(c4)
        return maps, features.of_boxes(maps, proposals, config.boxes_per_pass).float()

    def write() -> None:
        for index, one in enumerate(on_host):
            writer.add(store_regions(f"{number}-{index}", one, torch.float16))

    pictures = watch("decode", lambda: [read_picture(path, ReadingOptions()) for path in paths])
    pixels = watch("resize", lambda: [resized_pixels(picture, config) for picture in pictures])
    there = watch("copy to the device", lambda: [one.to(device) for one in pixels])
    batch, sizes = watch("normalise", lambda: pad_batch(list(map(normalised, there)), config.pad_multiple))
    c4 = watch("backbone", lambda: detector.backbone(batch.contiguous(memory_format=layout)))
    with inner("RPN", detector.rpn, "forward"):
        proposals = watch("NMS of proposals", lambda: detector.propose(c4, sizes).boxes)
    maps, vectors = watch("RoIAlign, C5 head", regions)
    predictor = detector.roi_heads.box.predictor
    layers = "class and box layers"
    with inner(layers, predictor, "class_logits"), inner(layers, predictor, "box_deltas"):
        selections = watch("NMS of classes", lambda: detector.classify(vectors, proposals, sizes))
    of_images = zip(vectors.split([len(one) for one in proposals]), selections, strict=True)
    chosen = [of_image[kept.proposals] for of_image, kept in of_images]
    attributes = watch("attributes, C5 again", lambda: detector.describe(maps, chosen, selections))
    found = [
        DetectedRegions(
            kept.boxes, kept.boxes, kept.labels, kept.scores, chosen[i], *attributes[i], pictures[i].size
        )
        for i, kept in enumerate(selections)
    ]  # fmt: skip
    on_host = watch("copy back", lambda: [one.on_host() for one in found])
    watch("write", write)
    return sum(map(len, found))


def separate_norm(features: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    result: Tensor = norm(convolution(features))
    return result


def maps_alone(features: RegionFeatures, c4: Tensor) -> RegionMaps:
    return c4, c4


def pooled_first(features: RegionFeatures, maps: RegionMaps, boxes: Tensor, images: Tensor, waiting: bool) -> Tensor:
    c5: Tensor = features.head(box_bins(boxes, images, maps[0], waiting=waiting).pool(maps[0]))
    return c5.mean(dim=(2, 3))


@contextmanager
def as_published() -> Iterator[None]:
    with (
        mock.patch.object(networks, "normalised_convolution", separate_norm),
        mock.patch.object(RegionFeatures, "projections", maps_alone),
        mock.patch.object(RegionFeatures, "_of_one_pass", pooled_first),
    ):
        yield


def channels_last(detector: Detector) -> bool:
    return detector.rpn.head.conv.weight.is_contiguous(memory_format=torch.channels_last)


def detector_of(way: str, device: torch.device) -> Detector:
    detector = sharp_detector(device)
    if not {"published", "contiguous"} & set(way.split("+")):
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if way.endswith("compiled"):
        detector.compile_networks(dynamic=True)
    return detector


def computing(way: str, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled="half" in way.split("+"))


def measure(way: str, detector: Detector, batches: list[list[Path]], folder: Path, rounds: int) -> Stopwatch:
    """All batches `rounds` times; one before counts operations and makes what is made once."""
    device = detector.device
    watch, counting = Stopwatch(device), Stopwatch(device, counts=not way.endswith("compiled"))
    options: dict[str, Any] = {
        "feature_dim": 2048,
        "detector": "benchmark",
        "label_map": LabelMap((), ()),
        "num_attributes": 16,
    }
    with torch.no_grad(), computing(way, device), RegionStoreWriter(folder / "f.h5", **options) as writer:
        one_batch(detector, batches[0], counting, writer, -1)
        found = [
            one_batch(detector, batch, watch, writer, number * len(batches) + index)
            for number in range(rounds)
            for index, batch in enumerate(batches)
        ]
    watch.operations = counting.operations
    print(f"{way}: {sum(found) / sum(map(len, batches)) / rounds:.0f} regions a picture", flush=True)
    return watch


def matrix_rate(device: torch.device, half: bool) -> float:
    """Operations a second of a large product, as stages are timed."""
    size = 8192 if device.type == "cuda" else 2048
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    watch = Stopwatch(device)
    for _ in range(4):
        watch.batches.append({})
        watch("product", lambda: left @ left)
    return float(2 * size**3 / min(one["product"] for one in watch.batches[1:]))


def table(way: str, watch: Stopwatch, batch_size: int, rate: float) -> float:
    """Medians a picture; returns their sum."""
    total = sum(watch.seconds(stage) for stage in watch.batches[0])
    print(f"{way:24} ms a picture  share  TFLOP a picture  of {rate / 1e12:.3g} TFLOP/s")
    for stage in [*watch.batches[0], "sum"]:
        seconds = total if stage == "sum" else watch.seconds(stage)
        operations = sum(watch.operations.values()) if stage == "sum" else watch.operations.get(stage, 0)
        counted = f"{operations / batch_size / 1e12:17.3f}{operations / seconds / rate:18.2f}"
        counted = counted if operations > 1e9 else ""
        print(f"  {stage:22}{1000 * seconds / batch_size:13.2f}{seconds / total:7.3f}{counted}")
    print(f"  one stage after the other: {batch_size / total:.3f} pictures/s", flush=True)
    return total / batch_size


def agreement(detector: Detector, paths: list[Path]) -> None:
    """How regions in bfloat16 differ from those in float32."""
    images = [read_picture(path, ReadingOptions()) for path in paths]
    whole = detector.detect(images)
    boxes = [torch.cat([one.boxes[:, :2], one.boxes[:, 2:].maximum(one.boxes[:, :2])], dim=1) for one in whole]
    with torch.autocast(detector.device.type, torch.bfloat16):
        half, given = detector.detect(images), detector.detect(images, boxes)
    exact = detector.detect(images, boxes)
    cosines = torch.cat(
        [torch.cosine_similarity(one.features, other.features) for one, other in zip(given, exact, strict=True)]
    )
    same = []
    for one, other in zip(whole, half, strict=True):
        alike = (iou(one.boxes, other.boxes) > 0.7) & (one.labels[:, None] == other.labels)
        same += alike.any(dim=1).tolist()
    print(
        f"bfloat16 against float32: features of the same {len(cosines)} boxes have a cosine of {cosines.mean():.5f} "
        f"on average, {cosines.min():.5f} at least; {sum(same)} of {len(same)} regions are found with their class at "
        "an IoU above 0.7",
        flush=True,
    )


class Arrivals(pl.Callback):
    """When each batch's `on_predict_batch_end` was."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_predict_batch_end(self, *given: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


def stream(way: str, detector: Detector, folder: Path, arguments: argparse.Namespace) -> None:
    """Pictures through the loop of `vinvl.extract`."""
    pictures = find_pictures(folder / "stream", PictureNames())
    options = FeedOptions(ReadingOptions(), arguments.batch_size, workers=arguments.workers)
    attributes = StoreAttributes(2048, np.dtype("<f2"), 16, "benchmark", LabelMap((), ()))
    target, arrivals = Target(folder / f"{way}.h5", {}, overwrite=True), Arrivals()
    recorder = Recorder(target, attributes, total=len(pictures), done=0, shard_seconds=60.0)
    trainer = pl.Trainer(
        accelerator="gpu" if detector.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if "half" in way.split("+") else "32-true",
        callbacks=[recorder, arrivals],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    make_feed = partial(PictureFeed, pictures, set[str]().__contains__, detector.config, options)
    trainer.predict(DetectionModule(detector, make_feed), return_predictions=False)
    (began, used), (ended, used_then) = arrivals.times[WARM_UP - 1], arrivals.times[-1]
    counted = len(pictures) - WARM_UP * arguments.batch_size
    print(
        f"{way}: the loop of vinvl.extract, decoding and writing included: {counted / (ended - began):.2f} pictures/s, "
        f"{1000 * (used_then - used) / counted:.1f} ms of this process's processor time a picture",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ways", default="published,ours", help="such as published,ours+half,ours+half+compiled")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(900, 600), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", type=float, help="matrix rate in TFLOP/s; measured where it is not given")
    parser.add_argument("--stream", type=int, default=0, help="pictures through the loop of vinvl.extract")
    parser.add_argument("--workers", type=int, default=2, help="of that loop, which read and resize")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, sums = torch.device(arguments.device), dict[str, float]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = noise_jpegs(folder, arguments.pictures, *arguments.size)
        batches = [paths[i : i + arguments.batch_size] for i in range(0, len(paths), arguments.batch_size)]
        (folder / "stream").mkdir()
        for number in range(arguments.stream):
            (folder / "stream" / f"{number}.jpg").hardlink_to(paths[number % len(paths)])
        for way in arguments.ways.split(","):
            half = "half" in way.split("+")
            rate = arguments.peak * 1e12 if arguments.peak else matrix_rate(device, half)
            detector = detector_of(way, device)
            with as_published() if way.startswith("published") else nullcontext():
                watch = measure(way, detector, batches, folder, arguments.rounds)
                sums[way] = table(way, watch, arguments.batch_size, rate)
                if half:
                    agreement(detector, batches[0])
                if arguments.stream:
                    stream(way, detector, folder, arguments)
    first, *others = sums
    for way in others:
        print(f"{way}: {sums[first] / sums[way]:.2f} times {first}'s pictures/s, one stage after the other")


if __name__ == "__main__":
    main()

"""A training step of VinVL's detector at full size, and what the two recipes come to from it: seconds, memory, days.

    python benchmarks/detector_step.py [--pictures 1] [--sides 448 640 800] [--steps 2] [--threads 2]
        [--device cpu] [--half]

Random weights and made objects (30 a picture of 4:3, at most 1333 pixels), the settings of detection_recipe=
detector_foursets: 384 regions, 2,000 proposals, stem, first stage and norms frozen. A step is forward, losses, backward
and SGD; reading pictures is not in it.
"""

import argparse
import resource
import statistics

import torch
from made_data import timed

from vinvl.detector import Detector, DetectorConfig
from vinvl.detector.config import TrainingSettings
from vinvl.detector.detector import pad_batch
from vinvl.detector.losses import Objects, detector_losses
from vinvl.detector.starting import freeze_stages, initialise

OBJECTS = 30
UPDATES = {
    "detector_foursets, as in its config": 300_000,
    "as in the paper": 1_800_000,
    "detector_vg_attributes": 90_000,
}
BATCH = 16  # pictures an update


def objects(height: int, width: int, generator: torch.Generator) -> Objects:
    corners = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width * 0.7, height * 0.7])
    sides = 20 + torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width * 0.25, height * 0.25])
    labels = torch.randint(1, 1595, (OBJECTS,), generator=generator)
    return Objects(torch.cat([corners, corners + sides], dim=1), labels, torch.zeros(OBJECTS, 1, dtype=torch.int64))


def step_seconds(detector: Detector, side: int, pictures: int, steps: int, half: bool) -> float:
    """Median of some steps, one before them not counted."""
    device, generator = detector.device, torch.Generator().manual_seed(side)
    width = min(1333, round(side * 4 / 3))
    images = [torch.randn(3, side, width, generator=generator) * 50 for _ in range(pictures)]
    batch, sizes = pad_batch([one.to(device) for one in images], 32)
    targets = [Objects(*(part.to(device) for part in objects(side, width, generator))) for _ in range(pictures)]
    settings = TrainingSettings(region_samples=384, region_positive_fraction=0.5)
    learnt = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=1e-5, momentum=0.9)
    drawn = torch.Generator(device).manual_seed(0)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            losses = detector_losses(detector, batch, sizes, targets, settings, drawn)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return statistics.median([timed(step, device) for _ in range(steps + 1)][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=1, help="a step (default: 1)")
    parser.add_argument("--sides", type=int, nargs="+", default=[448, 640, 800], help="shorter sides, in pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="networks in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    detector = Detector(DetectorConfig())
    initialise(detector, torch.Generator().manual_seed(0))
    freeze_stages(detector, 2)
    detector.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {}
    for side in options.sides:
        found[side] = step_seconds(detector, side, options.pictures, options.steps, options.half) / options.pictures
        print(f"shorter side {side}: {found[side]:.2f} s a picture", flush=True)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        most = torch.cuda.max_memory_allocated() / 2**30
    print(f"most memory: {most:.1f} GiB")
    each = statistics.mean(found.values())
    for what, updates in UPDATES.items():
        days = each * BATCH * updates / 86_400
        print(f"{what}, {updates:,} updates of {BATCH}: {days:,.1f} days of one such device ({each:.2f} s a picture)")


if __name__ == "__main__":
    main()

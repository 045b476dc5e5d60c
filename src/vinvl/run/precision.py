"""`trainer.precision=auto`: the precision that this device computes faster in, measured where that is not known."""

from __future__ import annotations

import time

import torch

from vinvl.run.errors import UserError
from vinvl.run.machine import cpu_has_bfloat16

AUTO, WHOLE, HALF = "auto", "32-true", "bf16-mixed"
TIMES = 3  # the fastest counts
CLEARLY = 0.8  # of the time in float32: bfloat16 is less exact, so it must be worth it


def choose(accelerator: str, processes: int = 1) -> tuple[str, str]:
    """WHOLE or HALF, and why, for a person.

    Args:
        accelerator: as Lightning names it; "auto" is the GPU if there is one.
        processes: that share the work, and must compute alike.

    Raises:
        UserError: several processes, each of which would have to measure.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return HALF, "the GPU computes in bfloat16"
        return WHOLE, "the GPU cannot compute in bfloat16"
    if not cpu_has_bfloat16():
        return WHOLE, "this CPU has no fast bfloat16 (AVX512-BF16 or AMX)"
    if processes > 1:
        raise UserError(
            f"trainer.precision={AUTO} measures in each process, and {processes} share these pictures and must compute "
            f"alike: give {WHOLE} or {HALF}."
        )
    share = time_of(torch.bfloat16) / time_of(torch.float32)
    return HALF if share < CLEARLY else WHOLE, f"bfloat16 takes {share:.2f} of float32's time on this CPU"


@torch.no_grad()
def time_of(dtype: torch.dtype) -> float:
    """Seconds of a convolution of some 10 ms, as the detector has them by the hundred."""
    cells = torch.ones(1, 512, 38, 56, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(512, 512, 1, 1, dtype=dtype)
    seconds = []
    for _ in range(1 + TIMES):  # the first one has things to make
        start = time.perf_counter()
        torch.nn.functional.conv2d(cells, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

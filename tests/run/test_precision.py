"""`trainer.precision=auto`: what is chosen on which machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vinvl.run import precision
from vinvl.run.errors import UserError


@pytest.mark.parametrize(("half", "chosen"), [(0.5, "bf16-mixed"), (0.9, "32-true"), (3.0, "32-true")])
def test_a_cpu_that_has_bfloat16_is_measured(monkeypatch: pytest.MonkeyPatch, half: float, chosen: str) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "time_of", lambda dtype: half if dtype == torch.bfloat16 else 1.0)
    assert precision.choose("cpu") == (chosen, f"bfloat16 takes {half:.2f} of float32's time on this CPU")
    with pytest.raises(UserError, match=r"2 share these pictures.*give 32-true or bf16-mixed"):
        precision.choose("cpu", processes=2)


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_without_is_not(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for one in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, one, lambda: False, raising=False)
    monkeypatch.setattr(precision, "time_of", lambda _: pytest.fail("was measured"))
    assert precision.choose("cpu", processes=2) == ("32-true", "this CPU has no fast bfloat16 (AVX512-BF16 or AMX)")
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert precision.cpu_has_bfloat16()


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, supported: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert precision.choose("auto", processes=8)[0] == chosen


def test_the_fastest_of_some_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = iter([0, 100, 100, 105, 105, 108, 108, 112])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert precision.time_of(torch.float32) == 3

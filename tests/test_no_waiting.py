"""Nothing in a training step asks the device for a number: the host would wait for all that is queued there."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.door_in_process import TINY, run_in_process
from vinvl.task import VinVLTask

ASKING = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2", "retrieval", "captioning", "pretraining"])
def test_no_step_waits_for_the_device(
    task: str, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    within: list[bool] = [False]
    steps: list[int] = []
    for name in ASKING:
        method = getattr(Tensor, name)

        def asking(tensor: Tensor, *arguments: Any, _method: Any = method, _name: str = name, **options: Any) -> Any:
            frames = traceback.extract_stack()[:-1]
            # Optimisers count their steps in tensors on the host, and data are made there.
            files = " ".join(frame.filename for frame in frames)
            if within[0] and not any(part in files for part in ("torch/optim", "vinvl/data/", "/data.py")):
                asked.append(f"{_name}: " + "".join(traceback.format_list(frames[-12:])))
            return _method(tensor, *arguments, **options)

        monkeypatch.setattr(Tensor, name, asking)
    begin = VinVLTask.on_train_batch_start

    def start(self: VinVLTask, batch: Any, batch_idx: int) -> None:
        begin(self, batch, batch_idx)
        within[0] = batch_idx == 1  # the first step makes things, and the last one is followed by evaluation
        steps.append(batch_idx)

    monkeypatch.setattr(VinVLTask, "on_train_batch_start", start)
    short = ["trainer.max_steps=3", "trainer.log_every_n_steps=1000", "test_after_fit=false", "data.num_workers=0"]
    run_in_process("train", demo_data, tmp_path / "run", f"task={task}", *TINY, *short, "trainer.limit_val_batches=0")
    assert len(steps) == 3
    assert asked == [], "\n".join(asked)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU there is nothing to wait for")
@pytest.mark.parametrize("cache", ["null", "device"])
@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2", "retrieval", "captioning", "pretraining"])
def test_no_step_waits_for_a_gpu(
    task: str, cache: str, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA itself tells it: of a whole step, with what comes before and after it."""
    begin = VinVLTask.on_train_batch_start
    steps: list[int] = []

    def start(self: VinVLTask, batch: Any, batch_idx: int) -> None:
        begin(self, batch, batch_idx)
        steps.append(batch_idx)
        torch.cuda.set_sync_debug_mode("error" if batch_idx in (2, 3) else "default")

    monkeypatch.setattr(VinVLTask, "on_train_batch_start", start)
    short = ["trainer.max_epochs=9", "trainer.max_steps=5", "trainer.log_every_n_steps=1000", "test_after_fit=false"]
    on_gpu = ["data.num_workers=0", "trainer.accelerator=gpu", "trainer.precision=bf16-mixed", f"data.cache={cache}"]
    try:
        run_in_process(
            "train", demo_data, tmp_path / "run", f"task={task}", *TINY, *short, *on_gpu, "trainer.limit_val_batches=0"
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == list(range(5))

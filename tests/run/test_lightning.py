"""What is needed of Lightning that it does not promise: in one file, and as that file takes it to be."""

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

import vinvl
from vinvl.run.checkpoint import BestCheckpoint, evaluation_follows, save_now, update_finished

PRIVATE = {"_batches_that_stepped", "_data_fetcher", "_save_checkpoint", "_should_accumulate", "_should_check_val_fx"}


def private_names(folder: Path, pattern: str) -> dict[str, set[str]]:
    """Private names that a pattern finds in a package's source, by file."""
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    return {name: set(re.findall(pattern, text)) for name, text in files.items()}


def test_private_members_of_lightning_are_needed_in_one_file() -> None:
    members = set[str]().union(*private_names(Path(pl.__file__).parent, r"(?:def |self\.)(_[a-z]\w+)").values())
    ours = Path(vinvl.__file__).parent
    own, used = private_names(ours, r"def (_[a-z]\w+)"), private_names(ours, r"(?<!self)(?<!super\(\))\.(_[a-z]\w+)")
    inherited = private_names(ours, r"super\(\)\.(_[a-z]\w+)")
    found = {name: members & (used[name] - own[name] | inherited[name]) for name in used}
    assert {name: needed for name, needed in found.items() if needed} == {"run/checkpoint.py": PRIVATE}


class OneWeight(pl.LightningModule):
    """Five batches to an epoch, two to an update, an evaluation of two batches after three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Noting(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.noted: list[tuple[bool, bool]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.noted.append((update_finished(trainer), evaluation_follows(trainer)))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        save_now(trainer, self.path)


def test_they_are_what_they_were(tmp_path: Path) -> None:
    noting, best = (
        Noting(tmp_path / "within.ckpt"),
        BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/score"),
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=2, val_check_interval=3, logger=False,
        callbacks=[noting, best], enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(OneWeight(), torch.utils.data.DataLoader(range(5)), torch.utils.data.DataLoader(range(2)))  # type: ignore[arg-type]
    assert noting.noted == [(False, False), (True, False), (False, True), (True, False), (True, False)]
    assert best.best_step == 1
    saved = torch.load(noting.path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    first = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    assert saved == {"total": first, "current": first, "is_last_batch": False}

"""How a run saves: whole files or none, at the end of an update, and never in a way that forgets an evaluation."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn

from vinvl.errors import UserError
from vinvl.files import atomic_write, remove_leftovers, system_error
from vinvl.runs import how_to_go_on

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then under its name.

    Lightning's own writing goes through the temporary folder of the machine, which often lies on another disk: moving
    the file is then a copy, and a kill during it leaves half a checkpoint where the last good one was. It also holds
    the file in memory; this does not.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint, or leaves all as it was.

        Raises:
            UserError: it cannot be written; the sentence names the file, the reason and what room there is.
        """
        try:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
        except UserError as error:
            failed = system_error(error)
            if failed is None:
                raise
            raise UserError(_why_not_saved(Path(path), checkpoint, failed)) from error


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes what saves that were killed have left in a run's checkpoint folder."""
    remove_leftovers(folder, r".+\.ckpt")


def _why_not_saved(path: Path, checkpoint: dict[str, Any], error: OSError) -> str:
    reason = f"The checkpoint {path} cannot be saved ({error.strerror or error})"
    earlier = "; the one saved before it is whole" if path.exists() else ""
    if error.errno not in NO_ROOM:
        return f"{reason}{earlier}: check folder and permissions."
    needed, free = _tensor_bytes(checkpoint), shutil.disk_usage(path.parent).free
    return (
        f"{reason}: it needs {needed / 2**20:,.1f} MiB beside the old one, and {free / 2**20:,.1f} MiB are free"
        f"{earlier}. Make room, then {how_to_go_on(path.parents[1])}."
    )


def _tensor_bytes(value: object) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(_tensor_bytes(item) for item in items)


class RunCheckpoint(ModelCheckpoint):
    """The checkpoint that a run goes on from, `filename`.ckpt in `dirpath`: its last state, every N updates.

    `every_n_train_steps` null: after each evaluation. A number: after every N-th update, and at the end of training.
    Lightning's own callback, when it has been resumed, also saves between two updates of accumulated gradients, which
    would be lost; and what it saves before an evaluation goes on behind that evaluation, as if it had been made. This
    one saves at updates alone, and where an evaluation follows, at its beginning: see `save_now`.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if update_finished(trainer) and not evaluation_follows(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves what was due at the update before."""
        every = self._every_n_train_steps
        due = every > 0 and trainer.global_step % every == 0 and not self._should_skip_saving_checkpoint(trainer)
        if due and can_go_on_with_evaluation(trainer):
            save_now(trainer, self.format_checkpoint_name({}))
            self._last_global_step_saved = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def update_finished(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just been trained on completed an update, with no gradients waiting for more."""
    return not trainer.fit_loop._should_accumulate()


def evaluation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning evaluates after this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def can_go_on_with_evaluation(trainer: pl.Trainer) -> bool:
    """Whether a run that is saved in this evaluation would make it when it goes on, with nothing lost.

    After the last of `max_steps` Lightning, resumed, does nothing any more; and between two batches of an update there
    are gradients, which no checkpoint holds.
    """
    return update_finished(trainer) and (trainer.max_steps < 0 or trainer.global_step < trainer.max_steps)


def save_now(trainer: pl.Trainer, path: str | Path) -> None:
    """Saves the run as it stands, on all ranks together; within an evaluation, as it stood when that began."""
    if trainer.state.fn == TrainerFn.FITTING and trainer.validating:
        with _at_the_beginning_of_the_evaluation(trainer):
            trainer.save_checkpoint(path, weights_only=False)
    else:
        trainer.save_checkpoint(path, weights_only=False)


@contextmanager
def _at_the_beginning_of_the_evaluation(trainer: pl.Trainer) -> Iterator[None]:
    """Lets the evaluation's progress say that its first batch is being worked on: Lightning, resumed, then makes it."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    kept = progress.state_dict()
    earlier = progress.total.completed - progress.current.completed  # batches of evaluations before, in this epoch
    begun = {"total": _first_batch_after(earlier), "current": _first_batch_after(0), "is_last_batch": False}
    progress.load_state_dict({**kept, **begun})
    try:
        yield
    finally:
        progress.load_state_dict(kept)


def _first_batch_after(done: int) -> dict[str, int]:
    """Lightning's counts while the first batch after `done` others is worked on."""
    return {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}

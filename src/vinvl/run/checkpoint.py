"""Checkpoints: saved whole or not at all, never in a way that forgets an evaluation; read as plain data.

This is the one file that needs private members of Lightning, all of them at its end but for
`ModelCheckpoint._save_checkpoint`.
"""

import difflib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn

from vinvl.run.errors import UserError, say
from vinvl.run.files import NO_ROOM, atomic_write, refuse_half_characters, system_error
from vinvl.run.folders import how_to_go_on
from vinvl.run.moved import with_new_names
from vinvl.run.progress import part_of
from vinvl.run.restricted_pickle import inspect_plain
from vinvl.run.tensor_files import load_tensor_file, plain_tensors

# What a checkpoint of ours carries, read as plain types and tensors only (`weights_only=True`).

OUR_KEY = "vinvl"  # where a Lightning checkpoint keeps what is ours
DELETED_DECODING = ("use_cache",)  # options of earlier versions, without which the same captions are written


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours as plain types and tensors, on the CPU; UserError if it is missing or something else."""
    try:
        checkpoint = load_tensor_file(path)
    except FileNotFoundError:
        raise UserError(f"The checkpoint {path} does not exist: give ckpt_path=FILE, or ckpt_path=last.") from None
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors alike for foreign files
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason[0] if reason else type(error).__name__}): "
            "it is damaged or from another program."
        ) from error
    ours = checkpoint.get(OUR_KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not isinstance(ours.get("run_config"), dict):
        raise UserError(f"{path} is not a checkpoint of vinvl.train: it lacks the '{OUR_KEY}' record.")
    for key in ("state_dict", "hyper_parameters"):
        if not isinstance(checkpoint.get(key), dict):
            raise UserError(f"{path} is not a whole checkpoint of vinvl.train: it lacks '{key}'.")
    plain_tensors(checkpoint["state_dict"], str(path))
    plain = [ours, checkpoint["hyper_parameters"]]
    try:
        inspect_plain(plain)
        refuse_half_characters(plain)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint of vinvl.train ({error}): it is damaged.") from None
    if isinstance(decoding := checkpoint["hyper_parameters"].get("decoding"), dict):
        for name in DELETED_DECODING:
            decoding.pop(name, None)
    return {**checkpoint, OUR_KEY: with_new_names(ours)}


def load_into(task: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Loads a checkpoint's weights into a task; UserError that names the first whose name or shape differs."""
    own, found = task.state_dict(), checkpoint["state_dict"]
    for name, tensor in own.items():
        if name not in found:
            raise UserError(f"{path} has no weight '{name}', which this task's model needs: it is of another model.")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: weight '{name}' is of shape {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}."
            )
    task.load_state_dict({name: found[name] for name in own})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then under its name.

    Lightning's own writing goes through the temporary folder of the machine, which often lies on another disk: moving
    the file is then a copy, and a kill during it leaves half a checkpoint where the last good one was. It also holds
    the file in memory; this does not.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint, or leaves all as it was; UserError then names the file, the reason and the room."""
        try:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
        except UserError as error:
            failed = system_error(error)
            if failed is None:
                raise
            raise UserError(_why_not_saved(Path(path), checkpoint, failed)) from error


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


class RunCheckpoint(Checkpoint):
    """The checkpoint that a run goes on from: its last state, every N updates.

    Lightning's own callback, when it has been resumed, also saves between two updates of accumulated gradients, which
    would be lost; and what it saves before an evaluation goes on behind that evaluation, as if it had been made. This
    one saves at updates alone, and where an evaluation follows, at its beginning: see `save_now`.
    """

    def __init__(self, path: str | Path, every_n_train_steps: int | None = None) -> None:
        """`every_n_train_steps` null: after each evaluation. A number: after every N-th update. And at the end."""
        self.path = Path(path)
        self.every = every_n_train_steps or 0
        self._saved = 0  # the update that was saved last

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer) and update_finished(trainer) and not evaluation_follows(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves what was due at the update before."""
        if self._is_due(trainer) and can_go_on_with_evaluation(trainer):
            self._save(trainer, save_now)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.every and not self._saves_at_epoch_end(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.every and self._saves_at_epoch_end(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    @staticmethod
    def _saves_at_epoch_end(trainer: pl.Trainer) -> bool:
        """When Lightning's callback does: what this one saves is to know of the best checkpoint at the same update."""
        evaluations = sum(trainer.num_val_batches)
        return trainer.check_val_every_n_epoch == 1 and (not evaluations or trainer.val_check_interval == 1.0)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return self.every > 0 and trainer.global_step % self.every == 0

    def _save(self, trainer: pl.Trainer, save: Callable[..., None] = pl.Trainer.save_checkpoint) -> None:
        trying = trainer.fast_dev_run or trainer.sanity_checking  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and not trying and trainer.global_step != self._saved:
            save(trainer, self.path, weights_only=False)
            self._saved = trainer.global_step


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was chosen by its evaluation."""

    score: float  # of the evaluation
    step: int | None  # updates before it; None where an earlier version of vinvl has not noted it

    @classmethod
    def in_file(cls, path: Path, key: str) -> Self | None:
        """What a file says of itself; None if it cannot be read, or if it was chosen by another figure.

        `key` is that of the callback's state.
        """
        try:
            content = read_checkpoint(path)
        except UserError:
            return None
        callbacks, step = content.get("callbacks"), content.get("global_step")
        state = callbacks.get(key) if isinstance(callbacks, dict) else None
        score = _as_number(state.get("current_score")) if isinstance(state, dict) else None
        return None if score is None or type(step) is not int else cls(score, step)


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint of a run's best evaluation so far, wherever the run began and its folder lies now.

    Lightning's own callback forgets the best score where the folder is not the one that the run began in, and then
    writes the next evaluation over a better one. This one takes the score along: in a folder that was moved; from a
    file of another folder, together with the best checkpoint beside it; and where a kill came after `best.ckpt` was
    written and before `last.ckpt` was. A file in the way that is none of this run's best is kept under another name.
    """

    def __init__(self, *, filename: str, save_top_k: int = 1, **options: Any) -> None:
        """Arguments are those of Lightning's ModelCheckpoint; UserError if several checkpoints would have one name."""
        if save_top_k not in (0, 1) and "{" not in filename:
            raise UserError(
                f"callbacks.best.save_top_k={save_top_k} would write all checkpoints to {filename}.ckpt: "
                "pass callbacks.best.filename='best-{step}' with it."
            )
        super().__init__(filename=filename, save_top_k=save_top_k, **options)
        self.best_step: int | None = None
        self.is_here = False  # whether there is a file of the best score so far
        self._carried: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """That of Lightning's callback, which earlier versions of vinvl used."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As in a validation: before a training Lightning warns of a folder that is not empty, as it is on going on."""
        super().setup(trainer, pl_module, TrainerFn.VALIDATING)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Looked into when all ranks are there: see `on_fit_start`."""
        self._carried = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        found = self._best_so_far(trainer.ckpt_path) if trainer.is_global_zero else ({}, False)
        saved, self.is_here = trainer.strategy.broadcast(found)
        self._adopt(saved, trainer.strategy.root_device)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures = [name for name in trainer.callback_metrics if name.startswith("val/")]
        if self.monitor is not None and self.monitor not in trainer.callback_metrics and not trainer.sanity_checking:
            near = difflib.get_close_matches(self.monitor, figures, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(figures)}."
            raise UserError(f"optimized_metric={self.monitor} is no figure of this validation; {meant}")
        super().on_validation_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        if filepath == self.best_model_path:
            self.best_step, self.is_here = trainer.global_step, True
        super()._save_checkpoint(trainer, filepath)

    def _adopt(self, saved: dict[str, Saved], device: torch.device) -> None:
        ranked = sorted(saved, key=lambda path: saved[path].score, reverse=self.mode == "max")
        kept = ranked if self.save_top_k < 0 else ranked[: self.save_top_k]
        if not kept:
            return
        self.best_k_models = {path: torch.tensor(saved[path].score, device=device) for path in kept}
        self.best_model_path, self.kth_best_model_path = kept[0], kept[-1]
        self.best_model_score, self.kth_value = self.best_k_models[kept[0]], self.best_k_models[kept[-1]]
        self.best_step = saved[kept[0]].step

    def _best_so_far(self, given: str | Path | None) -> tuple[dict[str, Saved], bool]:
        """What a run that goes on from `given` has saved so far, by path in this folder; and whether the best is here.

        A score whose file is not here is among them if it is the best: nothing worse may take its place.
        """
        folder, carried = Path(str(self.dirpath)), _carried_scores(self._carried)
        same_folder = given is not None and Path(given).parent.resolve() == folder.resolve()
        names = {*carried, *({f"{self.filename}.ckpt"} if "{" not in str(self.filename) else ())}
        here: dict[str, Saved] = {}
        for name in names:
            own = folder / name
            found = Saved.in_file(own, self.state_key) if same_folder else None
            if found is None and own.is_file():
                _keep_aside(own)
            if found is None and given is not None and name in carried and not same_folder:
                found = self._fetched(Path(given), name, carried[name], own)
            if found is not None:
                here[str(own)] = found
        sign = 1 if self.mode == "max" else -1
        lost = max(carried, key=lambda name: sign * carried[name].score, default=None)
        if lost is None or any(sign * one.score >= sign * carried[lost].score for one in here.values()):
            return here, bool(here)
        return {**here, str(folder / lost): carried[lost]}, False

    def _fetched(self, given: Path, name: str, wanted: Saved, own: Path) -> Saved | None:
        """Copies the best checkpoint that lies beside the given one, or is the given one, to its place."""
        for source in (given.parent / name, given):
            found = Saved.in_file(source, self.state_key)
            is_it = found is not None and found.score == wanted.score and wanted.step in (None, found.step)
            if is_it and (wanted.step is not None or source.name == name):
                with source.open("rb") as file, atomic_write(own, "wb") as copy:
                    shutil.copyfileobj(file, copy)
                return found
        return None


def _carried_scores(state: dict[str, Any]) -> dict[str, Saved]:
    """The best checkpoints so far by file name, as a checkpoint has them; of what a file may say, nothing else."""
    best, models = state.get("best_model_path"), state.get("best_k_models")
    found = {}
    for path, value in models.items() if isinstance(models, dict) else ():
        score, step = _as_number(value), state.get("best_step") if path == best else None
        if isinstance(path, str) and path.endswith(".ckpt") and score is not None:
            found[Path(path).name] = Saved(score, step if isinstance(step, int) else None)
    return found


def _as_number(value: object) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    return float(value) if isinstance(value, int | float) else None


def _keep_aside(path: Path) -> None:
    free = next(new for number in count(1) if not (new := path.with_stem(f"{path.stem}.{number}")).exists())
    path.rename(free)
    say(f"{path} is no best checkpoint of this run: it is kept as {free.name}.")


def _choosing(trainer: pl.Trainer) -> ModelCheckpoint | None:
    """What chooses the run's best checkpoint, None if nothing does."""
    found = (one for one in trainer.callbacks if isinstance(one, ModelCheckpoint) and one.monitor)  # type: ignore[attr-defined]
    return next(found, None)


def best_checkpoint(trainer: pl.Trainer) -> str | None:
    """The best checkpoint of the run as rank 0 knows it, or None if there is none; says so where it is lost."""
    callback, path = _choosing(trainer), ""
    if callback is not None and trainer.is_global_zero:
        path = callback.best_model_path
        if not path and callback.best_model_score is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            say(
                "There was no evaluation in training, so what follows is of the last weights. There is one with more "
                "trainer.max_epochs or max_steps, a smaller val_check_interval, or limit_val_batches above 0."
            )
        elif path and not getattr(callback, "is_here", True):
            score = float(callback.best_model_score or 0)
            say(
                f"No file of the best evaluation so far ({callback.monitor} {score:.4g}) is at hand, and none came "
                "after it that was better: what follows is of the last weights."
            )
            path = ""
    return str(trainer.strategy.broadcast(path)) or None


def validation(trainer: pl.Trainer, headline: str, split: str) -> dict[str, Any] | None:
    """What the best checkpoint was chosen by, for results.json: `split`, `figure` (its name among the scores), `score`,
    and `part`, where that was not measured on the whole split (`part_of`).

    None if nothing was evaluated.
    """
    callback = _choosing(trainer)
    if callback is None or callback.best_model_score is None:
        return None
    name = str(callback.monitor).removeprefix("val/")
    found = {"split": split, "figure": headline if name == "score" else name, "score": float(callback.best_model_score)}
    part = part_of(trainer.num_val_batches, trainer.val_dataloaders)
    return found if part is None else {**found, "part": part}


def best_score(trainer: pl.Trainer) -> float | None:
    """The best score so far that checkpoints are chosen by, the evaluation that has just ended included."""
    callback = _choosing(trainer)
    if callback is None:
        return None
    found = (trainer.callback_metrics.get(str(callback.monitor)), callback.best_model_score)
    scores = [float(one) for one in found if one is not None]
    return (max if callback.mode == "max" else min)(scores) if scores else None


def update_finished(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just been trained on completed an update, with no gradients waiting for more."""
    return not trainer.fit_loop._should_accumulate()


def logged_step(trainer: pl.Trainer) -> int:
    """The number, from 0, under which Lightning logs what it logs now: that of the update that has just been made."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


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


def save_now(trainer: pl.Trainer, path: str | Path, *, weights_only: bool = False) -> None:
    """Saves the run as it stands, on all ranks together; within an evaluation, as it stood when that began.

    The evaluation's progress then says that its first batch is being worked on: Lightning, resumed, makes it.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    kept = progress.state_dict()
    if trainer.state.fn == TrainerFn.FITTING and trainer.validating:
        earlier = progress.total.completed - progress.current.completed  # batches of evaluations before, in this epoch
        begun = {"total": _first_batch_after(earlier), "current": _first_batch_after(0), "is_last_batch": False}
        progress.load_state_dict({**kept, **begun})
    try:
        trainer.save_checkpoint(path, weights_only=weights_only)
    finally:
        progress.load_state_dict(kept)


def _first_batch_after(done: int) -> dict[str, int]:
    """Lightning's counts while the first batch after `done` others is worked on."""
    return {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}

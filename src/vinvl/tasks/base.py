"""What all tasks share: parameter groups, schedule, reproducible steps, and what a checkpoint carries.

A checkpoint holds plain types and tensors only, so that it loads with `weights_only=True`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vinvl.data.batch import Batch
from vinvl.data.datamodule import RegionDataModule
from vinvl.errors import UserError

MakeOptimizer = Callable[[Iterable[dict[str, Any]]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]
OUR_KEY = "vinvl"  # where a Lightning checkpoint keeps what is ours


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay, as published: names with "bias" or "LayerNorm.weight" do not decay.

    The published rule goes by name: a LayerNorm inside a `Sequential` head is decayed (Oscar's run_nlvr.py).
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if "bias" in name or "LayerNorm.weight" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


class VinVLTask(pl.LightningModule):
    """A model with its loss, metrics and recipe. A task file adds steps, scores and its result table.

    Attributes:
        model: the pure torch model; everything Lightning knows stays outside it.
        run_config: the composed configuration of the run in plain types, carried in checkpoints, so that
            `vinvl.evaluate` and `vinvl.predict` see the data as training did.
        scores: the figures of the last evaluation, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
        weight_decay: float,
        seed: int,
    ) -> None:
        """
        Args:
            model: what is trained.
            optimizer: parameter groups → optimiser; None where the task is only evaluated.
            scheduler: (optimiser, total_steps=) → schedule, stepped after each update.
            weight_decay: of the decayed parameter group.
            seed: of dropout; see `on_train_batch_start`.
        """
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.weight_decay = weight_decay
        self.seed = seed
        self.batches_seen = 0
        self.run_config: dict[str, Any] = {}
        self.scores: dict[str, float] = {}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        assert self.make_optimizer is not None and self.make_scheduler is not None, "built for evaluation only"
        optimizer = self.make_optimizer(parameter_groups(self.model, self.weight_decay))
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_scheduler(optimizer, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, and also with a fused optimiser in bfloat16, which Lightning refuses.

        It refuses because of the scaled gradients of 16-mixed, which a fused optimiser unscales too late for clipping.

        Raises:
            UserError: 16-mixed, clipping and a fused optimiser together.
        """
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if gradient_clip_val is None or not fused:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                "trainer.precision=16-mixed cannot clip gradients of a fused optimiser: pass "
                "optim.optimizer.fused=false, or trainer.precision=bf16-mixed, or trainer.gradient_clip_val=null."
            )
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes the step's dropout a function of (seed, rank, number of the batch).

        A resumed run then draws what the uninterrupted one would have drawn, whatever else used the generator.
        """
        torch.manual_seed((self.seed * 1_000_003 + self.global_rank) * 2**31 + self.batches_seen)
        self.batches_seen += 1
        self._tell_datamodule()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kind = type(self)
        checkpoint[OUR_KEY] = {
            "task_class": f"{kind.__module__}.{kind.__qualname__}",
            "batches_seen": self.batches_seen,
            "run_config": self.run_config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint[OUR_KEY]["batches_seen"]
        self._tell_datamodule()

    def _tell_datamodule(self) -> None:
        if self._trainer is not None:
            datamodule = getattr(self._trainer, "datamodule", None)
            if isinstance(datamodule, RegionDataModule):
                datamodule.batches_seen = self.batches_seen

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: str | Path) -> Self:
        """The task as a checkpoint of ours (`read_checkpoint`) holds it, for evaluation.

        Raises:
            UserError: the weights do not fit the model that the checkpoint describes.
        """
        raise NotImplementedError

    def check_datamodule(self, datamodule: pl.LightningDataModule) -> None:
        """Refuses a datamodule that this task's weights do not fit.

        Raises:
            UserError: it is another task's, or its feature dimension or answers are others.
        """
        raise NotImplementedError

    def result_rows(self) -> list[tuple[str, str]]:
        """The figures of the last evaluation for a person: (what, value) rows."""
        raise NotImplementedError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ours as plain types and tensors, on the CPU.

    Raises:
        UserError: the file is missing, is no checkpoint, or is not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
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
    return checkpoint


def load_into(task: VinVLTask, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Loads a checkpoint's weights into a task built to the same shape.

    Raises:
        UserError: names or shapes differ; the sentence names the first that does.
    """
    own, found = task.state_dict(), checkpoint["state_dict"]
    for name, tensor in own.items():
        if name not in found:
            raise UserError(f"{path} has no weight '{name}', which this task's model needs: it is of another model.")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: weight '{name}' is of shape {tuple(found[name].shape)}, the model's is {tuple(tensor.shape)}."
            )
    task.load_state_dict({name: found[name] for name in own})

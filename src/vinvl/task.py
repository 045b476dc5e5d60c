"""What all tasks share: how they are built, their optimiser, reproducible steps, evaluation and checkpoints."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypedDict, Unpack

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from transformers import PreTrainedModel

from vinvl.data.batch import Batch
from vinvl.data.module import RegionDataModule, file_names, plain
from vinvl.data.words import Commonest
from vinvl.examples import EXAMPLES, AboutExamples, Outcome, write_examples
from vinvl.models.answering import answer_loss_per_example
from vinvl.models.config import VinVLConfig, plain_fields
from vinvl.models.weights import refuse_other_sizes
from vinvl.opening import FOLLOWED, Words, refuse_other_words, start_model, words_of, words_of_run
from vinvl.panels import PictureOf, Shown, shown_outcomes
from vinvl.regions.regions import BOX_NUMBERS
from vinvl.regions.store import FeatureRecord
from vinvl.run.checkpoint import OUR_KEY, load_into, read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.survival import refuse_another_run
from vinvl.run.values import shown
from vinvl.schedules import ADAMW, LINEAR, UNDECAYED, make_optimizer, make_scheduler, parameter_groups

RESUMED = {"callbacks": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list, "global_step": int}
MOST_BATCHES = 2**31  # of a run: each has a seed of its own, see `VinVLTask.on_train_batch_start`


def sizes_of_data(datamodule: RegionDataModule) -> dict[str, Any]:
    """Fields of a model's configuration as the data have them."""
    width = datamodule.store.feature_dim + BOX_NUMBERS
    return {"vocab_size": len(datamodule.tokenizer), "img_feature_dim": width}


MakeOptimizer = Callable[[Iterable[dict[str, Any]]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]


class Recipe(TypedDict, total=False):
    """How any model is trained; see `VinVLTask`."""

    optimizer: MakeOptimizer | None
    scheduler: MakeScheduler | None
    weight_decay: float
    undecayed: Sequence[str]
    seed: int


class Start(Recipe, total=False):
    """The same of a model of the transformer, and what it starts from; see `VinVLTask`."""

    init: str | None
    init_answers: str | None
    gradient_checkpointing: bool


@dataclass(kw_only=True, eq=False, repr=False)
class VinVLTask(pl.LightningModule):
    """A model with its loss, metrics and recipe. A task file adds what is marked abstract here.

    Args:
        datamodule: the data that it is made for: read now, if they have not been, they say what classes there are; None
            where the other arguments say all, as for a checkpoint.
        model_config: a `VinVLConfig` or some of its fields. What it does not say, of sizes and the kind of encoder, is
            as in `init`, and what that does not say as in the data.
        init: weights to start from (`start_model`); None for random ones.
        init_answers: a file with the answers of the head there, where it does not say them; "none": a new head.
        words: of the tokenizer that the task is trained with.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        optimizer: parameter groups → optimiser; None where the task is only evaluated.
        scheduler: (optimiser, total_steps=) → schedule, stepped after each update.
        weight_decay: of the decayed parameter group.
        undecayed: parts of the names of the parameters that do not decay.
        seed: of dropout; see `on_train_batch_start`.

    Raises UserError if the data do not fit.

    Class attributes of a task file:
        model_class: the model; it is built from a `VinVLConfig`. A task without one makes a model of its own.
        datamodule_class: the data that the task understands.
        filled_with: what `filled_in` predicts, for a person.
        not_logged: what is in the names of figures that are too many for a curve each; results.json has them.
        start_again: what begins a new run from the weights of a checkpoint {path}, for a person.
        headline: the name in `scores` of the figure that checkpoints are chosen by (logged as `val/score`).

    Attributes:
        model: the pure torch model; everything Lightning knows stays outside it.
        run_config: the composed configuration of the run in plain types, or what is known of it, carried in
            checkpoints, so that `vinvl.evaluate` and `vinvl.predict` see the data as training did.
        features: how the features of its data were made, carried in checkpoints too.
        commonest: what the training split says most often, carried too; {} where that is not known.
        scores: the figures of the last evaluation, by name.
        started_from: what became of the tensors of the weights that training starts from, if a person is to be told.
    """

    model_class: ClassVar[type[PreTrainedModel] | None] = None
    datamodule_class: ClassVar[type[pl.LightningDataModule]]
    headline: ClassVar[str]
    filled_with: ClassVar[str] = "what the training split says most often"
    not_logged: ClassVar[str] = "question_type"
    start_again: ClassVar[str] = "model.init={path}"

    datamodule: InitVar[Any] = field(default=None, kw_only=False)
    model_config: Mapping[str, Any] | VinVLConfig | None = None
    init: str | None = "bert-base-uncased"
    init_answers: str | None = None
    words: Words | None = None
    gradient_checkpointing: bool = False
    optimizer: MakeOptimizer | None = ADAMW
    scheduler: MakeScheduler | None = LINEAR
    weight_decay: float = 0.05
    undecayed: Sequence[str] = UNDECAYED
    seed: int = 88
    started_from: str = field(default="", init=False)

    def __post_init__(self, datamodule: RegionDataModule | None) -> None:
        super().__init__()
        if datamodule is not None:
            self.check_data_class(datamodule)
            if not datamodule.datasets:
                datamodule.prepare_data()
                datamodule.setup("fit")
            self.words = words_of(datamodule.tokenizer)
            for name, value in self.arguments_from(datamodule).items():
                setattr(self, name, value)
        carried = self.own_arguments()
        if (model_class := self.chosen_model_class()) is not None:
            carried["model_config"] = self._start(model_class, datamodule)
        self.save_hyperparameters(carried, logger=False)
        self.make_optimizer, self.make_scheduler = self.optimizer, self.scheduler
        self.batches_seen = 0
        self.run_config: dict[str, Any] = {} if datamodule is None else {"data": datamodule.settings()}
        self.features = FeatureRecord()
        self.commonest: Commonest = {}
        self.scores: dict[str, float] = {}
        self.add_metrics()
        if datamodule is not None:
            self.check_datamodule(datamodule)

    def _start(self, model_class: type[PreTrainedModel], datamodule: RegionDataModule | None) -> dict[str, Any]:
        """Makes the model; what a checkpoint carries of its configuration."""
        given = plain_fields(self.model_config or {}) | self.decided()
        data = {} if datamodule is None else sizes_of_data(datamodule)
        self.model = start_model(
            model_class, given, self.init, data=data, answers=getattr(self, "answers", None),
            init_answers=self.init_answers, words=self.words,
        )  # fmt: skip
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.config: VinVLConfig = self.model.config  # type: ignore[assignment]
        return given | {name: getattr(self.config, name) for name in FOLLOWED}

    def add_metrics(self) -> None:
        """Adds what the task has besides its model, which is there."""

    def chosen_model_class(self) -> type[PreTrainedModel] | None:
        """`model_class`, unless what the task was told asks for another."""
        return self.model_class

    def decided(self) -> dict[str, Any]:
        """Fields of the model's configuration that the task decides."""
        return {}

    def own_arguments(self) -> dict[str, Any]:
        """The task's own constructor arguments in plain types, to be carried in checkpoints."""
        own = [one.name for one in fields(self) if one.init and one.name not in SHARED]
        return {name: getattr(self, name) for name in own}

    @classmethod
    def build(
        cls,
        datamodule: RegionDataModule,
        *,
        model: Mapping[str, Any],
        options: Mapping[str, Any],
        **start: Unpack[Start],
    ) -> Self:
        """The constructor as `conf/task` names what it takes: `options` are the task's own settings."""
        return cls(datamodule, model_config=model, **options, **start)

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: str | Path, **own: Any) -> Self:
        """The task as a checkpoint of ours (`read_checkpoint`) holds it, for evaluation.

        `own` replaces constructor arguments of the task that the checkpoint carries. Raises UserError if the weights do
        not fit the model that the checkpoint describes.
        """
        given = {**checkpoint["hyper_parameters"], **own}
        if not isinstance(given.get("model_config"), dict) or given.keys() & (SHARED - {"model_config"}):
            raise UserError(f"{path} describes no model, or more than one: it is damaged or from another program.")
        refuse_other_sizes(given["model_config"], checkpoint["state_dict"], path)
        try:
            task = cls(**given, words=words_of_run(checkpoint), init=None)
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # values of kinds that nobody has checked
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} describes a model that cannot be built ({reason}): it is damaged.") from error
        load_into(task, checkpoint, path)
        carried = checkpoint.get(OUR_KEY, {}).get("commonest")
        if isinstance(carried, dict) and all(isinstance(text, str) for entry in carried.items() for text in entry):
            task.commonest = carried
        return task

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *_: Any, **own: Any) -> Self:
        """`from_checkpoint` of a file, as Lightning calls it; its other arguments are not needed."""
        return cls.from_checkpoint(read_checkpoint(Path(checkpoint_path)), checkpoint_path, **own)

    @classmethod
    def arguments_from(cls, datamodule: Any) -> dict[str, Any]:
        """Constructor arguments of the task that the data decide, such as the answers of a classifier."""
        return {}

    @classmethod
    def check_data_class(cls, datamodule: object) -> None:
        """Raises UserError for the data of another task."""
        if not isinstance(datamodule, cls.datamodule_class):
            raise UserError(
                f"{cls.__name__} needs data of the kind {cls.datamodule_class.__name__}, and data is a "
                f"{type(datamodule).__name__}: choose data=NAME to fit task=NAME."
            )

    def check_datamodule(self, datamodule: Any) -> None:
        """Raises UserError for a datamodule that the weights do not fit; takes down how its features were made."""
        self.check_data_class(datamodule)
        datamodule.store.require_feature_dim(self.config.img_feature_dim - BOX_NUMBERS)
        if len(datamodule.tokenizer) > self.config.vocab_size:
            raise UserError(
                f"The tokenizer '{datamodule.tokenizer_name}' has {len(datamodule.tokenizer)} tokens, and the model's "
                f"vocab_size is {self.config.vocab_size}: pass the model's own tokenizer, or model.config.vocab_size."
            )
        refuse_other_words(self.words, words_of(datamodule.tokenizer), "The model", "data.tokenizer")
        positions = self.positions_needed(datamodule)
        if positions > self.config.max_position_embeddings:
            raise UserError(
                f"The text of an example may take {positions} positions, and the model knows "
                f"{self.config.max_position_embeddings}: lower data.max_tokens"
                f"{' or decoding.max_length' if 'decoding' in self.hparams else ''}, or raise "
                "model.config.max_position_embeddings."
            )
        self.features = FeatureRecord.of_store(datamodule.store)
        self.commonest = self.commonest or datamodule.commonest

    def positions_needed(self, datamodule: Any) -> int:
        """How many positions the longest text of these data may take."""
        return int(datamodule.limits.max_tokens)

    @classmethod
    def as_now(cls, run_config: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint's run configuration with what its version did and did not say, to be held against today's."""
        return run_config

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.losses(self(batch), batch).mean()

    def losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,): the loss of each example of a batch with labels, where the model chooses between answers or classes."""
        assert batch.labels is not None
        return answer_loss_per_example(logits, batch.labels, self.config.loss_type)

    @abstractmethod
    def evaluate_batch(self, batch: Batch) -> None:
        """Updates the metrics of an evaluation."""

    @abstractmethod
    def compute_scores(self) -> dict[str, float]:
        """The figures of an evaluation over all ranks, by name; `headline` is one of them."""

    @abstractmethod
    def result_rows(self) -> list[tuple[str, str]]:
        """The figures of the last evaluation for a person: (what, value) rows."""

    def filled_in(self, records: Any, index: int) -> Any | None:
        """A prediction, `filled_with`, for a record that the model cannot see; None where there is none to be made."""
        return None

    def write_files(self, folder: Path) -> dict[str, Path]:
        """Writes what a run leaves of its best checkpoint: what it is, for a person → where it lies."""
        return {}

    def evaluated(self) -> Any:
        """The dataset of the evaluation that is made, or has just been made."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        doing = self.trainer.state.fn
        return data.datasets["predict" if doing == "predict" else "val" if doing in ("fit", "validate") else "test"]

    def examples(self) -> Iterable[Outcome] | None:
        """On rank 0, what the last evaluation said of each record, in their order; None if the task does not tell."""
        return None

    def shown_examples(self, count: int, picture_of: PictureOf) -> list[Shown]:
        """On rank 0, the first examples of the last evaluation in training, with their pictures, for a person."""
        found = self.examples()
        return [] if found is None else shown_outcomes(found, count, self.evaluated().region_text.store, picture_of)

    def write_examples(
        self, folder: Path, split: str, source: str, left_out: int = 0, name: str = EXAMPLES
    ) -> dict[str, Path]:
        """Writes the `examples` of the last test, of a checkpoint, `source`: what the file is → where it lies."""
        found, path = self.examples(), folder / name
        if found is None:
            path.unlink(missing_ok=True)  # of an earlier run in this folder
            return {}
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        files = tuple(file_names(plain(data.split_files(split))))
        task = type(self).__name__.removesuffix("Task").lower()
        stores, renamed = data.named_stores(split), data.renamed_images(split)
        about = AboutExamples(task, split, self.headline, source, files, left_out, stores, renamed)
        write_examples(path, found, about)
        return {"examples" if name == EXAMPLES else f"examples of {split}": path}

    def write_predictions(self, predictions: Sequence[Any], folder: Path) -> dict[str, Path]:
        """Writes what `predict_step` gave, in the order of the records: what the files are → where they lie."""
        raise UserError(f"{type(self).__name__} makes no predictions: use python -m vinvl.evaluate.")

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a batch, (B, labels)."""
        logits: Tensor = self.model(**batch.inputs()).logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.log("train/loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def on_validation_epoch_start(self) -> None:
        self._reset_metrics()

    def on_test_epoch_start(self) -> None:
        self._reset_metrics()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _reset_metrics(self) -> None:
        """Metrics of the training batches, named `train_…`, go on: their epoch is another."""
        for name, module in self.named_modules():
            if isinstance(module, Metric) and not name.startswith("train_"):
                module.reset()

    def _log_scores(self, stage: str) -> None:
        self.scores = self.compute_scores()
        self.log(f"{stage}/score", self.scores[self.headline], prog_bar=True, rank_zero_only=False)
        # Question types are dozens on VQA v2, classes of objects thousands; nan: there was nothing to measure.
        logged = {name: x for name, x in self.scores.items() if self.not_logged not in name and not math.isnan(x)}
        self.log_dict({f"{stage}/{name}": value for name, value in logged.items()}, rank_zero_only=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser, whose rate is multiplied by a group's `lr_factor`, where it has one."""
        return parameter_groups(self.model, self.weight_decay, self.undecayed)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.make_optimizer, self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = make_scheduler(self.make_scheduler, optimizer, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of all gradients before they are clipped, at the updates at which Lightning writes its log."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every == 0 or (self.trainer.global_step + 1) % every:
            return
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            return  # a fused optimiser unscales them itself, later
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.log("train/gradient_norm", nn.utils.get_total_norm(gradients))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, and also with a fused optimiser in bfloat16, which Lightning refuses.

        It refuses because of the scaled gradients of 16-mixed, which a fused optimiser unscales too late for clipping.
        Raises UserError for 16-mixed, clipping and a fused optimiser together.
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
        seed = (self.seed * 1_000_003 + self.global_rank) * MOST_BATCHES + self.batches_seen
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type != "cpu":
            torch.manual_seed(seed)  # of all kinds of devices: where there are none of a kind it formats a traceback
        self.batches_seen += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kind = type(self)
        checkpoint[OUR_KEY] = {
            "task_class": f"{kind.__module__}.{kind.__qualname__}",
            "batches_seen": self.batches_seen,
            "run_config": self.run_config,
            "features": self.features.plain(),
            "words": self.words,
            "commonest": self.commonest,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint[OUR_KEY]["batches_seen"]

    def check_resumable(self, path: Path) -> None:
        """Takes a checkpoint's weights; UserError if it is damaged, or of another task, model or run."""
        checkpoint = read_checkpoint(path)
        ours, kind = checkpoint[OUR_KEY], type(self)
        found = str(ours.get("task_class"))
        if found != f"{kind.__module__}.{kind.__qualname__}":
            raise UserError(f"{path} is a checkpoint of {found.split('.')[-1]}, and this run trains {kind.__name__}.")
        instead = self.start_again.format(path=path)
        anew = f"it is damaged; begin a new run from its weights with ckpt_path=null {instead}."
        for key, needed in RESUMED.items():
            if not isinstance(checkpoint.get(key), needed):
                raise UserError(f"{path} lacks '{key}', so nothing can go on from it: {anew}")
        batches, updates = ours.get("batches_seen"), checkpoint["global_step"]
        if type(batches) is not int or not 0 <= updates <= batches < MOST_BATCHES:
            raise UserError(f"{path} tells of {updates} updates in {shown(batches)} batches, which cannot be: {anew}")
        refuse_another_run(self.as_now(ours["run_config"]), self.run_config, path, instead)
        refuse_other_words(words_of_run(checkpoint), self.words or {}, str(path), "data.tokenizer")
        load_into(self, checkpoint, path)


SHARED = {"datamodule", *(one.name for one in fields(VinVLTask))}  # constructor arguments of every task

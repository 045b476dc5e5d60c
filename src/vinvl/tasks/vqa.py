"""VQA: choose one answer of a fixed vocabulary, trained on soft targets, scored the official way."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.vqa import VQADataModule
from vinvl.errors import UserError
from vinvl.metrics import ExactMean, SoftTargetScore, VQAAccuracy
from vinvl.models import VinVLConfig, VinVLForAnswering, answer_loss_per_example, initialise
from vinvl.tasks.base import MakeOptimizer, MakeScheduler, VinVLTask, load_into

TOP_ANSWERS = 5
BOX_NUMBERS = 6  # a region row is the feature followed by six numbers of its box


class Prediction(NamedTuple):
    """The best answers to one question, best first."""

    position: int  # of the question in its split
    question_id: int | str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]  # per answer, independent of each other for the bce loss


class VQATask(VinVLTask):
    """VinVLForAnswering with the official accuracy."""

    def __init__(
        self,
        *,
        model_config: dict[str, Any],
        answers: list[str],
        init: str | None = None,
        gradient_checkpointing: bool = False,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model_config: fields of `VinVLConfig`, in plain types; the number of answers is added here.
            answers: the answer vocabulary, A texts.
            init: weights to start from (`models.initialise`); None for random ones.
            gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
            optimizer, scheduler, weight_decay, seed: see `VinVLTask`.
        """
        config = VinVLConfig(**{**model_config, "num_labels": len(answers)})
        model = initialise(VinVLForAnswering, config, init)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable()
        super().__init__(model, optimizer=optimizer, scheduler=scheduler, weight_decay=weight_decay, seed=seed)
        self.config: VinVLConfig = model.config
        # A checkpoint that brought its own image projection has decided about the layer norm.
        followed = {name: getattr(model.config, name) for name in ("use_img_layernorm", "img_layer_norm_eps")}
        self.save_hyperparameters({"model_config": {**model_config, **followed}, "answers": answers})
        self.answers = answers
        self.train_score = SoftTargetScore()
        self.accuracy = VQAAccuracy()
        self.most_frequent_accuracy = VQAAccuracy()
        self.soft_score = SoftTargetScore()
        self.evaluation_loss = ExactMean()

    @classmethod
    def build(
        cls,
        *,
        datamodule: VQADataModule,
        model: dict[str, Any],
        init: str | None,
        gradient_checkpointing: bool,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler,
        weight_decay: float,
        seed: int,
    ) -> Self:
        """The task for a datamodule that has been set up: its answers become the head."""
        if not isinstance(datamodule, VQADataModule):
            raise UserError(f"task=vqa needs VQA data, and data is a {type(datamodule).__name__}.")
        assert datamodule.tokenizer is not None
        vocab_size = model["vocab_size"] or len(datamodule.tokenizer)
        task = cls(
            model_config={**model, "vocab_size": vocab_size},
            answers=list(datamodule.require_vocabulary().answers),
            init=init,
            gradient_checkpointing=gradient_checkpointing,
            optimizer=optimizer,
            scheduler=scheduler,
            weight_decay=weight_decay,
            seed=seed,
        )
        task.check_datamodule(datamodule)
        return task

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: str | Path) -> Self:
        hyper_parameters = checkpoint["hyper_parameters"]
        task = cls(model_config=hyper_parameters["model_config"], answers=hyper_parameters["answers"])
        load_into(task, checkpoint, path)
        return task

    def check_datamodule(self, datamodule: pl.LightningDataModule) -> None:
        if not isinstance(datamodule, VQADataModule) or datamodule.store is None or datamodule.tokenizer is None:
            raise UserError(f"These weights were trained for VQA, and data is a {type(datamodule).__name__}.")
        config = self.config
        datamodule.store.require_feature_dim(config.img_feature_dim - BOX_NUMBERS)
        vocabulary = list(datamodule.require_vocabulary().answers)
        if len(vocabulary) != len(self.answers):
            raise UserError(
                f"{datamodule.answers_path} lists {len(vocabulary)} answers, and the model has a head for "
                f"{len(self.answers)}: pass data.answers=FILE with the vocabulary the model was trained on."
            )
        if vocabulary != self.answers:
            first = next(index for index, answer in enumerate(vocabulary) if answer != self.answers[index])
            raise UserError(
                f"{datamodule.answers_path} has answer {first} '{vocabulary[first]}' where the model was trained with "
                f"'{self.answers[first]}': pass data.answers=FILE with the vocabulary the model was trained on."
            )
        if len(datamodule.tokenizer) > config.vocab_size:
            raise UserError(
                f"The tokenizer '{datamodule.tokenizer_name}' has {len(datamodule.tokenizer)} tokens, and the model's "
                f"vocab_size is {config.vocab_size}: pass the model's own tokenizer, or model.vocab_size."
            )

    def forward(self, batch: Batch) -> Tensor:
        """(B, A) answer logits."""
        output = self.model(
            input_ids=batch.input_ids,
            token_type_ids=batch.token_type_ids,
            attention_mask=batch.attention_mask,
            region_features=batch.region_features,
        )
        logits: Tensor = output.logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.labels is not None
        logits = self(batch)
        loss = answer_loss_per_example(logits, batch.labels, self.config.loss_type).mean()
        self.train_score(logits.detach(), batch.labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log("train/soft_score", self.train_score, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._reset_metrics()

    def on_test_epoch_start(self) -> None:
        self._reset_metrics()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """The five best answers to each question, with sigmoid (bce) or softmax probabilities."""
        logits = self(batch).float()
        bce = self.config.loss_type == "bce"
        probabilities = torch.sigmoid(logits) if bce else torch.softmax(logits, dim=-1)
        # Ranked by logit: a sigmoid in half precision saturates at 1 long before the logits tie.
        best = logits.topk(min(TOP_ANSWERS, len(self.answers)), dim=-1).indices
        chosen = probabilities.gather(-1, best)
        return [
            Prediction(record["index"], record["question_id"], tuple(self.answers[i] for i in row), tuple(scores))
            for record, row, scores in zip(batch.records, best.tolist(), chosen.tolist(), strict=True)
        ]

    def _evaluate(self, batch: Batch) -> None:
        assert batch.labels is not None
        logits = self(batch)
        self.evaluation_loss.update(answer_loss_per_example(logits, batch.labels, self.config.loss_type))
        self.soft_score.update(logits, batch.labels)
        people = [record["answers"] for record in batch.records]
        answer_types = [record["answer_type"] for record in batch.records]
        typed = all("question_type" in record for record in batch.records)
        question_types = [record["question_type"] for record in batch.records] if typed else None
        predicted = [self.answers[index] for index in logits.argmax(dim=-1).tolist()]
        self.accuracy.update(predicted, people, answer_types, question_types)
        self.most_frequent_accuracy.update([self.answers[0]] * len(people), people, answer_types)

    def _reset_metrics(self) -> None:
        for metric in (self.accuracy, self.most_frequent_accuracy, self.soft_score, self.evaluation_loss):
            metric.reset()

    def _log_scores(self, stage: str) -> None:
        """Reads the metrics (over all ranks) into `scores`, and logs the figures that one plots."""
        scores = {f"accuracy/{name}": value.item() for name, value in self.accuracy.compute().items()}
        constant = self.most_frequent_accuracy.compute()
        scores |= {f"most_frequent_answer/{name}": value.item() for name, value in constant.items()}
        scores["soft_score"] = self.soft_score.compute().item()
        scores["loss"] = self.evaluation_loss.compute().item()
        self.scores = scores
        overall = scores["accuracy/overall"]
        self.log(f"{stage}/accuracy", overall, prog_bar=True, rank_zero_only=False)
        logged = {name: value for name, value in scores.items() if "question_type" not in name}
        self.log_dict({f"{stage}/{name}": value for name, value in logged.items()}, rank_zero_only=False)

    def result_rows(self) -> list[tuple[str, str]]:
        scores = self.scores
        rows = [("VQA accuracy", f"{scores['accuracy/overall']:.2f}")]
        for name, value in scores.items():
            kind = name.removeprefix("accuracy/")
            if name.startswith("accuracy/") and kind != "overall" and not kind.startswith("question_type/"):
                rows.append((f"  {kind}", f"{value:.2f}"))
        for name, value in scores.items():
            if name.startswith("accuracy/question_type/"):
                rows.append((f"    {name.removeprefix('accuracy/question_type/')}", f"{value:.2f}"))
        rows.append((f"most frequent answer ('{self.answers[0]}')", f"{scores['most_frequent_answer/overall']:.2f}"))
        rows.append(("soft target of the arg-max (in-training score)", f"{scores['soft_score']:.2f}"))
        return rows

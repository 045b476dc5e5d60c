"""Pre-training: hidden tokens of text and tags are guessed, and mismatched triplets told from matched ones."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import Batch
from vinvl.exact import ExactMean, GroupedAccuracy
from vinvl.models.config import VinVLConfig
from vinvl.models.pretraining import (
    NO_PAIR_LABEL,
    PretrainingOutput,
    VinVLForPreTraining,
    contrastive_losses,
    masked_token_losses,
)
from vinvl.panels import MOST, PictureOf, Shown, frame_of
from vinvl.pretraining.data import VARIANTS, VIVO, WITHOUT_CONTRAST, PretrainingDataModule
from vinvl.run.errors import UserError
from vinvl.task import VinVLTask

# What a pre-training step computes, and what a device could: the two sides of model FLOPs utilisation.
#
# Peak of dense matrix products in TFLOP/s, without structured sparsity, by the whole name that CUDA gives the device,
# its maker left out; a slice of a device (MIG) has another name and no entry. Sources: NVIDIA's data sheets of V100,
# A100, H100, H200, L4 and L40S, where the dense number is half of the sparse one, and its Ada whitepaper for the
# RTX 4090 (products of halves are summed in float32, as torch does).
HOPPER_SXM = (989, 989, 494, 67)
PEAK_TFLOPS: dict[str, tuple[float | None, ...]] = {  # by COMPUTES_IN
    r"V100-SXM2-\d+GB": (None, 125, None, 15.7),
    r"V100-PCIE-\d+GB": (None, 112, None, 14),
    r"A100-SXM4-\d+GB|A100-PCIE-40GB|A100 80GB PCIe": (312, 312, 156, 19.5),
    r"H100 PCIe": (756, 756, 378, 51),
    r"H100 80GB HBM3": HOPPER_SXM,
    r"H200": HOPPER_SXM,
    r"L4": (121, 121, 60, 30.3),
    r"L40S": (362, 362, 183, 91.6),
    r"GeForce RTX 4090": (165, 165, 82.6, 82.6),
}
MAKERS = r"(?:NVIDIA |Tesla )?"
COMPUTES_IN = (("bf16-mixed", "bf16-true"), ("16-mixed", "16-true"), (), ("32-true",))  # the third is TF32
BACKWARD_AND_FORWARD = 3  # a product in the forward pass is two of the same size in the backward pass


def peak_flops(device_name: str, precision: str) -> float | None:
    """Products and sums per second that a device can do at its best; None if that is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        precision: Lightning's, such as "bf16-mixed".
    """
    column = next((column for column, names in enumerate(COMPUTES_IN) if precision in names), None)
    # Not torch.get_float32_matmul_precision: it raises if TF32 was switched on only for CUDA.
    if precision == "32-true" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        column = 2
    found = [peaks for pattern, peaks in PEAK_TFLOPS.items() if re.fullmatch(f"{MAKERS}(?:{pattern})", device_name)]
    peak = None if column is None or not found else found[0][column]
    return None if peak is None else peak * 1e12


class StepCosts(NamedTuple):
    """Floating-point operations of a forward and backward pass, per thing that a batch is made of.

    Only matrix products count, a product and its sum as two, and the backward pass as twice the forward one
    (Kaplan et al. 2020, section 2.1, with the attention over the sequence added). Activations that gradient
    checkpointing computes again are no progress and do not count.
    """

    per_token: int  # of a token or region in the layers
    per_attended_pair: int  # of one position that attends to one position, in all layers
    per_region: int  # of projecting a region
    per_masked_token: int  # of guessing a hidden token
    per_row: int  # of the pooled vector and its classes

    @classmethod
    def of(cls, config: VinVLConfig) -> "StepCosts":
        """The costs of `VinVLForPreTraining` by its configuration."""
        assert config.num_labels is not None
        hidden, layers = config.hidden_size, config.num_hidden_layers
        twice = 2 * BACKWARD_AND_FORWARD
        return cls(
            per_token=twice * layers * (4 * hidden * hidden + 2 * hidden * config.intermediate_size),
            per_attended_pair=twice * layers * 2 * hidden,
            per_region=twice * config.img_feature_dim * hidden,
            per_masked_token=twice * (hidden * hidden + hidden * config.vocab_size),
            per_row=twice * (hidden * hidden + hidden * config.num_labels),
        )


class TrainingPace:
    """Counts what goes through a model since the last reading.

    Counts of tokens stay on the device, so that nothing waits for it; the time is the host's, which keeps step with the
    device over some batches.
    """

    def __init__(self, costs: StepCosts, clock: Callable[[], float] = time.perf_counter) -> None:
        self.costs = costs
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted: the time from here on is training's again."""
        self._since, self._slots = self.clock(), 0
        self._amounts: list[Any] = [0] * len(self.costs)  # in the order of `StepCosts`

    def add(self, attention_mask: Tensor, text_slots: int, masked_tokens: int) -> None:
        """Counts a batch.

        Args:
            attention_mask: (B, S) bool or 0 and 1, True where there is a token or region.
            text_slots: L, after which the regions begin.
            masked_tokens: M.
        """
        # Sums of squares pass float32's whole numbers; only Apple's devices have no float64.
        exact = torch.float32 if attention_mask.device.type == "mps" else torch.float64
        lengths, regions = attention_mask.sum(dim=1).to(exact), attention_mask[:, text_slots:].sum()
        amounts = (lengths.sum(), lengths.square().sum(), regions, masked_tokens, len(attention_mask))
        self._amounts = [before + amount for before, amount in zip(self._amounts, amounts, strict=True)]
        self._slots += attention_mask.numel()

    def read(self, *, devices: int, peak: float | None) -> dict[str, Tensor]:
        """What was counted since the last reading, by name; empty if nothing was.

        Args:
            devices: ranks that work like this one.
            peak: FLOP/s of this rank's device (`peak_flops`), None if it is not known.

        Returns:
            tokens_per_second (tokens and regions of all ranks, without padding), padding_share, and, where `peak` is
            known, flops_utilisation: the share of the peak that went into tokens and regions, padding not counted.
        """
        tokens, elapsed = self._amounts[0], self.clock() - self._since
        if not self._slots or elapsed <= 0:
            return {}
        figures = {"tokens_per_second": tokens * devices / elapsed, "padding_share": 1 - tokens / self._slots}
        if peak is not None:
            flops = sum(amount * cost for amount, cost in zip(self._amounts, self.costs, strict=True))
            figures["flops_utilisation"] = flops / (elapsed * peak)
        self.restart()
        return figures


TOKEN_KINDS = ("text", "tags")  # token_type_ids 0 and 1; the answers of question-answer rows are where tags are
CONTRAST_CLASSES = {2: ("matched", "mismatched"), 3: ("matched", "wrong_second_text", "wrong_first_text")}


class FirstGuesses(NamedTuple):
    """The guesses of one of the first batches of an evaluation, on the host, to be shown to a person."""

    records: Sequence[Mapping[str, Any]]  # B, whose "index" is their row of the corpus
    ids: Tensor  # (B, L) tokens, some of them hidden
    real: Tensor  # (B, L) bool
    row_of: Tensor  # (M,) of each hidden token
    guessed: Tensor  # (M,)
    hidden: Tensor  # (M,)

    @classmethod
    def of(cls, output: PretrainingOutput, batch: Batch) -> "FirstGuesses":
        assert output.logits is not None and output.masked_places is not None and output.masked_ids is not None
        ids = batch.input_ids
        found = ids, batch.attention_mask[:, : ids.shape[1]].bool(), output.masked_places // ids.shape[1]
        told = *found, output.logits.argmax(dim=-1), output.masked_ids
        return cls(batch.records, *(one.cpu() for one in told))

    def of_row(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of a row, those guessed and those hidden."""
        mine = self.row_of == number
        return self.ids[number][self.real[number]], self.guessed[mine], self.hidden[mine]


@dataclass(kw_only=True, eq=False, repr=False)
class PretrainingTask(VinVLTask):
    """VinVLForPreTraining; scores are accuracies in percent and the two losses.

    The data say by labels and masks which loss sees a row (`PretrainingDataset`): with data.variant=oscar, as in Oscar
    and Oscar+, both see each; with mmf, as in MMF, each loss has rows of its own, in one batch, for rows are
    independent; with matched and vivo there is no contrast.

    The loss is the sum of the two means over the batch of a rank, as published; rows count by `Batch.loss_weights`.
    The headline, `mean_accuracy`, is the mean of the masked-token accuracy and the contrastive accuracy, both over the
    whole split; without contrast it is only the masked-token accuracy.

    Args:
        variant, num_pair_classes: of the data, which say them where `datamodule` is given.
        match_tags: with the variant vivo, hidden tags are guessed as a set; False: in the order in which they stand.
        the others: see `VinVLTask`.
    """

    model_class = VinVLForPreTraining
    datamodule_class = PretrainingDataModule
    headline = "mean_accuracy"
    model: VinVLForPreTraining = field(init=False)

    variant: str = "oscar"
    num_pair_classes: int = 3
    match_tags: bool = True

    def add_metrics(self) -> None:
        self.sets_of_tags = self.match_tags and self.variant == VIVO
        self.class_names = CONTRAST_CLASSES[self.num_pair_classes]
        self.masked_tokens = GroupedAccuracy(len(TOKEN_KINDS))
        self.pairs = GroupedAccuracy(self.num_pair_classes)
        self.masked_loss = ExactMean()
        self.contrastive_loss = ExactMean()
        self.train_masked_tokens = GroupedAccuracy(len(TOKEN_KINDS))
        self.train_pairs = GroupedAccuracy(self.num_pair_classes)
        self.pace = TrainingPace(StepCosts.of(self.config))
        self.peak: float | None = None
        self._first: list[FirstGuesses] = []  # of an evaluation
        self._last_reading = 0  # update at which the training figures were logged

    def decided(self) -> dict[str, Any]:
        """Raises UserError for a contrast that nobody published."""
        if self.variant not in VARIANTS:
            raise UserError(f"data.variant is {self.variant!r}; choose one of {', '.join(VARIANTS)}.")
        if self.num_pair_classes not in CONTRAST_CLASSES:
            raise UserError(f"The contrast has {self.num_pair_classes} classes; data make it 2 (Oscar) or 3 (Oscar+).")
        return {"num_labels": self.num_pair_classes}

    @classmethod
    def arguments_from(cls, datamodule: PretrainingDataModule) -> dict[str, Any]:
        return {"variant": datamodule.variant, "num_pair_classes": datamodule.num_pair_classes}

    def check_datamodule(self, datamodule: PretrainingDataModule) -> None:
        """Also refuses data of another variant or with another contrast."""
        super().check_datamodule(datamodule)
        if datamodule.variant != self.variant:
            raise UserError(f"data.variant is {datamodule.variant}, and the model was trained with {self.variant}.")
        if datamodule.num_pair_classes != len(self.class_names):
            raise UserError(
                f"The data's contrast has {datamodule.num_pair_classes} classes, and the model was trained with "
                f"{len(self.class_names)}: pass data.texta_false_prob as it was in training."
            )

    def positions_needed(self, datamodule: PretrainingDataModule) -> int:
        """Those of the longest text, wherever tags without a text begin."""
        begin = datamodule.tag_position if self.variant == VIVO else 0
        return begin + super().positions_needed(datamodule)

    def guess(self, batch: Batch, row_weights: Tensor | None = None) -> PretrainingOutput:
        """The model's guesses and losses on a batch."""
        output: PretrainingOutput = self.model(
            **batch.inputs(),
            position_ids=batch.position_ids,
            masked_positions=batch.masked_positions,
            masked_ids=batch.labels,
            pair_labels=self.pair_labels(batch),
            row_weights=row_weights,
            match_tags=self.sets_of_tags,
        )
        return output

    def pair_labels(self, batch: Batch) -> Tensor:
        """(B,) int64 classes, `NO_PAIR_LABEL` for rows that the contrast does not see.

        The head is computed for them all the same: each parameter then has a gradient, which DDP waits for.
        """
        if batch.pair_labels is None:
            return torch.full((len(batch),), NO_PAIR_LABEL, device=batch.input_ids.device)
        return batch.pair_labels

    def training_loss(self, batch: Batch) -> Tensor:
        output = self.guess(batch, batch.loss_weights)
        masked, contrastive = output.masked_word_loss, output.pair_loss
        assert masked is not None and contrastive is not None
        self.log("train/masked_loss", masked, batch_size=len(batch))
        self.log("train/contrastive_loss", contrastive, batch_size=len(batch))
        self._count(output, batch, self.train_masked_tokens, self.train_pairs)
        return masked + contrastive

    def evaluate_batch(self, batch: Batch) -> None:
        output = self.guess(batch)
        assert output.logits is not None and output.pair_logits is not None and output.masked_ids is not None
        if sum(len(one.ids) for one in self._first) < MOST:
            self._first.append(FirstGuesses.of(output, batch))
        self._count(output, batch, self.masked_tokens, self.pairs)
        self.masked_loss.update(masked_token_losses(output.logits, output.masked_ids))
        labels = self.pair_labels(batch)
        self.contrastive_loss.update(contrastive_losses(output.pair_logits, labels)[labels != NO_PAIR_LABEL])

    @torch.no_grad()
    def _count(self, output: PretrainingOutput, batch: Batch, tokens: GroupedAccuracy, pairs: GroupedAccuracy) -> None:
        words, classes, places = output.logits, output.pair_logits, output.masked_places
        assert words is not None and classes is not None and places is not None and output.masked_ids is not None
        kinds = batch.token_type_ids.flatten()[places]
        if self.variant == VIVO:  # tags, also where captions' words stand
            kinds = torch.ones_like(kinds)
        tokens.update(torch.eq(words.argmax(dim=-1), output.masked_ids), kinds)
        labels = self.pair_labels(batch)
        pairs.update(torch.eq(classes.argmax(dim=-1), labels), labels)

    def accuracies(self, tokens: GroupedAccuracy, pairs: GroupedAccuracy) -> dict[str, Tensor]:
        """Accuracies by name: of all hidden tokens, of text and tags apart, of all triplets and of each class."""
        overall, groups = tokens.compute()
        named = {"masked_accuracy": overall}
        named |= {f"masked_accuracy/{name}": value for name, value in zip(TOKEN_KINDS, groups, strict=True)}
        if self.variant in WITHOUT_CONTRAST:
            return named
        overall, groups = pairs.compute()
        named["contrastive_accuracy"] = overall
        return named | {f"contrastive_accuracy/{name}": v for name, v in zip(self.class_names, groups, strict=True)}

    def compute_scores(self) -> dict[str, float]:
        found = self.accuracies(self.masked_tokens, self.pairs)
        found |= {"masked_loss": self.masked_loss.compute(), "contrastive_loss": self.contrastive_loss.compute()}
        # What was not seen at all has no figure: tags in a corpus of questions, the contrast of matched triplets.
        scores = {name: value.item() for name, value in found.items() if not value.isnan()}
        parts = [scores[name] for name in ("masked_accuracy", "contrastive_accuracy") if name in scores]
        losses = [scores[name] for name in ("masked_loss", "contrastive_loss") if name in scores]
        return {self.headline: sum(parts) / max(len(parts), 1), "loss": sum(losses), **scores}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._first = []

    def shown_examples(self, count: int, picture_of: PictureOf) -> list[Shown]:
        """Rows of the first batches, their hidden tokens as guessed and as they are."""
        data, rows = self.trainer.datamodule, self.evaluated().rows  # type: ignore[attr-defined]
        store = rows.region_text.store
        found = []
        for first, number in [(one, number) for one in self._first for number in range(len(one.ids))][:count]:
            text, guessed, hidden = first.of_row(number)
            said = [written(data.tokenizer, ids) for ids in (text, guessed, hidden)]
            right = 100 * torch.eq(guessed, hidden).double().mean().item()  # nan: none is hidden
            place = int(rows.image_of(np.array([first.records[number]["index"]]))[0])
            frames = (frame_of(store, place, picture_of(store, place)),) if place >= 0 else ()
            found.append(Shown(said[0], said[1], said[2], right, frames))
        return found

    def result_rows(self) -> list[tuple[str, str]]:
        rows = [
            ("hidden tokens guessed", "masked_accuracy"),
            *((f"  of {kind}", f"masked_accuracy/{kind}") for kind in TOKEN_KINDS),
            ("triplets told apart", "contrastive_accuracy"),
            *((f"  {name.replace('_', ' ')}", f"contrastive_accuracy/{name}") for name in self.class_names),
        ]
        table = [(title, f"{self.scores[name]:.2f}") for title, name in rows if name in self.scores]
        losses = [name for name in ("masked_loss", "contrastive_loss") if name in self.scores]
        return [*table, *((name.replace("_", " "), f"{self.scores[name]:.4f}") for name in losses)]

    def predict_step(self, batch: Batch, batch_idx: int) -> NoReturn:
        """Refuses at the first batch, not after the last."""
        raise UserError("Pre-training makes no predictions: use python -m vinvl.evaluate.")

    def on_train_start(self) -> None:
        if self.device.type == "cuda":
            self.peak = peak_flops(torch.cuda.get_device_name(self.device), str(self.trainer.precision))
        self._last_reading = self.trainer.global_step
        self.pace.restart()

    def on_validation_end(self) -> None:
        """An evaluation's time is not training's."""
        self.pace.restart()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs pace and accuracies since the last reading, at the updates at which Lightning writes its log."""
        assert batch.labels is not None
        self.pace.add(batch.attention_mask, batch.input_ids.shape[1], len(batch.labels))
        update, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if update == self._last_reading or every == 0 or update % every:
            return
        self._last_reading = update
        figures = self.pace.read(devices=self.trainer.world_size, peak=self.peak)
        figures |= self.accuracies(self.train_masked_tokens, self.train_pairs)
        self.train_masked_tokens.reset()
        self.train_pairs.reset()
        self.log_dict({f"train/{name}": value for name, value in figures.items()}, batch_size=len(batch))


def written(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    """The tokens of ids (L,), for a person; the vocabulary of a model may be larger than that of its tokenizer."""
    return " ".join(token or "?" for token in tokenizer.convert_ids_to_tokens(ids.tolist()))

"""The pre-training task on batches made by hand: losses of both variants, scores, what a run logs, and refusals."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.pretraining.samples import joined, plain_forward, task_of, triplets, unlabelled
from vinvl.data.batch import Batch
from vinvl.data.text import load_tokenizer
from vinvl.pretraining.task import PretrainingTask, written
from vinvl.run.errors import UserError

torch.set_num_threads(1)


class Figures(Logger):
    """Keeps what a run logs: (update, figures)."""

    name = "figures"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.written.append((-1 if step is None else step, dict(metrics)))

    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """Nothing to keep."""


def run(task: PretrainingTask, batches: list[Batch], val: list[Batch] | None = None, **options: Any) -> Figures:
    """Trains on the batches once."""
    figures = Figures()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=figures, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        **{"log_every_n_steps": 1, **options},
    )  # fmt: skip
    loaders = [None if rows is None else DataLoader(rows, batch_size=None) for rows in (batches, val)]
    trainer.fit(task, *loaders)
    return figures


@pytest.fixture
def loss_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[PretrainingTask, Batch], Tensor]:
    """The training loss outside a run."""
    monkeypatch.setattr(PretrainingTask, "log", lambda *_, **__: None)
    return PretrainingTask.training_loss


class TestLoss:
    @pytest.mark.parametrize("hidden_share", [0.3, 0.0])
    @pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0, 0.5]])
    def test_oscar_sees_every_row_twice(self, loss_of: Any, weights: Any, hidden_share: float) -> None:
        task, batch = task_of(), triplets(4, hidden_share=hidden_share)
        words, pairs = plain_forward(task, batch)
        of_rows = torch.ones(4) if weights is None else torch.tensor(weights)
        of_words = F.cross_entropy(words, batch.labels, reduction="none")
        of_words = of_words * of_rows[batch.masked_positions.nonzero()[:, 0]]
        of_pairs = F.cross_entropy(pairs, batch.pair_labels, reduction="none") * of_rows
        expected = of_pairs.mean() + (of_words.mean() if len(of_words) else 0)
        loss = loss_of(task, replace(batch, loss_weights=None if weights is None else of_rows))
        torch.testing.assert_close(loss, expected)

    def test_mmf_is_two_forwards(self, loss_of: Any) -> None:
        task = task_of("mmf")
        matched, drawn = unlabelled(triplets(4, seed=1)), triplets(4, seed=2, hidden_share=0.0)
        words, _ = plain_forward(task, matched)
        _, pairs = plain_forward(task, drawn)
        expected = F.cross_entropy(words, matched.labels) + F.cross_entropy(pairs, drawn.pair_labels)
        torch.testing.assert_close(loss_of(task, joined(matched, drawn)), expected)

    def test_without_contrast_every_weight_still_has_a_gradient(self, loss_of: Any) -> None:
        task, batch = task_of("matched"), replace(triplets(4), pair_labels=None)
        words, _ = plain_forward(task, batch)
        loss = loss_of(task, batch)
        torch.testing.assert_close(loss, F.cross_entropy(words, batch.labels))
        loss.backward()
        assert all(parameter.grad is not None for parameter in task.model.parameters())
        assert not task.model.cls.seq_relationship.weight.grad.any()


class TestScores:
    def scores(self, task: PretrainingTask, batches: list[Batch]) -> dict[str, float]:
        task._reset_metrics()
        with torch.no_grad():
            for batch in batches:
                task.evaluate_batch(batch)
        return task.compute_scores()

    def test_scores_are_those_of_single_guesses(self) -> None:
        task, batch = task_of().eval(), triplets(30)
        words, pairs = plain_forward(task, batch)
        right, kinds = words.argmax(-1) == batch.labels, batch.token_type_ids[batch.masked_positions]
        told, labels = pairs.argmax(-1) == batch.pair_labels, batch.pair_labels
        expected = {
            "masked_accuracy": right, "masked_accuracy/text": right[kinds == 0],
            "masked_accuracy/tags": right[kinds == 1], "contrastive_accuracy": told,
            "contrastive_accuracy/matched": told[labels == 0],
            "contrastive_accuracy/wrong_second_text": told[labels == 1],
            "contrastive_accuracy/wrong_first_text": told[labels == 2],
        }  # fmt: skip
        percent = {name: 100 * value.double().mean().item() for name, value in expected.items()}
        percent["mean_accuracy"] = (percent["masked_accuracy"] + percent["contrastive_accuracy"]) / 2
        losses = {
            "masked_loss": F.cross_entropy(words, batch.labels).item(),
            "contrastive_loss": F.cross_entropy(pairs, labels).item(),
        }
        losses["loss"] = losses["masked_loss"] + losses["contrastive_loss"]
        assert len(set(percent.values())) > 5  # no two by chance alike
        assert self.scores(task, [batch]) == pytest.approx(percent | losses, rel=1e-5)

    @pytest.mark.parametrize("variant", ["oscar", "mmf"])
    def test_scores_do_not_depend_on_the_batches(self, variant: str) -> None:
        task, parts = task_of(variant).eval(), [triplets(size, seed=size) for size in (5, 1, 6)]
        if variant == "mmf":
            parts[0] = unlabelled(parts[0])
        whole = functools.reduce(joined, parts)
        assert self.scores(task, parts) == pytest.approx(self.scores(task, [whole]), rel=1e-6)

    def test_rows_without_a_label_are_not_scored(self) -> None:
        task, batch = task_of("mmf").eval(), triplets(4)
        _, pairs = plain_forward(task, batch)
        found = self.scores(task, [joined(unlabelled(triplets(4, seed=1)), batch)])
        assert found["contrastive_loss"] == pytest.approx(F.cross_entropy(pairs, batch.pair_labels).item())
        told = (pairs.argmax(-1) == batch.pair_labels).double().mean().item()
        assert found["contrastive_accuracy"] == pytest.approx(100 * told)

    def test_what_was_not_seen_has_no_score(self) -> None:
        batch = triplets(6, classes=1)
        found = self.scores(task_of().eval(), [replace(batch, token_type_ids=torch.zeros_like(batch.input_ids))])
        assert "masked_accuracy/text" in found and "masked_accuracy/tags" not in found
        assert [name for name in found if name.startswith("contrastive_accuracy/")] == ["contrastive_accuracy/matched"]

    def test_rows_of_the_table(self) -> None:
        """Without contrast the hidden tokens decide; two classes have names of their own."""
        task, hidden = task_of("matched").eval(), ["hidden tokens guessed", "  of text", "  of tags"]
        task.scores = found = self.scores(task, [replace(triplets(20), pair_labels=None)])
        assert found["mean_accuracy"] == found["masked_accuracy"] and found["loss"] == found["masked_loss"]
        assert not any(name.startswith("contrastive") for name in found)
        assert [name for name, _ in task.result_rows()] == [*hidden, "masked loss"]
        task = task_of(classes=2).eval()
        task.scores = self.scores(task, [triplets(20, classes=2)])
        assert {"contrastive_accuracy/matched", "contrastive_accuracy/mismatched"} <= set(task.scores)
        told = ["triplets told apart", "  matched", "  mismatched", "masked loss", "contrastive loss"]
        assert [name for name, _ in task.result_rows()] == [*hidden, *told]


class TestRun:
    def test_what_a_run_logs(self) -> None:
        batches = [triplets(4, seed=seed) for seed in range(4)]
        task = task_of()
        words, pairs = plain_forward(task, batches[1])
        figures = run(task, batches, val=[triplets(8, seed=9)]).written
        (second,) = [found for update, found in figures if update == 1 and "train/loss" in found]
        masked, contrastive = F.cross_entropy(words, batches[1].labels), F.cross_entropy(pairs, batches[1].pair_labels)
        assert second["train/masked_loss"] == pytest.approx(masked.item(), rel=1e-5)
        assert second["train/contrastive_loss"] == pytest.approx(contrastive.item(), rel=1e-5)
        assert second["train/loss"] == pytest.approx(masked.item() + contrastive.item(), rel=1e-5)
        assert second["train/masked_accuracy"] == pytest.approx(
            100 * (words.argmax(-1) == batches[1].labels).double().mean().item()
        )
        assert second["train/padding_share"] == pytest.approx(1 - batches[1].attention_mask.double().mean().item())
        assert second["train/tokens_per_second"] > 0
        assert {"train/masked_accuracy/text", "train/contrastive_accuracy/matched"} <= set(second)
        assert not any("flops" in name for _, found in figures for name in found)  # a CPU's peak is not known
        (scored,) = [found for _, found in figures if "val/score" in found]
        assert scored["val/score"] == scored["val/mean_accuracy"] == task.scores["mean_accuracy"]

    def test_a_run_without_contrast_logs_no_accuracy_of_it(self) -> None:
        ((_, found),) = run(task_of("matched"), [replace(triplets(4), pair_labels=None)]).written[:1]
        assert "train/masked_accuracy" in found and "train/contrastive_accuracy" not in found
        assert found["train/contrastive_loss"] == 0.0

    def test_the_gradient_norm_is_that_before_clipping(self) -> None:
        batch, task, alone = triplets(4), task_of(), task_of()
        output = alone.guess(batch)
        assert output.loss is not None
        output.loss.backward()
        norms = torch.stack([parameter.grad.norm() for parameter in alone.parameters()])  # type: ignore[union-attr]
        ((_, found),) = [one for one in run(task, [batch], gradient_clip_val=0.01).written if "train/loss" in one[1]]
        assert found["train/gradient_norm"] == pytest.approx(norms.norm().item(), rel=1e-5)
        assert norms.norm().item() > 1

    def test_figures_between_two_writings_are_of_all_batches(self) -> None:
        """Two batches an update, written at every second update: four batches each."""
        batches = [triplets(4, seed=seed) for seed in range(9)]
        task = task_of()
        guesses = [plain_forward(task, batch) for batch in batches]
        figures = run(task, batches, accumulate_grad_batches=2, log_every_n_steps=2).written
        written = [found for _, found in figures if "train/masked_accuracy" in found]
        assert len(written) == 2
        for found, start in zip(written, (0, 4), strict=True):
            some = slice(start, start + 4)
            right = torch.cat(
                [w.argmax(-1) == b.labels for (w, _), b in zip(guesses[some], batches[some], strict=True)]
            )
            real = torch.cat([batch.attention_mask.flatten() for batch in batches[some]])
            assert found["train/masked_accuracy"] == pytest.approx(100 * right.double().mean().item())
            assert found["train/padding_share"] == pytest.approx(1 - real.double().mean().item())

    def test_it_learns_and_a_checkpoint_is_enough_to_evaluate(self, tmp_path: Path) -> None:
        task, batch = task_of("mmf", classes=2, learning_rate=0.1), triplets(8, classes=2)
        found = [one for _, one in run(task, [batch] * 40, gradient_clip_val=1.0).written if "train/loss" in one]
        assert found[-1]["train/masked_loss"] < 0.5 * found[0]["train/masked_loss"]
        assert found[-1]["train/contrastive_loss"] < 0.5 * found[0]["train/contrastive_loss"]
        checkpoint = {"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}
        torch.save(checkpoint, tmp_path / "one.ckpt")
        again = PretrainingTask.from_checkpoint(torch.load(tmp_path / "one.ckpt", weights_only=True), "one.ckpt")
        assert (again.variant, again.config.num_labels) == ("mmf", 2)
        assert all(torch.equal(value, task.state_dict()[name]) for name, value in again.state_dict().items())


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"variant": "vilt"}, "data.variant is 'vilt'; choose one of oscar, mmf, matched"),
            ({"classes": 4}, "The contrast has 4 classes"),
        ],
    )
    def test_values_that_nobody_published(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            task_of(**options)

    def test_there_is_nothing_to_predict(self) -> None:
        with pytest.raises(UserError, match="Pre-training makes no predictions"):
            task_of().predict_step(triplets(2), 0)


def test_numbers_beyond_the_tokenizer_are_shown_as_such(demo_data: Path) -> None:
    tokenizer = load_tokenizer(demo_data / "demo" / "tokenizer")
    assert written(tokenizer, torch.tensor([tokenizer.cls_token_id, len(tokenizer) + 7])) == "[CLS] ?"

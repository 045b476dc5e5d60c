"""The best checkpoint so far, when a run goes on somewhere else; what a sweep is handed; early stopping's patience."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from vinvl.run.callbacks import StopEarly
from vinvl.run.checkpoint import AtomicCheckpointIO, BestCheckpoint, RunCheckpoint, best_checkpoint
from vinvl.run.errors import UserError


class Scripted(pl.LightningModule):
    """A model of one weight, which has been trained as often as it says, with evaluations that are given."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return -self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        content["vinvl"] = {"run_config": {}}
        content["hyper_parameters"] = {}


def run(folder: Path, scores: list[float], given: Path | None = None, **patience: int) -> pl.Trainer:
    """A run of as many epochs as there are scores, of one update each, that goes on from a checkpoint."""
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    last = RunCheckpoint(folder / "last.ckpt")
    best = BestCheckpoint(
        dirpath=folder, filename="best", monitor="val/score", mode="max", enable_version_counter=False
    )
    stop = [StopEarly(monitor="val/score", mode="max", check_on_train_epoch_end=False, **patience)] if patience else []
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=len(scores), callbacks=[*stop, best, last], num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()], default_root_dir=folder, **options,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader([0])
    trainer.fit(Scripted(scores), loader, loader, ckpt_path=given, weights_only=True)
    return trainer


def weight(path: Path) -> float:
    """In a checkpoint: as many updates as it has seen."""
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"])


BEST_FIRST = [0.1, 0.5, 0.3]  # the best is that of the second epoch


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "checkpoints"
    run(folder, BEST_FIRST)
    assert weight(folder / "best.ckpt") == 2 and weight(folder / "last.ckpt") == 3
    return folder


def test_a_folder_that_was_moved_keeps_its_best(first: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(first, tmp_path / "moved")
    trainer = run(moved, [*BEST_FIRST, 0.4], moved / "last.ckpt")
    assert weight(moved / "best.ckpt") == 2 and weight(moved / "last.ckpt") == 4
    assert best_checkpoint(trainer) == str(moved / "best.ckpt")
    again = shutil.copytree(moved, tmp_path / "again")
    run(again, [*BEST_FIRST, 0.4, 0.6], again / "last.ckpt")
    assert weight(again / "best.ckpt") == 5
    assert sorted(path.name for path in again.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize(("given", "updates"), [("last.ckpt", 2), ("best.ckpt", 2)])
def test_from_a_file_of_another_folder_the_best_comes_along(
    first: Path, tmp_path: Path, given: str, updates: int
) -> None:
    trainer = run(tmp_path / "new", [*BEST_FIRST, 0.4], first / given)
    assert weight(tmp_path / "new/best.ckpt") == updates
    assert best_checkpoint(trainer) == str(tmp_path / "new/best.ckpt")
    assert weight(first / "best.ckpt") == 2 and weight(first / "last.ckpt") == 3


def test_the_best_checkpoint_under_another_name_is_known_as_it(first: Path, tmp_path: Path) -> None:
    shutil.copyfile(first / "best.ckpt", tmp_path / "release.ckpt")
    run(tmp_path / "new", [*BEST_FIRST, 0.4], tmp_path / "release.ckpt")
    assert weight(tmp_path / "new/best.ckpt") == 2


@pytest.mark.parametrize("beside", [None, [0.1, 0.9], [0.5]])
def test_a_best_that_is_not_at_hand_is_not_replaced_by_worse(
    first: Path, tmp_path: Path, beside: list[float] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing lies beside the given file, or the best of another run, be its score the same."""
    if beside is not None:
        run(tmp_path, beside)
    shutil.copyfile(first / "last.ckpt", tmp_path / "alone.ckpt")
    trainer = run(tmp_path / "new", [*BEST_FIRST, 0.4], tmp_path / "alone.ckpt")
    assert not (tmp_path / "new/best.ckpt").exists()
    assert best_checkpoint(trainer) is None
    assert "No file of the best evaluation so far (val/score 0.5) is at hand" in capsys.readouterr().out
    run(tmp_path / "new", [*BEST_FIRST, 0.4, 0.45, 0.6, 0.2], tmp_path / "new/last.ckpt")
    assert weight(tmp_path / "new/best.ckpt") == 6


def test_killed_between_the_best_and_the_last(first: Path, tmp_path: Path) -> None:
    """The evaluation that is made again comes out a little worse, as on a GPU it may."""
    folder = shutil.copytree(first, tmp_path / "run")
    run(folder, [*BEST_FIRST, 0.7], folder / "last.ckpt")
    shutil.copyfile(first / "last.ckpt", folder / "last.ckpt")
    before = (folder / "best.ckpt").read_bytes()
    trainer = run(folder, [*BEST_FIRST, 0.69], folder / "last.ckpt")
    assert (folder / "best.ckpt").read_bytes() == before and best_checkpoint(trainer) == str(folder / "best.ckpt")


def test_a_run_that_has_ended_knows_its_best(first: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(first, tmp_path / "moved")
    assert best_checkpoint(run(moved, BEST_FIRST, moved / "last.ckpt")) == str(moved / "best.ckpt")


def test_a_best_checkpoint_in_the_way_is_kept_under_another_name(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(first, tmp_path / "run")
    run(folder, [0.2])  # a run that begins anew in the folder of another
    assert weight(folder / "best.1.ckpt") == 2 and weight(folder / "best.ckpt") == 1
    assert "best.ckpt is no best checkpoint of this run: it is kept as best.1.ckpt" in capsys.readouterr().out
    (folder / "best.ckpt").write_bytes(b"damaged")
    run(folder, [0.2, 0.1], folder / "last.ckpt")
    assert (folder / "best.2.ckpt").read_bytes() == b"damaged" and not (folder / "best.ckpt").exists()


def test_checkpoints_of_earlier_versions_and_hostile_ones(first: Path, tmp_path: Path) -> None:
    """Lightning's callback noted no step; what a file names for removal is not removed."""
    content = torch.load(first / "last.ckpt", weights_only=True)
    (key,) = [name for name in content["callbacks"] if "val/score" in name]
    assert key.startswith("ModelCheckpoint{")
    folder = shutil.copytree(first, tmp_path / "old")
    del content["callbacks"][key]["best_step"]
    torch.save(content, folder / "last.ckpt")
    run(folder, [*BEST_FIRST, 0.4], folder / "last.ckpt")
    assert weight(folder / "best.ckpt") == 2
    state = content["callbacks"][key]
    state["best_k_models"] = {str(folder / ".."): torch.tensor(0.9), 3: "x", str(folder / "a.ckpt"): [1]}
    state["kth_best_model_path"] = state["best_model_path"] = str(folder / "..")
    for name in content["callbacks"]:
        content["callbacks"][name]["best_model_path"] = str(folder / "..")
    torch.save(content, folder / "last.ckpt")
    run(folder, [*BEST_FIRST, 0.8], folder / "last.ckpt")
    assert weight(folder / "best.ckpt") == 4


def test_several_best_checkpoints_need_names_of_their_own() -> None:
    with pytest.raises(UserError, match=r"would write all checkpoints to best\.ckpt"):
        BestCheckpoint(filename="best", save_top_k=3, monitor="val/score")
    BestCheckpoint(filename="best-{step}", save_top_k=3, monitor="val/score")


def test_early_stopping_goes_on_counting_with_the_patience_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert run(tmp_path, scores[:2], patience=2).global_step == 2
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert run(moved, scores, moved / "last.ckpt", patience=2).global_step == 3  # counted on, not anew
    capsys.readouterr()
    assert run(moved, scores, moved / "last.ckpt", patience=2).global_step == 3  # it had stopped
    assert "has not improved for 2 evaluations" in capsys.readouterr().out
    assert run(moved, scores, moved / "last.ckpt", patience=4).global_step == 5

"""Trained models and the stores they were trained on, made once for all tests of the predictor."""

import warnings
from pathlib import Path

import pytest

import vinvl
from tests.predictor.samples import extracted, train, train_on


@pytest.fixture(scope="session")
def runs(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The best checkpoint of a run of each task on the demo world, whose features have 2,048 numbers."""
    folder = tmp_path_factory.mktemp("runs")
    more = {"vqa": [], "nlvr2": [], "retrieval": [], "captioning": ["trainer.max_epochs=3"]}
    return {task: train(task, demo_data, folder / task, *given) for task, given in more.items()}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """features.h5, detector.pth and pictures/."""
    folder = tmp_path_factory.mktemp("extracted")
    extracted(folder)
    return folder


@pytest.fixture(scope="session")
def own_runs(folder: Path, demo_data: Path) -> dict[str, Path]:
    """The checkpoint of a model of each task that trains on the pictures of `folder`."""
    captioning = ["task.options.java_metrics=false", "data.max_caption_tokens=12", "decoding.max_length=9"]
    more = {"vqa": [], "captioning": captioning, "retrieval": []}
    store = folder / "features.h5"
    return {task: train_on(store, task, demo_data, folder / task, *given) for task, given in more.items()}


@pytest.fixture(scope="session")
def model(folder: Path, own_runs: dict[str, Path]) -> vinvl.Predictor:
    """A model for VQA with the detector that made its features, and with the store of them."""
    given = {"detector": folder / "detector.pth", "features": folder / "features.h5"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return vinvl.load(own_runs["vqa"], device="cpu", **given)

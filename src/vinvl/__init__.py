"""Train, evaluate and use VinVL / Oscar+ models over text tokens, object tags and region features."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from vinvl.run.moved import EarlierNames

if TYPE_CHECKING:
    from vinvl.captioning.data import CaptioningDataModule
    from vinvl.captioning.task import CaptioningTask
    from vinvl.composing import compose
    from vinvl.gqa.data import GQADataModule
    from vinvl.gqa.task import GQATask
    from vinvl.nlvr2.data import NLVR2DataModule
    from vinvl.nlvr2.task import NLVR2Task
    from vinvl.predictor.predictor import Predictor, load
    from vinvl.pretraining.data import PretrainingDataModule
    from vinvl.pretraining.task import PretrainingTask
    from vinvl.regions.store import RegionStore
    from vinvl.retrieval.data import RetrievalDataModule
    from vinvl.retrieval.task import RetrievalTask
    from vinvl.train import run as train
    from vinvl.vqa.data import VQADataModule
    from vinvl.vqa.task import VQATask

__version__ = "0.1.0"
_ROOMS = {  # names that are here once they are asked for: what they need takes seconds to import
    "compose": "composing", "Predictor": "predictor", "load": "predictor", "RegionStore": "regions",
    **{
        f"{task}{kind}": f"{task.lower()}.{file}"
        for task in ("VQA", "GQA", "NLVR2", "Retrieval", "Captioning", "Pretraining")
        for kind, file in (("DataModule", "data"), ("Task", "task"))
    },
}  # fmt: skip
__all__ = [
    "CaptioningDataModule", "CaptioningTask", "GQADataModule", "GQATask", "NLVR2DataModule", "NLVR2Task", "Predictor",
    "PretrainingDataModule", "PretrainingTask", "RegionStore", "RetrievalDataModule", "RetrievalTask", "VQADataModule",
    "VQATask", "__version__", "compose", "load", "train",
]  # fmt: skip

sys.meta_path.append(EarlierNames())

if sys.argv[:1] == ["-m"]:  # so while Python looks for `python -m vinvl.NAME`, which then takes seconds to import
    from vinvl.run.signals import end_at_once

    end_at_once()


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("vinvl.train")  # which can be called
    if name in _ROOMS:
        return getattr(importlib.import_module(f"vinvl.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'vinvl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

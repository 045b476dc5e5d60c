"""Where modules, classes and functions have moved to that people's code and files of earlier versions name."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from types import ModuleType
from typing import Any

MODULES = {  # those that documents of earlier versions showed
    "vinvl.errors": "vinvl.run.errors",
    "vinvl.detection": "vinvl.detector",
    "vinvl.data.corpus": "vinvl.pretraining.corpus",
    "vinvl.data.corpus.__main__": "vinvl.pretraining.command",
    "vinvl.data.demo": "vinvl.demo",
    "vinvl.data.detection": "vinvl.detector",
    "vinvl.data.detection.coco_instances": "vinvl.detector.instances",
    "vinvl.data.features_in": "vinvl.regions.formats.convert",
    "vinvl.data.pictures": "vinvl.pictures",
    "vinvl.data.store": "vinvl.regions",
    "vinvl.data.store.__main__": "vinvl.regions.__main__",
}
MOVED = {
    "vinvl.callbacks.SamplesPerSecond": "vinvl.run.callbacks.SamplesPerSecond",
    "vinvl.callbacks.StopEarly": "vinvl.run.callbacks.StopEarly",
    "vinvl.callbacks.progress": "vinvl.run.callbacks.progress",
    "vinvl.checkpointing.AtomicCheckpointIO": "vinvl.run.checkpoint.AtomicCheckpointIO",
    "vinvl.checkpointing.BestCheckpoint": "vinvl.run.checkpoint.BestCheckpoint",
    "vinvl.checkpointing.RunCheckpoint": "vinvl.run.checkpoint.RunCheckpoint",
    "vinvl.data.captioning.CaptioningDataModule": "vinvl.captioning.data.CaptioningDataModule",
    "vinvl.data.demo.ensure_demo_world": "vinvl.demo.ensure_demo_world",
    "vinvl.data.demo.instances.ensure_demo_instances": "vinvl.demo.world.ensure_demo_instances",
    "vinvl.data.demo.pretraining.ensure_demo_corpus": "vinvl.demo.world.ensure_demo_corpus",
    "vinvl.data.detection.DetectionDataModule": "vinvl.detector.data.DetectionDataModule",
    "vinvl.data.gqa.GQADataModule": "vinvl.gqa.data.GQADataModule",
    "vinvl.data.nlvr2.NLVR2DataModule": "vinvl.nlvr2.data.NLVR2DataModule",
    "vinvl.data.pictures.ReadingOptions": "vinvl.pictures.ReadingOptions",
    "vinvl.data.pretraining.PretrainingDataModule": "vinvl.pretraining.data.PretrainingDataModule",
    "vinvl.data.retrieval.RetrievalDataModule": "vinvl.retrieval.data.RetrievalDataModule",
    "vinvl.data.vqa.VQADataModule": "vinvl.vqa.data.VQADataModule",
    "vinvl.detection.Architecture": "vinvl.detector.Architecture",
    "vinvl.detection.DetectorConfig": "vinvl.detector.DetectorConfig",
    "vinvl.detection.training.TrainingSettings": "vinvl.detector.config.TrainingSettings",
    "vinvl.models.generation.DecodingOptions": "vinvl.models.decoding.DecodingOptions",
    "vinvl.multirun.MultirunTable": "vinvl.run.progress.MultirunTable",
    "vinvl.preemption.StopOnSignal": "vinvl.run.survival.StopOnSignal",
    "vinvl.run_folder.RunFolder": "vinvl.run.folders.RunFolder",
    "vinvl.tasks.base.VinVLTask": "vinvl.task.VinVLTask",
    "vinvl.tasks.captioning.CaptioningTask": "vinvl.captioning.task.CaptioningTask",
    "vinvl.tasks.captioning.CaptioningTask.build": "vinvl.captioning.task.CaptioningTask.build",
    "vinvl.tasks.detection.DetectorTask": "vinvl.detector.task.DetectorTask",
    "vinvl.tasks.gqa.GQATask": "vinvl.gqa.task.GQATask",
    "vinvl.tasks.gqa.GQATask.build": "vinvl.gqa.task.GQATask.build",
    "vinvl.tasks.nlvr2.NLVR2Task": "vinvl.nlvr2.task.NLVR2Task",
    "vinvl.tasks.nlvr2.NLVR2Task.build": "vinvl.nlvr2.task.NLVR2Task.build",
    "vinvl.tasks.pretraining.PretrainingTask": "vinvl.pretraining.task.PretrainingTask",
    "vinvl.tasks.pretraining.PretrainingTask.build": "vinvl.pretraining.task.PretrainingTask.build",
    "vinvl.tasks.retrieval.RetrievalTask": "vinvl.retrieval.task.RetrievalTask",
    "vinvl.tasks.retrieval.RetrievalTask.build": "vinvl.retrieval.task.RetrievalTask.build",
    "vinvl.tasks.schedules.constant_schedule": "vinvl.schedules.constant_schedule",
    "vinvl.tasks.schedules.cosine_schedule": "vinvl.schedules.cosine_schedule",
    "vinvl.tasks.schedules.linear_schedule": "vinvl.schedules.linear_schedule",
    "vinvl.tasks.schedules.multistep_schedule": "vinvl.schedules.multistep_schedule",
    "vinvl.tasks.vqa.VQATask": "vinvl.vqa.task.VQATask",
    "vinvl.tasks.vqa.VQATask.build": "vinvl.vqa.task.VQATask.build",
}


def with_new_names(value: Any) -> Any:
    """Nested dicts and lists of a file with the names of today."""
    if isinstance(value, dict):
        return {key: with_new_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_new_names(item) for item in value]
    return MOVED.get(value, value) if isinstance(value, str) else value


class EarlierNames(MetaPathFinder, Loader):
    """Imports `MODULES` by their earlier names, with a DeprecationWarning; to be asked last."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        today = find_spec(MODULES[fullname]) if fullname in MODULES else None
        if today is None or today.origin is None:
            return None
        if fullname.endswith(".__main__"):  # which `python -m` runs, and nobody imports
            return spec_from_file_location(fullname, today.origin)
        runs = f"{fullname}.__main__" in MODULES
        return ModuleSpec(fullname, self, is_package=runs or today.submodule_search_locations is not None)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        today = MODULES[spec.name]
        warnings.warn(f"{spec.name} is {today} now.", DeprecationWarning, stacklevel=2)
        module = import_module(today)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec  # which Python has just replaced

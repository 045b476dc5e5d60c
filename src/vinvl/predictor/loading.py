"""A trained model, a detector or a store of features, and what belongs to them → a `Predictor`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from vinvl.captioning.constraints import DetectedConstraints
from vinvl.detector.config import DetectorConfig
from vinvl.detector.weights import OpenedDetector, open_detector, sha256_of_file
from vinvl.extraction.provenance import trained_config, trained_reading, unlike_detector
from vinvl.pictures import ReadingOptions
from vinvl.predictor.pictures import Computing, Looking
from vinvl.predictor.predictor import Predictor, Skill
from vinvl.predictor.skills import Answering, Captioning, Judging, Matching
from vinvl.predictor.trained import TrainedModel, open_trained
from vinvl.regions.feature_record import OtherFeatures, unlike_store
from vinvl.regions.regions import BOX_NUMBERS
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError, printable

PICTURES_ON_GPU = 8  # through the detector at once; on a CPU one at a time is as fast
Configure = Callable[[DetectorConfig | None], DetectorConfig]


def load(
    model: str | Path,
    *,
    detector: str | Path | None = None,
    labels: str | Path | None = None,
    detector_config: DetectorConfig | Configure | None = None,
    features: str | Path | Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    answers: str | Path | Sequence[str] | None = None,
    task: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    decoding: Mapping[str, Any] | None = None,
    reading: ReadingOptions | Mapping[str, Any] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 64,
    detector_batch_size: int | None = None,
) -> Predictor:
    """A trained model ready to be asked about pictures.

    What it was trained with — tokenizer, answers, how much it sees, how it decodes — is taken from its checkpoint or,
    of a folder of `vinvl.convert`, from its vinvl.json. Of other people's weights it is as published: the numbers of
    `conf/data` and `conf/decoding`, whose sources stand there.

    Args:
        model: a checkpoint of `vinvl.train` (.ckpt), a run's folder (its best checkpoint, else its last), a folder
            of `vinvl.convert`, a published Oscar or MMF checkpoint, or a name on the Hugging Face hub.
        detector, labels: weight file that pictures are looked at with, and its label map; see `open_detector`.
        detector_config: how it is used, or a function from what is known of that (None if nothing is) to it. None: as
            for the features that the model was trained on, where these weights have made them; else as the weight file
            says; else as in the published demo.
        features: a region store (or several), whose image ids stand for pictures.
        tokenizer, answers: a folder or hub name; a file (JSON, or a published trainval_label2ans.pkl) or the texts,
            where the model does not carry its own.
        task: vqa, gqa, nlvr2, retrieval or captioning, where the weights do not show what they were trained for.
        inputs, decoding: in place of the model's own, see `predictor.trained.Usage` and `DecodingOptions`.
        reading: how files and Pillow images become pixels, or only some of its options. The others are as for the
            features that the model was trained on, or as published if that is unknown.
        device, dtype: cuda or cpu, None: the GPU if there is one; float32, or bfloat16 for mixed precision.
        batch_size: texts, or pictures to write captions for, in one forward pass.
        detector_batch_size: pictures of one padded size through the detector at once; None: 8 on a GPU, 1 on a CPU.

    Warns:
        OtherFeatures: detector or features are not those that the model was trained on, as far as that is known.

    Raises:
        UserError: something is missing, damaged, or does not fit the rest.
    """
    computing = Computing.of(device, dtype, batch_size)
    trained = open_trained(model, task=task, tokenizer=tokenizer, answers=answers, inputs=inputs, decoding=decoding)
    if not isinstance(reading, ReadingOptions):
        reading = replace(trained_reading(trained.features), **(reading or {}))
    opened = None if detector is None else _detector(detector, labels, detector_config, trained, reading)
    store = None if features is None else _store(features, trained)
    for network in (trained.model, *(() if opened is None else (opened.detector,))):
        cast(torch.nn.Module, network).to(computing.device)
    feature_dtype = getattr(torch, trained.features.feature_dtype or "float16")  # as `vinvl.extract` does by default
    at_once = _pictures_at_once(detector_batch_size, computing)
    looking = Looking(store, opened, reading, computing, feature_dtype, at_once)
    return Predictor(trained, looking, _skill(trained, store, computing))


def _detector(
    weights: str | Path,
    labels: str | Path | None,
    config: DetectorConfig | Configure | None,
    trained: TrainedModel,
    reading: ReadingOptions,
) -> OpenedDetector:
    """The detector as the model's features want it. Warns where it makes others."""
    path, record = Path(weights).expanduser(), trained.features
    sha256 = ""
    if "weights_sha256" in record.provenance:
        with suppress(OSError):  # of a file that cannot be read the detector's loading says why
            sha256 = sha256_of_file(path)

    def configure(own: DetectorConfig | None) -> DetectorConfig:
        known = trained_config(record, sha256, own) if sha256 else own
        if isinstance(config, DetectorConfig):
            return config
        return config(known) if config is not None else known or DetectorConfig()

    opened = open_detector(path, labels, configure)
    _check_dimension(trained, opened.detector.config.architecture.c5_channels, f"The detector {path} makes")
    _warn(unlike_detector(record, opened, sha256, reading))
    if trained.used is not None and trained.used.usage.use_tags and not opened.label_map.classes:
        raise UserError(
            f"{path} has no names of classes, and {trained.name} was trained with them as tags: pass labels=FILE, or "
            "inputs={'use_tags': False} to do without."
        )
    if trained.used is not None and trained.used.usage.tags is not None:
        _warn(
            f"{trained.name} was trained with tags from {trained.used.usage.tags}; those of a picture are the classes "
            "that the detector finds."
        )
    return opened


def _store(features: str | Path | Sequence[str | Path], trained: TrainedModel) -> RegionStore:
    """The store of the image ids. Warns where its features are others than the model's."""
    store = RegionStore(features)
    store.require_sound()
    _check_dimension(trained, store.feature_dim, f"{store!r} holds")
    _warn(unlike_store(trained.features, store))
    return store


def _check_dimension(trained: TrainedModel, found: int, what: str) -> None:
    wanted = trained.model.config.img_feature_dim - BOX_NUMBERS
    if found != wanted:
        raise UserError(
            f"{what} features of {found:,} numbers, and {trained.name} was trained on features of {wanted:,}: give "
            "those that it was trained on."
        )


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        warnings.warn(printable(sentence), OtherFeatures, stacklevel=4)  # where `load` is called


def _pictures_at_once(given: int | None, computing: Computing) -> int:
    if given is None:
        return 1 if computing.device.type == "cpu" else PICTURES_ON_GPU
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise UserError(f"detector_batch_size={given!r} must be a whole number of at least 1.")
    return given


def _skill(trained: TrainedModel, store: RegionStore | None, computing: Computing) -> Skill | None:
    """What a model of this task can do; None for one that can only have its pictures' regions found."""
    if trained.used is None:
        return None
    used = trained.used
    model, usage = cast(Any, trained.model), used.usage  # of the class that the task has
    match trained.task:
        case "vqa" | "gqa":
            return Answering(model, used.tokenizer, used.answers, computing)
        case "nlvr2":
            return Judging(model, used.tokenizer, computing)
        case "retrieval":
            return Matching(model, used.tokenizer, usage.attention_type, computing)
    constraints = None
    if usage.constraint_options is not None:
        options = usage.decoding_options
        constraints = DetectedConstraints(usage.constraint_options, store, used.tokenizer, options.max_length)
    return Captioning(model, used.tokenizer, usage, constraints, computing)

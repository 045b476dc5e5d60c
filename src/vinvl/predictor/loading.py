"""A trained model, a detector or a store of features, and what belongs to them → a `Predictor`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from vinvl.captioning.constraints import DetectedConstraints
from vinvl.data.inputs import RegionText
from vinvl.data.tags import tag_source
from vinvl.detector.config import DetectorConfig
from vinvl.detector.weights import OpenedDetector, open_detector, sha256_of_file
from vinvl.extraction.provenance import trained_config, trained_reading, unlike_detector
from vinvl.models.config import SpecialTokens
from vinvl.pictures import ReadingOptions
from vinvl.predictor.pictures import Computing, Looking, Taking
from vinvl.predictor.predictor import Predictor, Skill
from vinvl.predictor.skills import Answering, Captioning, Judging, Matching
from vinvl.predictor.trained import TrainedModel, Used, open_trained
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

    What a model was trained with — tokenizer, answers, how much of text, tags and regions it sees, how it decodes — is
    taken from its checkpoint or, of a folder that `vinvl.convert` has written from one, from its vinvl.json. Of other
    people's weights it is as published: the numbers of `conf/data` and `conf/decoding`, whose sources stand there.

    Args:
        model: a checkpoint of `vinvl.train` (.ckpt), a run's folder (its best checkpoint, else its last), a folder
            of `vinvl.convert`, a published Oscar or MMF checkpoint, or a name on the Hugging Face hub.
        detector: the weight file that pictures are looked at with, such as vinvl_vg_x152c4.pth.
        labels: its label map; None: the one within or beside the weight file.
        detector_config: how it is used, or a function from what is known of that (None if nothing is) to it. None: as
            for the features that the model was trained on, where these weights have made them; else as the weight file
            says; else as in the published demo.
        features: a region store (or several), whose image ids stand for pictures.
        tokenizer: a folder or hub name, where it is not the one of the training run or beside the weights.
        answers: a file (JSON, or a published trainval_label2ans.pkl) or the texts, where the model does not carry them.
        task: vqa, gqa, nlvr2, retrieval or captioning, where the weights do not show what they were trained for.
        inputs: in place of the model's own: max_tokens, max_regions, use_tags, use_regions, tags, max_caption_tokens,
            attention_type (see `trained.usage.Usage`).
        decoding: in place of the model's own: num_beams, num_return_sequences, … (see `DecodingOptions`).
        reading: how files and Pillow images become pixels, EXIF orientation among it, or only some of its options. The
            others are as for the features that the model was trained on, or as published if that is unknown.
        device: cuda or cpu; None: the GPU if there is one.
        dtype: float32, or bfloat16 for mixed precision.
        batch_size: texts, or pictures to write captions for, in one forward pass.
        detector_batch_size: pictures through the detector at once, of those that are padded to one size in any case;
            None: 8 on a GPU, 1 on a CPU.

    Warns:
        OtherFeatures: detector or features are not those that the model was trained on, as far as that is known.

    Raises:
        UserError: something is missing, damaged, or does not fit the rest.
    """
    computing = Computing.of(device, dtype, batch_size)
    trained = open_trained(model, task=task, tokenizer=tokenizer, answers=answers, inputs=inputs, decoding=decoding)
    if not isinstance(reading, ReadingOptions):
        reading = replace(trained_reading(trained.features), **(reading or {}))
    opened = None
    if detector is not None:
        opened = _detector(Path(detector).expanduser(), labels, detector_config, trained, reading)
        opened.detector.to(computing.device)
    store = None if features is None else _store(features, trained)
    cast(torch.nn.Module, trained.model).to(computing.device)
    looking = Looking(
        taking=Taking(store, None if opened is None else opened.detector.config, reading),
        store=store,
        detector=opened,
        computing=computing,
        feature_dtype=getattr(torch, trained.features.feature_dtype or "float16"),  # as `vinvl.extract` does by default
        batch_size=_pictures_at_once(detector_batch_size, computing),
    )
    used = trained.used
    if used is None:
        return Predictor(trained, looking, None, None)
    return Predictor(trained, looking, _skill(trained, used, store, computing), _store_text(used, store))


class _Weights:
    """A detector's weight file, whose hash is taken once, if at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def sha256(self) -> str:
        """ "" of a file that cannot be read, of which the detector's loading says why."""
        try:
            return sha256_of_file(self.path)
        except OSError:
            return ""


def _detector(
    path: Path,
    labels: str | Path | None,
    config: DetectorConfig | Configure | None,
    trained: TrainedModel,
    reading: ReadingOptions,
) -> OpenedDetector:
    """The detector as the model's features want it. Warns where it makes others."""
    weights, record = _Weights(path), trained.features

    def configure(own: DetectorConfig | None) -> DetectorConfig:
        known = trained_config(record, weights.sha256, own) if "weights_sha256" in record.provenance else own
        if isinstance(config, DetectorConfig):
            return config
        return config(known) if config is not None else known or DetectorConfig()

    opened = open_detector(path, labels, configure)
    _check_dimension(trained, opened.detector.config.architecture.c5_channels, f"The detector {path} makes")
    if "weights_sha256" in record.provenance:
        _warn(unlike_detector(record, opened, weights.sha256, reading))
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


def _store_text(used: Used, store: RegionStore | None) -> RegionText | None:
    if store is None:
        return None
    tags = tag_source(used.usage.tags, store, used.tokenizer)
    return RegionText(store, tags, used.usage.limits, SpecialTokens.of(used.tokenizer))


def _skill(trained: TrainedModel, used: Used, store: RegionStore | None, computing: Computing) -> Skill:
    """What a model of this task can do."""
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

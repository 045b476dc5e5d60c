"""A trained model ready for use, whoever trained it: its task, what it sees of its inputs, how it decodes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vinvl.captioning.constraints import ConstraintOptions
from vinvl.captioning.data import CaptionLimits
from vinvl.captioning.task import positions_needed
from vinvl.data.inputs import InputLimits
from vinvl.models.decoding import DecodingOptions
from vinvl.models.encoder import VinVLModel
from vinvl.models.published import ENCODER, MODEL_OF_TASK, check_tokenizer, convert_model
from vinvl.models.weight_files import DATA_PARALLEL, MMF_MODEL, CheckpointFiles
from vinvl.models.weights import LoadingReport
from vinvl.opening import OpenedModel, find_answers, find_tokenizer, rows_of_given
from vinvl.regions.feature_record import FeatureRecord
from vinvl.retrieval.candidates import ATTENTION_TYPES
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory

# The published numbers of each task, with their sources, are in these files of conf/data.
DATA_OF_TASK = {"vqa": "vqa", "gqa": "gqa", "nlvr2": "nlvr2", "retrieval": "retrieval", "captioning": "captions"}
MOST = 2**20  # tokens or regions: more is no setting of anybody's
MMF_RECIPE = "vqa2_mmf"  # in conf/experiment: MMF's models see other numbers of tokens and regions


@dataclass(frozen=True)
class Usage:
    """The settings of `conf/data` and `conf/decoding` that a trained model has to be used with.

    Attributes:
        max_tokens, max_regions, use_tags, use_regions: see `InputLimits`.
        tags: where the tags of a store's images come from, if not from its classes (`tag_source`).
        max_caption_tokens: where the tags' positions begin, in captioning.
        attention_type: of retrieval, see `attention_mask_of`.
        decoding: fields of `DecodingOptions`, and under "constraints" those of `ConstraintOptions` or None.
    """

    max_tokens: int
    max_regions: int
    use_tags: bool
    use_regions: bool
    tags: str | None
    max_caption_tokens: int
    attention_type: str
    decoding: dict[str, Any]

    @classmethod
    def of_task(
        cls, task: str, said: Mapping[str, Any], inputs: Mapping[str, Any], decoding: Mapping[str, Any], place: str
    ) -> Usage:
        """As published, with what a run or folder has said on top, and with what a person gives on top of that.

        Args:
            task: a key of `DATA_OF_TASK`.
            said: from `said_by_run` or a folder's file: {"inputs": …, "decoding": …, "recipe": …}, all of it unchecked.
            inputs, decoding: given by a person, by name.
            place: names the model in messages.

        Raises:
            UserError: an unknown name, or a value that cannot be.
        """
        values = published_inputs(task, of_mmf=said.get("recipe") == MMF_RECIPE)
        search: dict[str, Any] = _read("decoding/caption")
        known = _section(said.get("inputs"))
        values |= {name: known[name] for name in values if name in known}
        known = _section(said.get("decoding"))
        search |= {name: known[name] for name in search if name in known}
        _refuse_unknown(inputs, values, f"inputs of {place}")
        _refuse_unknown(decoding, search, f"decoding of {place}")
        if isinstance(search["constraints"], Mapping) and isinstance(decoding.get("constraints"), Mapping):
            decoding = {**decoding, "constraints": {**search["constraints"], **decoding["constraints"]}}
        usage = cls(**{**values, **inputs}, decoding={**search, **decoding})
        usage._check(place)
        return usage

    def plain(self) -> dict[str, Any]:
        """{"inputs": …, "decoding": …}, as `of_task` takes it."""
        values = asdict(self)
        decoding = values.pop("decoding")
        return {"inputs": values, "decoding": decoding}

    @property
    def limits(self) -> InputLimits:
        return InputLimits(self.max_tokens, self.max_regions, self.use_tags, self.use_regions)

    @property
    def caption_limits(self) -> CaptionLimits:
        return CaptionLimits(self.max_caption_tokens, self.max_tokens, mask_probability=0.0, max_masked_tokens=0)

    @property
    def decoding_options(self) -> DecodingOptions:
        return DecodingOptions(**{name: value for name, value in self.decoding.items() if name != "constraints"})

    @property
    def constraint_options(self) -> ConstraintOptions | None:
        found = self.decoding["constraints"]
        return None if found is None else ConstraintOptions.of(found)

    def _check(self, place: str) -> None:
        """Refuses values of another kind than these; they may come from a file that anybody has written."""
        for name, least in (("max_tokens", 3), ("max_regions", 0), ("max_caption_tokens", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
                raise UserError(f"{place}: {name} is {_shown(value)}; give a whole number of at least {least}.")
        for name in ("use_tags", "use_regions"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{place}: {name} is {_shown(getattr(self, name))}; give true or false.")
        if not isinstance(self.tags, str | None):
            raise UserError(f"{place}: tags is {_shown(self.tags)}; give a store, a JSON file, or nothing.")
        if self.attention_type not in ATTENTION_TYPES:
            kinds = ", ".join(ATTENTION_TYPES)
            raise UserError(f"{place}: attention_type is {_shown(self.attention_type)}; give one of {kinds}.")
        for field in fields(DecodingOptions):
            value = self.decoding[field.name]
            kinds_of = (int, float) if isinstance(field.default, float) else (type(field.default),)
            right = isinstance(value, kinds_of) and (isinstance(value, bool) == isinstance(field.default, bool))
            if not right or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"{place}: decoding.{field.name} is {_shown(value)}, not like {field.default!r}.")
        constraints = self.decoding["constraints"]
        if not isinstance(constraints, Mapping | None):
            raise UserError(f"{place}: decoding.constraints is {_shown(constraints)}; give settings by name, or none.")
        try:
            _ = self.decoding_options, self.constraint_options
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        except TypeError:
            raise UserError(f"{place}: a value of decoding.constraints is of the wrong kind.") from None


def published_inputs(task: str, of_mmf: bool = False) -> dict[str, Any]:
    """The values of `Usage` besides decoding with which a task's models were published; of MMF's for VQA, MMF's."""
    found = {
        "max_caption_tokens": _read("data/captions")["max_caption_tokens"],
        "attention_type": _read("data/retrieval")["attention_type"],
    }
    found |= _read("data/_regions") | _read(f"data/{DATA_OF_TASK[task]}")
    if of_mmf and task == "vqa":
        found |= _read(f"experiment/{MMF_RECIPE}")["data"]
    return {field.name: found[field.name] for field in fields(Usage) if field.name != "decoding"}


def said_by_run(ours: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours says of its usage, unchecked, as `Usage.of_task` takes it."""
    record, parameters = _section(ours.get("vinvl")), _section(ours.get("hyper_parameters"))
    data = _section(_section(record.get("run_config")).get("data"))
    return {"inputs": data, "decoding": _section(parameters.get("decoding"))}


def _read(name: str) -> dict[str, Any]:
    """A file of ours under conf/, as it stands: what it refers to is not resolved."""
    content = yaml.safe_load((Path(config_directory()) / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _section(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], place: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}."
            raise UserError(f"The {place} have no '{name}'{hint}")


def _shown(value: object) -> str:
    """A value of a file that may hold anything, short enough for a sentence."""
    plain = isinstance(value, str | float | bool | None) or (isinstance(value, int) and abs(value) < 10**40)
    return repr(value)[:60] if plain else f"a {type(value).__name__}"


def only_task_of(model: object) -> str | None:
    """The task of a model that only one has."""
    tasks = [task for task, kind in MODEL_OF_TASK.items() if kind is type(model)]
    return tasks[0] if len(tasks) == 1 else None


def record_of_use(task: str | None, opened: OpenedModel, report: LoadingReport) -> dict[str, Any] | None:
    """What `USE_FILE` says of a model; None where the task is none that a model is used for.

    Of anybody else's weights no more than the task is known, and whether they are MMF's. Of paths the file has the last
    name alone, for folders are published.

    Raises:
        UserError: a checkpoint of ours says of itself what cannot be.
    """
    if task not in DATA_OF_TASK:
        return None
    if not opened.ours:
        return {"task": task, "recipe": recipe_of(report)}
    usage = Usage.of_task(task, said_by_run(opened.ours), {}, {}, opened.files.name).plain()
    if usage["inputs"]["tags"] is not None:
        usage["inputs"]["tags"] = Path(usage["inputs"]["tags"]).name
    constraints = usage["decoding"]["constraints"]
    if constraints is not None:
        usage["decoding"]["constraints"] = {name: _bare(value) for name, value in constraints.items()}
    return {"task": task, **usage, "features": opened.features.plain()}


def recipe_of(report: LoadingReport) -> str | None:
    """The recipe whose numbers weights are used with, where they are not those of Oscar: MMF's, by their names."""
    originals = (DATA_PARALLEL.sub("", original) for original, _ in report.renamed)
    return MMF_RECIPE if any(MMF_MODEL.match(name) for name in originals) else None


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(one) for one in value]
    return Path(value).name if isinstance(value, str) else value


ANSWERING = ("vqa", "gqa")
FINE_TUNING_TASKS = {"vqa": "vqa", "vqa_text": "vqa", "gqa": "gqa", "ir": "retrieval", "retrieval": "retrieval"}
"""`finetuning_task` in config.json, as Oscar's scripts and ours write it → the task."""


@dataclass(frozen=True)
class Used:
    """What a model that is used for a task needs besides its weights.

    Attributes:
        usage: what it sees of its inputs and how it decodes.
        tokenizer: the one that it was trained with.
        answers: those that an answering model chooses between; empty for others.
    """

    usage: Usage
    tokenizer: PreTrainedTokenizerBase
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, on the CPU.

    Attributes:
        name: as it was given.
        task: a key of `MODEL_OF_TASK`.
        model: of the class that the task has.
        used: what its use needs; None for encoders and pre-training models, which are no use as they are.
        features: how the features were made that it was trained on, as far as is known.
    """

    name: str
    task: str
    model: PreTrainedModel
    used: Used | None
    features: FeatureRecord


def open_trained(
    name: str | Path,
    *,
    task: str | None = None,
    tokenizer: str | Path | None = None,
    answers: str | Path | Sequence[str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """The model of a checkpoint of ours, of a run's folder, or of whatever `find_checkpoint` takes.

    Nothing that a file says is called; its settings are held against what they may be.

    Args:
        name: where it lies.
        task: what it was trained for, where neither the file nor its tensors show it.
        tokenizer: None: that of the training run, or the one beside the weights.
        answers: a file of them or the texts; None: those of the training run, or of the model's configuration.
        inputs, decoding: settings of `Usage` that go before those that the model was trained with.

    Raises:
        UserError: there is no such model, it is damaged, or something that it needs is not known.
    """
    place, opened = str(name), OpenedModel.of(name)
    files, ours = opened.files, opened.ours
    task = task or opened.task
    model, report = convert_model(files, task, None, lambda size: rows_of_given(answers, files, size, new_ones=False))
    model.requires_grad_(False)
    task = task or _task_of_model(model, files, place)
    if answers is not None and task not in ANSWERING:
        raise UserError(f"{place} is a model for {task}, which chooses no answers: leave answers out.")
    if decoding and task != "captioning":
        raise UserError(f"{place} is a model for {task}, which writes no captions: leave decoding out.")
    used = None
    if task in DATA_OF_TASK:
        known = said_by_run(ours) if ours else {"recipe": recipe_of(report), **opened.said}
        usage = Usage.of_task(task, known, inputs or {}, decoding or {}, place)
        _check_positions(model, usage, task, place)
        tokenizer_name, found = find_tokenizer(None if tokenizer is None else str(tokenizer), files)
        check_tokenizer(model, found, tokenizer_name)
        used = Used(usage, found, _answers(answers, files, model, task, place))
    return TrainedModel(place, task, model, used, opened.features)


def _task_of_model(model: PreTrainedModel, files: CheckpointFiles, place: str) -> str:
    """The task of a model whose file does not name it."""
    if type(model) is VinVLModel:
        return ENCODER
    found = only_task_of(model) or FINE_TUNING_TASKS.get(str(files.config.get("finetuning_task")))
    if found is None:
        raise UserError(
            f"{place} does not say what its classifier of {model.config.num_labels:,} was trained for: pass task=vqa, "
            "gqa or retrieval."
        )
    return found


def _answers(
    given: str | Path | Sequence[str] | None, files: CheckpointFiles, model: PreTrainedModel, task: str, place: str
) -> tuple[str, ...]:
    if task not in ANSWERING:
        return ()
    found = find_answers(given, files, model)
    if found is None:
        raise UserError(
            f"{place} does not carry the texts of its {model.config.num_labels:,} answers: pass answers=FILE, the "
            "trainval_label2ans.pkl that it was published with, or a JSON list."
        )
    return tuple(found)


def _check_positions(model: PreTrainedModel, usage: Usage, task: str, place: str) -> None:
    captions = task == "captioning"
    needed = positions_needed(usage.caption_limits, usage.decoding_options) if captions else usage.max_tokens
    known = model.config.max_position_embeddings
    if needed > known:
        raise UserError(
            f"{place}: the text of an example may take {needed} positions, and the model knows {known}: give a lower "
            f"max_tokens{' or max_length' if captions else ''}."
        )

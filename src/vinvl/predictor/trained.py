"""A trained model ready for use, whoever trained it: its task, what it sees of its inputs, how it decodes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from transformers import PreTrainedModel

from vinvl.captioning.constraints import ConstraintOptions
from vinvl.captioning.data import CaptionLimits
from vinvl.captioning.task import positions_needed
from vinvl.data.inputs import InputLimits
from vinvl.data.tags import RECORDS, TagForm
from vinvl.models import MODEL_OF_TASK
from vinvl.models.decoding import DecodingOptions
from vinvl.models.published import check_tokenizer, convert_model
from vinvl.models.weight_files import MMF_MODEL, CheckpointFiles
from vinvl.models.weights import LoadingReport
from vinvl.opening import OpenedModel, find_answers, find_tokenizer, rows_of_given
from vinvl.regions.store import FeatureRecord
from vinvl.retrieval.data import ATTENTION_TYPES
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory
from vinvl.run.values import shown

# The published numbers of each task, with their sources, are in these files of conf/data.
DATA_OF_TASK = {"vqa": "vqa", "gqa": "gqa", "nlvr2": "nlvr2", "retrieval": "retrieval", "captioning": "captions"}
MOST = 2**20  # tokens or regions: no model has room for more
MMF_RECIPE = "vqa2_mmf"  # in conf/experiment: MMF's models see other numbers of tokens and regions


@dataclass(frozen=True)
class Usage:
    """The settings of `conf/data` and `conf/decoding` that a trained model has to be used with."""

    max_tokens: int  # these four: see `InputLimits`
    max_regions: int
    use_tags: bool
    use_regions: bool
    tags: Any  # where the tags of a store's images come from, if not from its classes (`tag_source`)
    tag_vocabulary: str | None  # these two: see `TagChoice`
    tag_form: str
    max_caption_tokens: int  # where the tags' positions begin, in captioning
    attention_type: str  # of retrieval, see `attention_mask_of`
    decoding: dict[str, Any]  # fields of `DecodingOptions`, and as "constraints" those of `ConstraintOptions` or None

    @classmethod
    def of_task(
        cls, task: str, said: Mapping[str, Any], inputs: Mapping[str, Any], decoding: Mapping[str, Any], place: str
    ) -> Usage:
        """As published, with what a run or folder has said on top, and with what a person gives on top of that.

        Raises UserError for an unknown name, or a value that cannot be.

        Args:
            task: a key of `DATA_OF_TASK`.
            said: from `said_by_run` or a folder's file: {"inputs": …, "decoding": …, "recipe": …}, all of it unchecked.
            inputs, decoding: given by a person, by name.
            place: names the model in messages.
        """
        values = published_inputs(task, of_mmf=said.get("recipe") == MMF_RECIPE)
        search: dict[str, Any] = _read("decoding/caption")
        for name, known, given in (("inputs", values, inputs), ("decoding", search, decoding)):
            known |= {key: value for key, value in _section(said.get(name)).items() if key in known}
            for key in given:
                if key not in known:
                    close = difflib.get_close_matches(str(key), known, n=1)
                    hint = f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}."
                    raise UserError(f"The {name} of {place} have no '{key}'{hint}")
        if isinstance(search["constraints"], Mapping) and isinstance(decoding.get("constraints"), Mapping):
            decoding = {**decoding, "constraints": {**search["constraints"], **decoding["constraints"]}}
        usage = cls(**{**values, **inputs}, decoding={**search, **decoding})
        for key, value, fits, wanted in usage._checks():
            if not fits:
                raise UserError(f"{place}: {key} is {shown(value)}; give {wanted}.")
        try:
            _ = usage.decoding_options, usage.constraint_options
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        except TypeError:
            raise UserError(f"{place}: a value of decoding.constraints is of the wrong kind.") from None
        return usage

    @property
    def limits(self) -> InputLimits:
        return InputLimits(self.max_tokens, self.max_regions, self.use_tags, self.use_regions)

    @property
    def tags_of_store(self) -> str | list[str] | None:
        """`tags`, without those that belong to the records or to one split of the training: of these there are none."""
        return None if self.tags == RECORDS or isinstance(self.tags, dict) else self.tags

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

    def _checks(self) -> Iterator[tuple[str, Any, bool, str]]:
        """(name, value, whether it is of the right kind, what to give) of each; anybody may have written them."""
        for name, least in (("max_tokens", 3), ("max_regions", 0), ("max_caption_tokens", 2)):
            value = getattr(self, name)
            yield name, value, type(value) is int and least <= value <= MOST, f"a whole number of at least {least}"
        for name in ("use_tags", "use_regions"):
            yield name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false"
        listed = self.tags if isinstance(self.tags, list) else [] if self.tags is None else [self.tags]
        known = isinstance(self.tags, dict) or all(isinstance(one, str) for one in listed)
        yield "tags", self.tags, known, "a store, files of tags, or nothing"
        yield "tag_vocabulary", self.tag_vocabulary, isinstance(self.tag_vocabulary, str | None), "a file, or nothing"
        yield "tag_form", self.tag_form, self.tag_form in get_args(TagForm), f"one of {', '.join(get_args(TagForm))}"
        kinds = ", ".join(ATTENTION_TYPES)
        yield "attention_type", self.attention_type, self.attention_type in ATTENTION_TYPES, f"one of {kinds}"
        for field in fields(DecodingOptions):
            value = self.decoding[field.name]
            like = type(value) is type(field.default) or (isinstance(field.default, float) and type(value) is int)
            finite = not isinstance(value, float) or math.isfinite(value)
            yield f"decoding.{field.name}", value, like and finite, f"a value like {field.default!r}"
        constraints = self.decoding["constraints"]
        yield "decoding.constraints", constraints, isinstance(constraints, Mapping | None), "settings by name, or none"


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
    return {"inputs": _section(record.get("run_config")).get("data"), "decoding": parameters.get("decoding")}


def _read(name: str) -> dict[str, Any]:
    """A file of ours under conf/, as it stands: what it refers to is not resolved."""
    content = yaml.safe_load((Path(config_directory()) / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _section(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def only_task_of(model: object) -> str | None:
    """The task of a model that only one has."""
    tasks = [task for task, kind in MODEL_OF_TASK.items() if kind == type(model).__name__]
    return tasks[0] if len(tasks) == 1 else None


def record_of_use(task: str | None, opened: OpenedModel, report: LoadingReport) -> dict[str, Any] | None:
    """What `USE_FILE` says of a model; None for a task that no model is used for.

    Of other people's weights it says only the task, and whether they are MMF's. Of paths it has only the last name,
    because folders are published. Raises UserError if a checkpoint of ours says of itself what cannot be.
    """
    if task not in DATA_OF_TASK:
        return None
    if not opened.ours:
        return {"task": task, "recipe": recipe_of(report)}
    inputs = asdict(Usage.of_task(task, said_by_run(opened.ours), {}, {}, opened.files.name))
    decoding = inputs.pop("decoding")
    inputs |= {name: _bare(inputs[name]) for name in ("tags", "tag_vocabulary")}
    if decoding["constraints"] is not None:
        decoding["constraints"] = {name: _bare(value) for name, value in decoding["constraints"].items()}
    return {"task": task, "inputs": inputs, "decoding": decoding, "features": opened.features.plain()}


def recipe_of(report: LoadingReport) -> str | None:
    """The recipe whose numbers weights are used with, where they are not those of Oscar: MMF's, by their names."""
    return MMF_RECIPE if any(MMF_MODEL.match(original) for original, _ in report.renamed) else None


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(one) for one in value]
    if isinstance(value, dict):
        return {name: _bare(one) for name, one in value.items()}
    return Path(value).name if isinstance(value, str) else value


ANSWERING = ("vqa", "gqa")
FINE_TUNING_TASKS = {"vqa": "vqa", "vqa_text": "vqa", "gqa": "gqa", "ir": "retrieval", "retrieval": "retrieval"}
"""`finetuning_task` in config.json, as Oscar's scripts and ours write it → the task."""


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, on the CPU, with what its use needs.

    Attributes:
        name: as it was given; of a model on the Hugging Face hub NAME@COMMIT.
        task: a key of `MODEL_OF_TASK`.
        model: of the class that the task has.
        features: how the features were made that it was trained on, as far as is known.
        usage: what it sees of its inputs and how it decodes; None for encoders and pre-training models, which cannot be
            used as they are and have no tokenizer here.
        tokenizer: the one that it was trained with.
        answers: those that an answering model chooses between; empty for others.
    """

    name: str
    task: str
    model: PreTrainedModel
    features: FeatureRecord
    usage: Usage | None = None
    tokenizer: Any = None
    answers: tuple[str, ...] = ()


def open_trained(
    name: str | Path,
    *,
    task: str | None,
    tokenizer: str | Path | None,
    answers: str | Path | Sequence[str] | None,
    inputs: Mapping[str, Any] | None,
    decoding: Mapping[str, Any] | None,
) -> TrainedModel:
    """The model of a checkpoint of ours, of a run's folder, or of whatever `find_checkpoint` takes.

    Nothing that a file says is called; its settings are checked. Arguments as `load` has them. Raises UserError if
    there is no such model, it is damaged, or something that it needs is not known.
    """
    opened = OpenedModel.of(name)
    files = opened.files
    place = files.name if files.on_hub else str(name)
    task = task or opened.task
    model, report = convert_model(files, task, None, lambda size: rows_of_given(answers, files, size, new_ones=False))
    model.requires_grad_(False)
    task = task or _task_of_model(model, files, place)
    if answers is not None and task not in ANSWERING:
        raise UserError(f"{place} is a model for {task}, which chooses no answers: leave answers out.")
    if decoding and task != "captioning":
        raise UserError(f"{place} is a model for {task}, which writes no captions: leave decoding out.")
    trained = TrainedModel(place, task, model, opened.features)
    if task not in DATA_OF_TASK:
        return trained
    known = said_by_run(opened.ours) if opened.ours else {"recipe": recipe_of(report), **opened.said}
    usage = Usage.of_task(task, known, inputs or {}, decoding or {}, place)
    _check_positions(trained, usage)
    tokenizer_name, found = find_tokenizer(None if tokenizer is None else str(tokenizer), files)
    check_tokenizer(model, found, tokenizer_name)
    texts = find_answers(answers, files, model) if task in ANSWERING else ()
    if texts is None:
        raise UserError(
            f"{place} does not carry the texts of its {model.config.num_labels:,} answers: pass answers=FILE, the "
            "trainval_label2ans.pkl that it was published with, or a JSON list."
        )
    return replace(trained, usage=usage, tokenizer=found, answers=tuple(texts))


def _task_of_model(model: PreTrainedModel, files: CheckpointFiles, place: str) -> str:
    """The task of a model whose file does not name it."""
    found = only_task_of(model) or FINE_TUNING_TASKS.get(str(files.config.get("finetuning_task")))
    if found is None:
        raise UserError(
            f"{place} does not say what its classifier of {model.config.num_labels:,} was trained for: pass task=vqa, "
            "gqa or retrieval."
        )
    return found


def _check_positions(trained: TrainedModel, usage: Usage) -> None:
    captions = trained.task == "captioning"
    needed = positions_needed(usage.caption_limits, usage.decoding_options) if captions else usage.max_tokens
    known = trained.model.config.max_position_embeddings
    if needed > known:
        raise UserError(
            f"{trained.name}: the text of an example may take {needed} positions, and the model knows {known}: give a "
            f"lower max_tokens{' or max_length' if captions else ''}."
        )

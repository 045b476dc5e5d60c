"""How a model that was trained for a task is used: what it sees of its inputs, their layout, how it decodes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from vinvl.captioning.constraints import ConstraintOptions
from vinvl.captioning.data import CaptionLimits
from vinvl.data.inputs import InputLimits
from vinvl.models.decoding import DecodingOptions
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

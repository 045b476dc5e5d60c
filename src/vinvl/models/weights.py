"""Start a model from other weights: plain BERT, a published Oscar or VinVL checkpoint, or a folder of ours."""

import copy
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vinvl.models.config import VinVLConfig, refuse_wrong_fields
from vinvl.models.weight_files import Weights, find_checkpoint
from vinvl.run.errors import UserError, printable

NEW = -1  # no row there
ENCODER_PARTS = ("embeddings.", "encoder.", "pooler.", "img_embedding.", "LayerNorm.")
REQUIRED_PARTS = ("embeddings.", "encoder.")  # an encoder of which a part of these is random is a mistake, not a start
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
WORD_DECODER, WORD_BIAS = "cls.predictions.decoder.weight", "cls.predictions.bias"
SIZES = (  # a tensor, and what its length along an axis is in the configuration
    (WORD_EMBEDDINGS, 0, "vocab_size"),
    (WORD_EMBEDDINGS, 1, "hidden_size"),
    ("embeddings.position_embeddings.weight", 0, "max_position_embeddings"),
    ("embeddings.token_type_embeddings.weight", 0, "type_vocab_size"),
    ("encoder.layer.0.intermediate.dense.weight", 0, "intermediate_size"),
    ("img_embedding.weight", 1, "img_feature_dim"),
)
LAYER = re.compile(r"encoder\.layer\.(\d{1,9})\.")
KNOWN_MODEL_TYPES = ("bert", "vinvl")
Model = TypeVar("Model", bound=PreTrainedModel)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerRows:
    """Which row of a checkpoint's head each answer takes, matched by their texts."""

    there: tuple[str, ...]  # the answers of the checkpoint's head, by row
    here: tuple[str, ...]  # those of the model to build
    rows: tuple[int, ...]  # for each of `here` its row there, or `NEW`

    @classmethod
    def anew(cls, answers: Sequence[str]) -> Self:
        """All of them new."""
        return cls((), tuple(answers), (NEW,) * len(answers))

    @property
    def new(self) -> list[str]:
        """Answers without a row there: theirs are random."""
        return [answer for answer, row in zip(self.here, self.rows, strict=True) if row == NEW]

    @property
    def dropped(self) -> list[str]:
        """Answers of the checkpoint whose rows are not used."""
        used = set(self.rows)
        return [self.there[row] for row in range(len(self.there)) if row not in used]

    @property
    def kept(self) -> int:
        """How many answers have a row there."""
        return len(self.here) - len(self.new)

    def place(self, weights: Weights, own: Mapping[str, Tensor]) -> None:
        """Puts the head's rows of a checkpoint's weights into the order of `here`.

        New rows are those of `own`, the model's fresh tensors. Where no answer is kept the head is left out altogether.
        Raises UserError if the checkpoint names more or fewer answers than its head has rows.
        """
        found = weights.found
        if not self.kept:
            for name in [name for name in found if name.startswith("classifier.")]:
                del found[name]
            return
        row_there = torch.tensor(self.rows)
        known = row_there != NEW
        for name in output_layer(found):
            if len(found[name]) != len(self.there):
                raise UserError(
                    f"{weights.files.name} has a head of {len(found[name]):,} answers and names {len(self.there):,}: "
                    "get it again."
                )
            if name in own and own[name].shape == (len(self.here), *found[name].shape[1:]):
                rows = own[name].detach().clone()
                rows[known] = found[name][row_there[known]].to(rows.dtype)
                found[name] = rows

    def __str__(self) -> str:
        if not self.kept:
            return "none of those there, the head starts anew"
        told = ((self.new, "new, randomly initialised"), (self.dropped, "not used"))
        parts = [f"{len(names):,} {what} ({_some(list(map(repr, names)), 5)})" for names, what in told if names]
        return ", ".join([f"{self.kept:,} kept by their texts", *parts])


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def answers_in(id2label: object) -> list[str] | None:
    """The answers' texts of a configuration's `id2label`; None if it has transformers' own LABEL_0, LABEL_1, …"""
    if not isinstance(id2label, Mapping):
        return None
    by_number = {str(number): answer for number, answer in id2label.items()}
    answers = [by_number.get(str(number)) for number in range(len(by_number))]
    named = all(isinstance(answer, str) for answer in answers)
    return answers if named and answers != [f"LABEL_{n}" for n in range(len(answers))] else None  # type: ignore[return-value]


def output_layer(found: Mapping[str, Tensor]) -> list[str]:
    """The tensors of an answer head that have a row per answer: of its only or last linear layer."""
    layers = {int(match[1] or -1) for name in found if (match := re.match(r"classifier\.(?:(\d+)\.)?weight$", name))}
    if not layers:
        return []
    prefix = "classifier." if max(layers) < 0 else f"classifier.{max(layers)}."
    return [name for name in (f"{prefix}weight", f"{prefix}bias") if name in found and found[name].dim() > 0]


@dataclass(frozen=True)
class LoadingReport:
    """What became of every tensor: names as in the model (`loaded`, `missing`, `resized`) or the file (`unused`)."""

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # randomly initialised: the file has no such tensor
    resized: tuple[str, ...] = ()  # randomly initialised: the head in the file is of another size
    unused: tuple[str, ...] = ()
    image_layernorm: bool | None = None  # set from the checkpoint, if it has an image projection
    renamed: tuple[tuple[str, str], ...] = ()  # of the loaded, those with another name there: (there, here)
    answers: AnswerRows | None = None  # how the head's rows were matched, if they were

    def __str__(self) -> str:
        lines = [f"started from {self.source}: {len(self.loaded)} tensors loaded"]
        if self.image_layernorm is not None:
            lines.append(f"  image layer norm, as in the checkpoint: {'on' if self.image_layernorm else 'off'}")
        if self.answers is not None:
            lines.append(f"  answers: {self.answers}")
        # That a file writes "bert." before its names, or does not, tells nobody anything.
        renamed = [f"{old} → {new}" for old, new in self.renamed if _bare(old) != _bare(new)]
        for title, names in (
            ("under another name there", renamed),
            ("new, randomly initialised", self.missing),
            ("of another size there, randomly initialised", self.resized),
            ("not used", self.unused),
        ):
            if names:
                lines.append(f"  {title} ({len(names)}): {_some(names, 6)}")
        return "\n".join(map(printable, lines))

    def rows(self) -> list[str]:
        """What became of every tensor, a line each: the word for it, a tab, and its name (old → new where renamed)."""
        old = {new: old for old, new in self.renamed}
        rows = [("renamed", f"{old[name]} → {name}") if name in old else ("loaded", name) for name in self.loaded]
        for word, names in (("missing", self.missing), ("resized", self.resized), ("unused", self.unused)):
            rows += [(word, name) for name in names]
        if self.answers is not None:
            rows += [("new answer", name) for name in self.answers.new]
            rows += [("answer not used", name) for name in self.answers.dropped]
        return [f"{word}\t{printable(name)}" for word, name in rows]


def _bare(name: str) -> str:
    return name.removeprefix("bert.")


def initialise(
    model_class: type[Model], config: VinVLConfig, init: str | Path | None, *, strict_head: bool = False
) -> Model:
    """A new model with the weights of `init` wherever it has them; what became of each is logged (level INFO).

    Args:
        model_class: `VinVLModel`, `VinVLForAnswering`, or another model whose encoder is called `bert`.
        config: the model to build; not changed.
        init: None for BERT's random initialisation, else what `find_checkpoint` takes.
        strict_head: refuse, instead of starting the head at random, if the checkpoint's head does not fit.

    Raises:
        UserError: a configuration that cannot be built, no such checkpoint, another architecture or size, no or only
            some encoder weights, or (with `strict_head`) another head.
    """
    if init is None:
        return _build(model_class, config)
    model, report = initialise_from(model_class, config, Weights.of(find_checkpoint(init)), strict_head=strict_head)
    logger.info("%s", report)
    return model


def initialise_from(
    model_class: type[Model],
    config: VinVLConfig,
    weights: Weights,
    *,
    strict_head: bool = False,
    answers: AnswerRows | None = None,
) -> tuple[Model, LoadingReport]:
    """`initialise` from weights that have been read already, and are changed on the way.

    A head is taken completely or not at all; `cls.predictions` and `cls.seq_relationship` are two heads. Whether the
    regions are layer-normed, and its epsilon, follow a checkpoint that has an image projection, as in the published
    fine-tuning; `model.config` then says so. `answers`: where the head's answers have their rows in the checkpoint's
    head; None: its rows stay.
    """
    found, originals = weights.found, weights.originals
    _refuse_other_encoder(weights, config)
    config, follows = _follow_image_layernorm(weights, config)
    model = _build(model_class, config)
    full = {_bare(name): name for name in model.state_dict()}
    own = {_bare(name): tensor for name, tensor in model.state_dict().items()}
    _share_word_decoder(config, found, originals, own)
    if answers is not None:
        answers.place(weights, own)
    missing, resized = _unfit(weights, own, strict_head)
    loaded = own.keys() - missing - resized
    model.load_state_dict({full[name]: found[name] for name in loaded}, strict=False)

    def told(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(full[name] for name in names))

    return model, LoadingReport(
        weights.files.name,
        loaded=told(loaded),
        missing=told(missing),
        resized=told(resized),
        unused=tuple(sorted(originals[name] for name in originals.keys() - loaded - resized)),
        image_layernorm=follows,
        renamed=tuple(sorted((originals[name], full[name]) for name in loaded if originals[name] != full[name])),
        answers=answers,
    )


def _build(model_class: type[Model], config: VinVLConfig) -> Model:
    try:
        return model_class(config)
    except (ValueError, ImportError) as error:  # an attention implementation that is unknown or not installed
        raise UserError(f"The model cannot be built from its configuration: {' '.join(str(error).split())}") from error


def encoder_is_there(weights: Weights) -> None:
    """Raises UserError for weights of which none is an encoder's, or of another architecture."""
    files, found = weights.files, weights.found
    model_type = files.config.get("model_type", "bert")
    if model_type not in KNOWN_MODEL_TYPES:
        raise UserError(f"{files.name} is a {model_type!r} model; VinVL starts from BERT, Oscar or VinVL weights.")
    layers = {int(match[1]) for name in found if (match := LAYER.match(name))}
    if layers != set(range(len(layers))) or any(not tensor.numel() for tensor in found.values()):
        raise UserError(f"{files.name} lacks layers, or holds tensors without numbers; is the file whole?")
    if not any(name.startswith(REQUIRED_PARTS) for name in found):
        example = f" (its first is {next(iter(found))!r})" if found else ""
        raise UserError(f"{files.name}: none of the {len(found)} tensors is an encoder weight{example}; is it a BERT?")


def _refuse_other_encoder(weights: Weights, config: VinVLConfig) -> None:
    encoder_is_there(weights)
    differences = [
        f"{field} is {value} there and {getattr(config, field)} here"
        for field, value in encoder_sizes(weights).items()
        if value != getattr(config, field)
    ]
    if differences:
        raise UserError(
            f"The encoder in {weights.files.name} does not fit the model: {'; '.join(differences)}; choose the model "
            "configuration that fits the checkpoint, or another checkpoint."
        )


def encoder_sizes(weights: Weights) -> dict[str, Any]:
    """What a checkpoint's tensors and its config.json say of its encoder, by configuration field."""
    published, found = weights.files.config, weights.found
    untold = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # by the tensors
    sizes = {field: published[field] for field in untold if published.get(field) is not None}
    for name, axis, field in SIZES:
        if name in found and found[name].dim() == 2:
            sizes[field] = found[name].shape[axis]
    layers = {int(match[1]) for name in found if (match := LAYER.match(name))}
    return sizes | ({"num_hidden_layers": max(layers) + 1} if layers else {})


def _follow_image_layernorm(weights: Weights, config: VinVLConfig) -> tuple[VinVLConfig, bool | None]:
    files = weights.files
    if "img_embedding.weight" not in weights.found:
        return config, None
    config = copy.deepcopy(config)
    config.use_img_layernorm = "LayerNorm.weight" in weights.found
    said = {"img_layer_norm_eps": files.config.get("img_layer_norm_eps", config.img_layer_norm_eps)}
    refuse_wrong_fields(said, f"The configuration of {files.name}")
    config.img_layer_norm_eps = said["img_layer_norm_eps"]
    return config, config.use_img_layernorm


def refuse_other_sizes(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Holds fields of `VinVLConfig` in a training checkpoint against its tensors, before a model of them is built.

    Raises UserError if a field cannot be, or no tensor is of the size that it says.
    """
    owner = f"The model in {path}"
    refuse_wrong_fields(fields, owner)
    hidden = [name for name in fields if not str(name).isidentifier() or str(name).startswith("_")]
    if hidden:
        raise UserError(f"{owner} has {str(hidden[0])[:60]!r}, which is not a setting of a model: the file is damaged.")
    lengths = {length for tensor in tensors.values() for length in tensor.shape if tensor.numel()}
    sizes = {name: fields.get(name) for _, _, name in SIZES}
    if fields.get("classifier", "linear") != "linear":
        sizes["cls_hidden_scale"] = (fields.get("hidden_size") or 768) * (fields.get("cls_hidden_scale") or 3)
    layers = {match[1] for name in tensors if (match := LAYER.search(name))}
    for name, value in sizes.items():
        if value is not None and value not in lengths:
            raise UserError(f"{owner} has {name} {fields.get(name)}, and no tensor of that size: the file is damaged.")
    if fields.get("num_hidden_layers", 12) != len(layers):
        raise UserError(f"{owner} is of another number of layers than the {len(layers)} of its tensors.")


def _share_word_decoder(
    config: VinVLConfig, found: dict[str, Tensor], originals: dict[str, str], own: dict[str, Tensor]
) -> None:
    """Settle which tensor decodes words, for files and models that do and do not tie it to the word embeddings."""
    if WORD_DECODER not in own:
        return
    if config.tie_word_embeddings:  # it is the embeddings, whatever else the file holds under its name
        own.pop(WORD_DECODER)
        originals.pop(WORD_DECODER, None)
    elif WORD_BIAS in found and WORD_DECODER not in found and WORD_EMBEDDINGS in found:
        found[WORD_DECODER] = found[WORD_EMBEDDINGS]  # a tied model, saved without the second name
        originals[WORD_DECODER] = originals[WORD_EMBEDDINGS]


def _unfit(weights: Weights, own: Mapping[str, Tensor], strict_head: bool) -> tuple[set[str], set[str]]:
    """Names of the model that the checkpoint cannot fill: those it lacks, and heads that it has in another size."""
    files, found = weights.files, weights.found
    missing = own.keys() - found.keys()
    required = [name for name in own if name.startswith(REQUIRED_PARTS)]
    absent = [name for name in required if name in missing]
    if absent:
        raise UserError(
            f"{files.name} lacks {len(absent)} of the {len(required)} encoder weights, among them {absent[0]!r}; is "
            "the file whole?"
        )
    other_shape = {name for name in own.keys() - missing if found[name].shape != own[name].shape}
    of_encoder = sorted(name for name in other_shape if name.startswith(ENCODER_PARTS))
    if of_encoder or (strict_head and other_shape):
        name = min(of_encoder or other_shape)
        part, remedy = "head", "use the answer vocabulary and classifier that the checkpoint was trained with"
        if of_encoder:
            part, remedy = "encoder", "choose another checkpoint"
        raise UserError(
            f"The {part} in {files.name} does not fit the model: {name!r} is {tuple(found[name].shape)} there and "
            f"{tuple(own[name].shape)} here; {remedy}."
        )
    of_heads = {name for name in missing | other_shape if not name.startswith(ENCODER_PARTS)}
    if strict_head and of_heads:
        raise UserError(
            f"{files.name} has no head for this task: {min(of_heads)!r} is not in it; give a checkpoint that was "
            "trained for the task."
        )
    # A head of which one part does not fit is of no use in the other parts.
    heads = set(map(_head_of, of_heads))
    return missing, {name for name in own if _head_of(name) in heads and name in found}


def _head_of(name: str) -> str:
    """The head that a tensor belongs to; `cls` holds two, for words and for pairs, each of use without the other."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "cls" else parts[0]

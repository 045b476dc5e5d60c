"""`python -m vinvl.predict image=…`: a model asked about pictures on the command line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from vinvl.extraction.provenance import detector_config
from vinvl.pictures import ReadingOptions, look_for, name_of, picture_size, pictures_of_store, told_of
from vinvl.predictor.predictor import Answer, Caption, Predictor, load
from vinvl.predictor.trained import Usage
from vinvl.regions.store import OtherFeatures, RegionStore
from vinvl.run.errors import UserError, say
from vinvl.run.files import atomic_write
from vinvl.run.folders import NAMED_CHECKPOINTS, resolve_checkpoint
from vinvl.run.overrides import command_overrides, given_keys, given_values, section
from vinvl.run.precision import AUTO, HALF, WHOLE, choose

# The configuration of `python -m vinvl.predict` → a predictor.


DEVICES = {"auto": None, "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}
DTYPES = {WHOLE: "float32", "32": "float32", HALF: "bfloat16", AUTO: None}


def predictor_of(config: DictConfig) -> Predictor:
    """The model with the settings that the command has given."""
    given = given_values(command_overrides())
    name = str(config.ckpt_path)
    if name in NAMED_CHECKPOINTS:
        name = str(resolve_checkpoint(name, config.paths.runs_dir, config.name))
    data, decoding = (given_keys(part, config, given) for part in ("data", "decoding"))
    others = {key: data.pop(key) for key in ("tokenizer", "answers") if f"data.{key}" in given}
    if "data" in given:  # a whole section, with settings that have nothing to do with pictures
        data = {field.name: data[field.name] for field in fields(Usage) if field.name in data}
    with warnings_told():
        return load(
            name,
            detector=None if config.weights is None else str(config.weights),
            labels=None if config.labels is None else str(config.labels),
            detector_config=partial(detector_config, config),
            features=None if config.features is None else _listed(config.features),
            task=config.task_name,
            inputs=data,
            decoding=decoding,
            reading={key: value for key, value in section(config, "reading").items() if value is not None},
            device=_of(DEVICES, config.trainer.accelerator, "trainer.accelerator"),
            dtype=_dtype(config),
            **others,
        )


@contextmanager
def warnings_told() -> Iterator[None]:
    """Within it warnings of features that are not those of a model's training are printed as a door prints its own."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", OtherFeatures)
        yield
    for sentence in (one.message for one in told if issubclass(one.category, OtherFeatures)):
        say(f"warning: {sentence}", error=True)


def _dtype(config: DictConfig) -> str:
    """What `trainer.precision` is for a model; where it is `auto`, says which and why."""
    dtype = _of(DTYPES, config.trainer.precision, "trainer.precision")
    if dtype is None:
        precision, why = choose(str(config.trainer.accelerator))
        say(f"trainer.precision={precision}: {why}", error=True)
        dtype = DTYPES[precision]
    return str(dtype)


def _of(known: Mapping[str, str | None], value: object, key: str) -> str | None:
    if str(value) not in known:
        raise UserError(f"{key}={value} is not for pictures one by one: give {', '.join(known)}.")
    return known[str(value)]


AT_ONCE = 32  # pictures, whose results are printed together


@dataclass(frozen=True)
class Said:
    """What a model said of a picture, or of two."""

    image: str | tuple[str, str]  # path or image id; for statements about two pictures both
    text: str | None  # the question or text; None for captions
    result: Answer | Caption | float  # a number is the probability of the text

    def lines(self) -> list[str]:
        """For a person."""
        image = self.image if isinstance(self.image, str) else " ".join(self.image)
        title = f"{image}:" if self.text is None else f"{image}: {self.text}"
        if isinstance(self.result, float):
            return [title, f"  {self.result:.3f}"]
        return [title, *(f"  {score:.3f}  {text}" for text, score in self.result.top)]

    def plain(self) -> dict[str, Any]:
        """For a file."""
        if isinstance(self.result, float):
            return {"image": self.image, "text": self.text, "score": round(self.result, 6)}
        kind = "caption" if self.text is None else "answer"
        top = [{kind: text, "score": round(score, 6)} for text, score in self.result.top]
        asked = {} if self.text is None else {"question": self.text}
        return {"image": self.image, **asked, **top[0], "top": top}


def ask_about_pictures(config: DictConfig) -> list[Said]:
    """What a model says of `config.image`: printed, and where asked for in a file of JSON lines.

    Raises UserError for whatever a person has to change; a single broken picture, or all of them.
    """
    torch.manual_seed(config.seed)  # of sampled captions
    texts = _asked(config)
    model = predictor_of(config)
    method = _method(config, model)
    pictures = _pictures(config, model)
    said: list[Said] = []
    broken: list[str] = []
    with nullcontext(None) if config.output is None else atomic_write(Path(str(config.output)).expanduser()) as file:
        for start in range(0, len(pictures), AT_ONCE):
            for one in _said(model, method, pictures[start : start + AT_ONCE], texts, broken):
                said.append(one)
                say(*one.lines())
                if file is not None:
                    file.write(json.dumps(one.plain(), ensure_ascii=False) + "\n")
        if broken and not said:
            raise UserError(broken[0])
    for sentence in broken:
        say(f"warning: {sentence}", error=True)
    return said


def _said(
    model: Predictor, method: str, pictures: Sequence[Any], texts: Sequence[str | None], broken: list[str]
) -> Iterator[Said]:
    """Every picture with every text. Of pictures that cannot be used the reasons are added to `broken`."""
    pairs = [(picture, text) for picture in pictures for text in texts]
    images = [picture for picture, _ in pairs]
    asked = [] if method == "caption" else [[text for _, text in pairs]]
    try:
        for (picture, text), result in zip(pairs, getattr(model, method)(images, *asked), strict=True):
            yield Said(_told(picture), text, result)
    except UserError as error:
        if len(pictures) == 1:
            broken.append(str(error))
            return
        for picture in pictures:  # one of them is broken
            yield from _said(model, method, [picture], texts, broken)


def _told(picture: str | tuple[str, str]) -> str | tuple[str, str]:
    return name_of(picture) if isinstance(picture, str) else (name_of(picture[0]), name_of(picture[1]))


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, ListConfig) else [value])]


def _asked(config: DictConfig) -> list[str | None]:
    """The questions or texts; [None] if there are none."""
    if config.question is not None and config.text is not None:
        raise UserError("Pass one of the two: question=… to be answered, or text=… to be scored.")
    given = config.question if config.question is not None else config.text
    return [None] if given is None else [*_listed(given)]


def _method(config: DictConfig, model: Predictor) -> str:
    """What the model is asked for: as the command says, or as its task needs."""
    task = model.trained.task
    method = "ask" if task in ("vqa", "gqa") else "score" if task in ("retrieval", "nlvr2") else "caption"
    if config.question is not None or config.text is not None:
        return "ask" if config.question is not None else "score"
    if method != "caption":
        needed = "question=… for it to answer" if method == "ask" else "text=… for it to score"
        raise UserError(f"{model.trained.name} is a model for {task}: pass {needed}.")
    return method


def _pictures(config: DictConfig, model: Predictor) -> list[Any]:
    """Places and image ids; for statements about two pictures the pair of them.

    Without a detector the regions of pictures are those of the store's images that they are of.
    """
    store = None if config.features is None else RegionStore(_listed(config.features))
    found: list[str] = []
    for one in _listed(config.image):
        if store is not None and one in store:
            found.append(one)
        elif store is not None and config.weights is None and Path(one).expanduser().exists():
            found += ids_of_pictures(store, one)
        else:
            found += pictures_at(one)
    if model.trained.task != "nlvr2":
        return found
    if len(found) != 2:
        raise UserError(f"{model.trained.name} judges statements about two pictures: pass image=[LEFT,RIGHT].")
    return [tuple(found)]


def ids_of_pictures(store: RegionStore, source: str) -> list[str]:
    """The ids of the images of a store whose pictures a source has, of the size that the store says.

    Raises UserError if there are none.
    """
    match = pictures_of_store(store, source)
    say(match.told, error=True)
    for index, place in match.places.items():
        try:
            size = picture_size(place, ReadingOptions())
        except UserError:  # a broken one cannot tell
            continue
        regions = store.at(index)
        if sorted(size) != sorted((regions.width, regions.height)):
            raise UserError(
                f"{name_of(place)} has {size[0]} × {size[1]} pixels, and image {regions.image_id!r} of {store!r} has "
                f"{regions.width} × {regions.height}: it is another picture; give image ids."
            )
    return [str(store.image_ids[index]) for index in match.places]


def pictures_at(source: str) -> list[str]:
    """The places of the pictures of a folder, list or container (`look_for`); else the name itself.

    Raises UserError if there are none in it. A warning names those that cannot be used.
    """
    if not Path(source).expanduser().exists():
        return [source]
    entries, passed_over = look_for(source)
    for sentence in [one.problem for one in entries if one.problem] + ([told_of(passed_over)] if passed_over else []):
        say(f"warning: {sentence}", error=True)
    return [one.place for one in entries if not one.problem]

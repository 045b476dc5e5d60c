"""Files that a command names and that are not there: told before anything is imported that takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError
from vinvl.run.folders import AUTO, CHECKPOINTS, NAMED_CHECKPOINTS, named_checkpoint
from vinvl.run.overrides import given_splits

FILES = {  # keys of doors that name what is read → what to do
    "results": "give the file of results that is to be scored",
    "predictions": "give a file of a detector's predictions",
    "predictions_on_true_boxes": "give a file of what a detector says of the true boxes",
    "images": "give a folder, a picture, a list, or a TSV, zip, tar or LMDB of pictures",
    "given_boxes": "give a file of boxes",
    "labels": "give a label map, or none",
    "store": "give a store, a folder of shards, or a list of them",
    "from": "check the path",
    "annotations": "check the path",
    "pictures": "check the path",
    "published": "give the folder that holds the release",
}
MODELS = ("models", "weights", "model.init", "start.init")  # files, folders or names on the hub
NO_FILES = ("none", "by_index")
SUFFIXES = {".json", ".jsonl", ".tsv", ".csv", ".txt", ".yaml", ".pkl", ".pt", ".pth", ".h5", ".arrow", ".zip", ".ckpt"}
SUFFIXES |= {".bin", ".safetensors"}
ONLY_OF_RESULTS = ("task_name", "missing", "java_metrics", "attentions")  # options in conf/evaluate.yaml
OPTIONAL = ("official",)  # keys of a split's files that it can do without


def refuse_missing(config: DictConfig, given: Mapping[str, Any]) -> None:
    """Raises UserError for the first file that the command will read and that is not there.

    Only what is plain to see: whatever a reader may look for elsewhere, or make itself, is left to it. OmegaConf raises
    its own error for a key without a value that every command must give.

    Args:
        given: `given_values` of the command.
    """
    for key in config:
        config[key]  # raises for ???
    goes_on = _goes_on(config, given)
    for key, hint in FILES.items():
        for path in [] if key == "predictions" and "output" in config else _texts(config.get(key)):  # written there
            if path not in NO_FILES and not _exists(path):
                raise UserError(f"{key}={path} does not exist: {hint}.")
    for key in () if goes_on else MODELS:
        for value in _texts(OmegaConf.select(config, key)):
            if looks_like_a_path(value) and not _exists(value):
                said = {"models": "model", "weights": "detector"}.get(key, key) if "models" in config else key
                raise UserError(
                    f"{said}={value} does not exist: give a file, a folder or a name on the Hugging Face hub."
                )
    if OmegaConf.is_dict(config.get("data")) and "splits" in config.data:
        _refuse_missing_data(config, given)


def looks_like_a_path(text: str) -> bool:
    """Whether a text that may be a name on the hub is a path for certain."""
    return text.startswith(("/", ".", "~")) or text.count("/") > 1 or Path(text).suffix.lower() in SUFFIXES


def _exists(path: str) -> bool:
    return any(os.path.exists(one) for one in (path, os.path.expanduser(path)))


def _texts(value: Any) -> list[str]:
    """A text, or those in a list; else none."""
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value if isinstance(one, str)] if OmegaConf.is_list(value) else []


def _goes_on(config: DictConfig, given: Mapping[str, Any]) -> bool:
    """Whether the run starts from a checkpoint, and so from no other weights; UserError if that is not there."""
    named = config.get("ckpt_path")
    if named is None or config.get("results") is not None or OmegaConf.select(config, "published.compare") is not None:
        return False
    if named == AUTO:
        return (Path(config.paths.output_dir) / CHECKPOINTS / "last.ckpt").is_file()
    if named in NAMED_CHECKPOINTS:
        if not config.get("plan") and not given.keys() & set(ONLY_OF_RESULTS):  # which are refused in any case
            named_checkpoint(named, config.paths.runs_dir, config.name)
    elif looks_like_a_path(str(named)) and not _exists(str(named)):
        raise UserError(f"The checkpoint {named} does not exist: give ckpt_path=FILE, or ckpt_path=last.")
    return True


def _refuse_missing_data(config: DictConfig, given: Mapping[str, Any]) -> None:
    data, made = config.data, OmegaConf.select(config, "data.prepare.folder")
    splits, with_regions = _what_is_read(config, given)
    for split in splits:
        hint = f"check data.splits.{split}."
        if config.get("test_after_fit") and split not in (data.train_split, data.val_split):
            hint += " (Of the test split: pass test_after_fit=false to train without it.)"
        for path in _paths(_plain(data.splits, split)):
            _refuse_if_missing([path], made, hint)
        own = "stores" in data and split in (data.stores or {})
        stores = _plain(data.stores, split) if own else _plain(data, "regions")
        for one in (stores if isinstance(stores, list) else [stores]) if with_regions else ():
            places = [one.get("to"), one.get("from")] if isinstance(one, dict) else [one]
            hint = f"check data.stores.{split}." if own else "check data.regions."
            _refuse_if_missing([place for place in places if isinstance(place, str)], made, hint)


def _what_is_read(config: DictConfig, given: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The splits whose files a door reads, as far as its configuration tells, and whether it reads their regions."""
    data = config.data
    if data.get("corpus") is not None:  # whose reader makes the splits
        return [], False
    if "test_after_fit" in config:
        tested = [data.test_split] if config.test_after_fit else []
        return list(dict.fromkeys([data.train_split, data.val_split, *tested])), "regions" in data
    if config.get("image") is not None or OmegaConf.select(config, "published.compare") is not None:
        return [], False
    split = data.predict_split if "image" in config else data.test_split
    if "ckpt_path" not in config or "data" in given or config.get("results") is not None:
        return [split], "data" in given and "results" not in given
    return [split] if split in given_splits(given) else [], "data.regions" in given  # other data are the checkpoint's


def _plain(section: DictConfig, key: str) -> Any:
    value = section.get(key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _paths(value: Any) -> Iterator[str]:
    """The texts in a split's files that are paths for certain."""
    if isinstance(value, str) and "://" not in value and ("/" in value or Path(value).suffix.lower() in SUFFIXES):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from () if key in OPTIONAL else _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)


def _refuse_if_missing(places: list[str], made: str | None, hint: str) -> None:
    """Raises UserError if there is nothing in any of these places, and it is not made on first use, in `made`."""
    later = any("*" in place or (made is not None and Path(place).is_relative_to(made)) for place in places)
    if places and not later and not any(map(_exists, places)):
        which = places[0] if len(places) == 1 else f"{places[0]} does not exist, and neither does {places[1]},"
        told = "does not exist" if len(places) == 1 else "which it would be made of"
        raise UserError(f"{which} {told}; {hint}")

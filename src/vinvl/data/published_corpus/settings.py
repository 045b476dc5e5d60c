"""The yaml file of a published Oscar+ corpus: which files belong to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vinvl.data.json_files import read_bytes
from vinvl.errors import UserError

_DATASET_NAME = re.compile(r"[A-Za-z0-9-]+")  # becomes a file name


@dataclass(frozen=True)
class PublishedCorpus:
    """What the yaml names.

    Attributes:
        rows: TSV of image info, label info and text.
        label_folders: dataset → folder of its predictions_gt.tsv and QA_fileB.tsv, for the datasets that are used.
    """

    rows: Path
    label_folders: dict[str, Path]

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(self.label_folders)


def read_settings(path: str | Path, datasets: Sequence[str] | None = None) -> PublishedCorpus:
    """Reads the yaml of a published corpus.

    Args:
        path: the yaml; `corpus_file` and the folders of `image_label_path` are relative to its folder.
        datasets: use these of the datasets that `corpus` joins by "_"; None for all.

    Raises:
        UserError: it is missing, no yaml, lacks a key or a file, or does not name one of `datasets`.
    """
    path = Path(path)
    content = _read_yaml(path)
    listed = tuple(dict.fromkeys(_text(content, "corpus", path).split("_")))
    unfit = [name for name in listed if not _DATASET_NAME.fullmatch(name)]
    if unfit:
        raise UserError(
            f"{path}: corpus names the dataset {unfit[0][:40]!r}; names are letters and digits, joined by _."
        )
    unknown = [name for name in datasets or () if name not in listed]
    if unknown:
        raise UserError(f"{path} has no dataset '{unknown[0]}'; its corpus is {', '.join(listed)}.")
    used = listed if datasets is None else tuple(name for name in listed if name in datasets)
    if not used:
        raise UserError(f"{path}: no dataset is left to convert; its corpus is {', '.join(listed)}.")
    folders = content.get("image_label_path")
    if not isinstance(folders, dict):
        raise UserError(f"{path} has no image_label_path; it should map each dataset to the folder of its labels.")
    for name in used:
        if not isinstance(folders.get(name), str) or "\0" in folders[name]:
            raise UserError(f"{path}: image_label_path has no folder for {name}; add it or leave the dataset out.")
    rows = path.parent / _text(content, "corpus_file", path)
    if not rows.is_file():
        raise UserError(f"{path}: its corpus_file {rows} does not exist; check the path.")
    return PublishedCorpus(rows, {name: path.parent / folders[name] for name in used})


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid yaml ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is no yaml of a published corpus: it should have corpus_file, corpus, image_label_path."
        )
    return content


def _text(content: dict[Any, Any], key: str, path: Path) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(f"{path} has no {key}, or one that is no text; a published corpus names it.")
    return value

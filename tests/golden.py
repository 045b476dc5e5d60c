"""The recordings of published code in tests/data/golden, and a record of which of their parts the tests read.

Tests read them through here alone. A part is an array of a .safetensors file, a place in a .json file ("rows[].ids" for
all rows), or a picture or weights as a whole. A whole run that passed fails after all if nobody read a part (see
`conftest.py`).
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors.numpy
import safetensors.torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "data" / "golden"
WHOLE = "*"
READ: set[str] = set()  # "file: part"
# What is no target, and why.
NOT_COMPARED = {
    "oscar/caption_generate.*: *_fast*": "a published cache that does not follow the beams",
    "oscar/caption_cbs.*: *batch*": "a published defect of batches",
    "oscar/caption_cbs.json: meta.fsm_packing": "a sentence",
    "detector_training/vg_eval.json: voc_ap_area[[][]].ap_11_point": "a way of averaging that nothing uses",
    "*.json: case": "the file's own name",
    "*.json: io": "the file's own name",
    "*.json: *note": "a sentence",
    "vqa_eval/cases.json: cases[[][]].id": "a number",
    "*.json: meta.*order": "a sentence",
    "*README.md: *": "sentences",
    "published/expected/*_ir.json: train.seeds": "a sentence",
    "published/expected/*_ir.json: datasets.*.prediction_file": "the name of a file that Oscar writes",
    "published/expected/*_ir.json: datasets.*.cross_image_eval": "how the recording was made or checked",
    "published/expected/pretrain.json: seeds": "a sentence",
    "published/expected/pretrain.json: checkpoint.what": "a sentence",
    "published/replica/*: *": "what the product reads",
    "published/expected/nocaps.json: fsm.packed": "a sentence",
    "detector_training/tsv/[!e]*: *": "what the product reads",
    "detector_training/tsv/expected.json: *.class": "the name of a class of the published code",
    "published/*.safetensors: *.seeded.*": "drawn by Python's generator",
    **{
        f"*.json: {name}": "how the recording was made or checked"
        for name in (
            "*made_by",
            "meta.eval",
            "meta.mode",
            "image",
            "*float64_agrees",
            "*.fp64_agrees",
            "*requires_grad",
            "fp64_selection_agrees",
        )
    },
}


class Recording(Mapping[str, Any]):
    """The content of a file, or a part of it, that notes what is read."""

    def __init__(self, content: Mapping[str, Any], file: str, place: str = "") -> None:
        self._content, self._file, self._place = content, file, place

    def __getitem__(self, key: str) -> Any:
        return _noted(self._content[key], self._file, f"{self._place}{key}")

    def __contains__(self, key: object) -> bool:
        return key in self._content

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def _noted(value: Any, file: str, place: str) -> Any:
    if isinstance(value, dict):
        return Recording(value, file, f"{place}." if place else "")
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return [_noted(one, file, f"{place}[]") for one in value]
    READ.add(f"{file}: {place}")
    return value


def facts(name: str) -> Any:
    """The content of the file NAME.json."""
    return _noted(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), f"{name}.json", "")


def tensors(name: str) -> Mapping[str, Any]:
    """The torch tensors of the file NAME.safetensors."""
    return Recording(safetensors.torch.load_file(FOLDER / f"{name}.safetensors"), f"{name}.safetensors")


def arrays(name: str) -> Mapping[str, Any]:
    """`tensors` as NumPy arrays."""
    return Recording(safetensors.numpy.load_file(FOLDER / f"{name}.safetensors"), f"{name}.safetensors")


def whole(name: str) -> Path:
    """A picture or a file of weights, which is used as a whole."""
    READ.add(f"{name}: {WHOLE}")
    return FOLDER / name


def _places(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for inner in value:
            yield from _places(inner, f"{place}[]")
    else:
        yield place


def parts() -> set[str]:
    """Every part of every file that is there."""
    found = set()
    for path in sorted(FOLDER.rglob("*")):
        file = path.relative_to(FOLDER).as_posix()
        if path.suffix == ".json":
            found |= {f"{file}: {place}" for place in _places(json.loads(path.read_text(encoding="utf-8")), "")}
        elif path.suffix == ".safetensors" and "weights" not in path.name and "state_dict" not in path.name:
            with safe_open(path, framework="np") as opened:
                found |= {f"{file}: {key}" for key in opened.keys()}  # noqa: SIM118  # no mapping
        elif path.is_file():
            found.add(f"{file}: {WHOLE}")
    return found


def unread(read: set[str]) -> list[str]:
    """The parts that were read by nobody, but for what is no target."""
    left = parts() - read
    return sorted(part for part in left if not any(fnmatchcase(part, pattern) for pattern in NOT_COMPARED))

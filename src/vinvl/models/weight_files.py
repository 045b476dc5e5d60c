"""Find and open other people's weight files: a folder, a single file, or a name on the Hugging Face hub."""

import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vinvl.run.errors import UserError
from vinvl.run.files import json_object
from vinvl.run.hub import fetch, may_be_name, tokenizer_files
from vinvl.run.tensor_files import load_tensor_file, plain_tensors, read_safetensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEX_FILES = tuple(f"{name}.index.json" for name in WEIGHT_FILES)
USE_FILE = "vinvl.json"  # in a model folder: its task, how it is used, how the features were made it was trained on
# Of an answering model, as we or Oscar's authors write them.
ANSWER_FILES = (
    "answers.json",
    *(f"*{kind}{end}" for kind in ("label2ans", "ans2label") for end in (".pkl", ".pickle")),
)
TRAINING_CHECKPOINT = ".ckpt"
LONGEST_NAME = 100  # of a shard
OBJECTS_SHOWN = 5  # of a file that holds more than tensors
NAMES_SHOWN = 10  # of a folder without weights

# Names of tensors in other weight files → ours.
MMF_MODEL = re.compile(r"^(?:module\.)?(?:model\.)?vinvl\.")
# MMF's `vinvl` model. Its projection of regions is a Sequential; its heads bring a pooler of their own, BERT's, which
# stands where the encoder's does here; without hidden layers (num_layers 0) a head is that pooler and one Linear.
# With hidden layers it is our "mlp_gelu". The layer norm of MMF's word head has the epsilon 1e-5, ours the encoder's.
MMF_NAMES = {
    "bert.img_embedding.0.": "bert.img_embedding.",
    "bert.img_embedding.1.": "bert.LayerNorm.",
    "classifier.pooler.": "bert.pooler.",
    "classifier.classifier.0.": "classifier.",
    "classifier.classifier.": "classifier.",
    "mlm_head.cls.": "cls.",
    "contrast_head.contrast_head.pooler.": "bert.pooler.",
    "contrast_head.contrast_head.classifier.0.": "cls.seq_relationship.",
}
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
WORD_BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


def same_numbers(first: Tensor, second: Tensor) -> bool:
    """`torch.equal` for tensors of a file, which may be of two types."""
    return first.shape == second.shape and bool((first == second).all())


def modern_name(name: str) -> str:
    """Our name of a tensor; a name that is nobody's comes back as it is."""
    of_mmf = MMF_MODEL.match(name)
    name = name[of_mmf.end() :] if of_mmf else name.removeprefix("module.")  # which DataParallel writes
    for theirs, ours in MMF_NAMES.items() if of_mmf else ():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    for theirs, ours in OLD_NAMES.items():
        if name.endswith(theirs):
            name = name.removesuffix(theirs) + ours
    return name


def mmf_tensors(content: object) -> dict[str, Any] | None:
    """The tensors, with MMF's names, in what a checkpoint of MMF's `vinvl` holds; None if it is no such checkpoint."""
    tables = (content.get("state_dict"), content.get("model"), content) if isinstance(content, dict) else ()
    return next(
        (one for one in tables if isinstance(one, dict) and any(MMF_MODEL.match(str(name)) for name in one)), None
    )


@dataclass(frozen=True)
class CheckpointFiles:
    """Where a checkpoint lies, and what is said of it."""

    name: str
    weights: Path
    config: dict[str, Any]  # its config.json, {} if it has none; of a training checkpoint of ours its `model_config`
    training: dict[str, Any] = field(default_factory=dict)  # of such a one "hyper_parameters" and "vinvl"
    on_hub: bool = False  # then `name` is NAME@COMMIT


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint by our names without "bert.", and for each such name the one in the file."""

    files: CheckpointFiles
    found: dict[str, Tensor]
    originals: dict[str, str]

    @classmethod
    def of(cls, files: CheckpointFiles) -> Self:
        """Raises UserError as `load_published_state_dict`, or if two names mean one tensor of different numbers."""
        tensors = load_published_state_dict(files.weights)
        originals: dict[str, str] = {}
        for original in tensors:
            name = modern_name(original).removeprefix("bert.")
            if not name.endswith("embeddings.position_ids"):  # a constant 0, 1, 2, … that older releases saved
                other = originals.setdefault(name, original)
                if other != original and not same_numbers(tensors[other], tensors[original]):
                    raise UserError(
                        f"{files.name}: '{other}' and '{original}' mean the same tensor, and their numbers are not the "
                        "same: leave one of the two out of the file."
                    )
        if DECODER_BIAS in originals:  # one tensor under two names in transformers' BERT
            bias = originals.get(WORD_BIAS)
            if bias is None:
                originals[WORD_BIAS] = originals.pop(DECODER_BIAS)
            elif same_numbers(tensors[originals[DECODER_BIAS]], tensors[bias]):
                del originals[DECODER_BIAS]  # said under the other name already
        return cls(files, {name: tensors[original] for name, original in originals.items()}, originals)


def find_checkpoint(init: str | Path) -> CheckpointFiles:
    """The files of a checkpoint.

    Args:
        init: a folder with config.json and weights (model.safetensors or pytorch_model.bin, whole or in shards), one
            weight file, a training checkpoint (.ckpt) that `vinvl.train` or MMF wrote, or the name of a model on the
            Hugging Face hub, NAME or NAME@REVISION (`vinvl.run.hub.fetch`).

    Raises:
        UserError: there is no such folder, file or model, or it holds no weights.
    """
    path = Path(init).expanduser()
    is_file = os.path.isfile(path)  # Path's own would raise for a name that is too long
    if is_file and path.suffix == TRAINING_CHECKPOINT:
        training = _training_records(path)
        return CheckpointFiles(str(init), path, training.get("hyper_parameters", {}).get("model_config", {}), training)
    if is_file:
        return CheckpointFiles(str(init), path, _read_json(path.parent / "config.json"))
    if os.path.isdir(path):
        for name in WEIGHT_FILES + WEIGHT_INDEX_FILES:
            if (path / name).is_file():
                return CheckpointFiles(str(init), path / name, _read_json(path / "config.json"))
        inside = ", ".join(sorted(one.name for one in path.iterdir())[:NAMES_SHOWN]) or "nothing"
        raise UserError(f"{path} holds no weights; it needs a file {' or '.join(WEIGHT_FILES)}, and it holds {inside}.")
    fetched = fetch(init, "model folder", " or ".join(WEIGHT_FILES), model_files)
    return replace(find_checkpoint(fetched.folder), name=fetched.name, on_hub=True)


def pinned(init: str | None) -> str | None:
    """The name on the hub with its commit, so that a run says what it has started from; anything else as it is."""
    if init is None or os.path.exists(Path(init).expanduser()) or not may_be_name(init):
        return init
    return find_checkpoint(init).name


def model_files(names: Sequence[str]) -> list[str]:
    """The files of a model among those of a repository, its weights once and at the end; none without weights."""
    weights = next((name for name in WEIGHT_FILES + WEIGHT_INDEX_FILES if name in names), None)
    if weights is None:
        return []
    stem, _, suffix = weights.removesuffix(".index.json").rpartition(".")
    shards = [name for name in names if weights in WEIGHT_INDEX_FILES and fnmatch(name, f"{stem}-*-of-*.{suffix}")]
    beside = [name for name in names if name == USE_FILE or any(fnmatch(name, one) for one in ANSWER_FILES)]
    config = [name for name in names if name == "config.json"]
    return list(dict.fromkeys([*config, *beside, *tokenizer_files(names), *shards, weights]))


def load_published_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .bin or .ckpt file (or of a .index.json over shards), by name, on the CPU.

    From a training checkpoint, ours (.ckpt) or MMF's: the model's tensors. Pickled files (.bin, .ckpt) are read by
    torch's restricted loader, which builds tensors and runs no code of the file.

    Raises:
        UserError: the file is missing, damaged, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file {path}.")
    if path.name.endswith(".index.json"):
        return _of_shards(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = _unpickled(path)
    of_mmf = mmf_tensors(content)
    if of_mmf is not None:
        content = of_mmf
    elif path.suffix == TRAINING_CHECKPOINT:
        _refuse_foreign_training(path, content)
        names = [name for name in content["state_dict"] if str(name).startswith("model.")]
        content = {name.removeprefix("model."): content["state_dict"][name] for name in names}
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a table of named tensors; give only weights, as save_pretrained writes them.")
    return plain_tensors(content, str(path))


def _of_shards(path: Path) -> dict[str, Tensor]:
    named = _read_json(path).get("weight_map")
    # Bare names: an index may not point elsewhere, nor to an index.
    shards = {Path(str(name)).name for name in named.values()} if isinstance(named, dict) else set()
    if not shards or any(name.endswith(".json") or len(name) > LONGEST_NAME for name in shards):
        raise UserError(f"{path} is not an index of weight files; get the file again.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(shards):
        for name, tensor in load_published_state_dict(path.parent / shard).items():
            if name in tensors and not same_numbers(tensors[name], tensor):
                raise UserError(f"{path.parent / shard} has other numbers for {name!r} than a shard before it.")
            tensors[name] = tensor
    return tensors


def _unpickled(path: Path, mmap: bool = False) -> Any:
    try:
        return load_tensor_file(path, mmap=mmap)
    except Exception:  # a hostile or damaged pickle may make the restricted loader raise anything
        objects = _objects_in(path)
        found = f" (objects of {', '.join(objects)}, which may run programs)" if objects else ""
        raise UserError(
            f"{path} is damaged or holds more than tensors{found}, so it was not opened; get it from its source again "
            "or, if you trust it and the code that wrote it, save only its weights with torch.save or as "
            "model.safetensors."
        ) from None


def _objects_in(path: Path) -> list[str]:
    """Names of what a pickled file would have called or made, [] if they cannot be found; nothing is run."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:OBJECTS_SHOWN]
    except Exception:  # as above
        return []


def _training_records(path: Path) -> dict[str, Any]:
    content = _unpickled(path, mmap=zipfile.is_zipfile(path))  # the tensors are read later
    if mmf_tensors(content) is not None:
        return {}
    _refuse_foreign_training(path, content)
    return {name: content[name] for name in ("hyper_parameters", "vinvl") if isinstance(content.get(name), dict)}


def _refuse_foreign_training(path: Path, content: Any) -> None:
    parameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    configured = isinstance(parameters, dict) and isinstance(parameters.get("model_config"), dict)
    if not configured or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is not a training checkpoint of vinvl.train: give one, or a model folder.")


def _read_json(path: Path) -> dict[str, Any]:
    return json_object(path) if path.is_file() else {}

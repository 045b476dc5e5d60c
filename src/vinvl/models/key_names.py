"""The names that tensors have in published, older and MMF's weight files, as the names of our models."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vinvl.errors import UserError

DATA_PARALLEL = re.compile(r"^module\.")
MMF_MODEL = re.compile(r"^(?:model\.)?vinvl\.")
# MMF's `vinvl` model. Its projection of regions is a Sequential; its heads bring a pooler of their own, BERT's, which
# stands where the encoder's does here; without hidden layers (num_layers 0) a head is that pooler and one Linear.
# A head with hidden layers (dropout, dense, GELU, layer norm, before the Linear) is none of ours: its names stay as
# they are and nothing takes them. The layer norm of MMF's word head has the epsilon 1e-5, ours the encoder's.
MMF_NAMES = (
    (re.compile(r"^bert\.img_embedding\.0\."), "bert.img_embedding."),
    (re.compile(r"^bert\.img_embedding\.1\."), "bert.LayerNorm."),
    (re.compile(r"^classifier\.pooler\."), "bert.pooler."),
    (re.compile(r"^classifier\.classifier\.0\."), "classifier."),
    (re.compile(r"^mlm_head\.cls\."), "cls."),
    (re.compile(r"^contrast_head\.contrast_head\.pooler\."), "bert.pooler."),
    (re.compile(r"^contrast_head\.contrast_head\.classifier\.0\."), "cls.seq_relationship."),
)
OLD_NAMES = (
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)
WORD_BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


def by_modern_names(tensors: Mapping[str, Tensor], file: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by our names without "bert.", and for each such name the one in the file.

    Raises:
        UserError: two names in the file mean one tensor, and its numbers are not the same.
    """
    originals: dict[str, str] = {}
    for original in tensors:
        name = modern_name(original).removeprefix("bert.")
        if not name.endswith("embeddings.position_ids"):  # a constant 0, 1, 2, … that older releases saved
            other = originals.setdefault(name, original)
            if other != original and not same_numbers(tensors[other], tensors[original]):
                raise UserError(
                    f"{file}: '{other}' and '{original}' mean the same tensor, and their numbers are not the same: "
                    "leave one of the two out of the file."
                )
    if DECODER_BIAS in originals:  # one tensor under two names in transformers' BERT
        bias = originals.get(WORD_BIAS)
        if bias is None:
            originals[WORD_BIAS] = originals.pop(DECODER_BIAS)
        elif same_numbers(tensors[originals[DECODER_BIAS]], tensors[bias]):
            del originals[DECODER_BIAS]  # said under the other name already
    return {name: tensors[original] for name, original in originals.items()}, originals


def same_numbers(first: Tensor, second: Tensor) -> bool:
    """`torch.equal` for tensors of a file, which may be of two types."""
    return first.shape == second.shape and bool((first == second).all())


def modern_name(name: str) -> str:
    """Our name of a tensor; a name that is nobody's comes back as it is."""
    name = DATA_PARALLEL.sub("", name)
    renamings: tuple[tuple[re.Pattern[str], str], ...] = OLD_NAMES
    if MMF_MODEL.match(name):
        name, renamings = MMF_MODEL.sub("", name), (*MMF_NAMES, *OLD_NAMES)
    for pattern, ours in renamings:
        name = pattern.sub(ours, name)
    return name


def mmf_tensors(content: object) -> dict[str, Any] | None:
    """The tensors, with MMF's names, in what a checkpoint of MMF's `vinvl` holds; None if it is no such checkpoint."""
    if not isinstance(content, dict):
        return None
    for table in (content.get("state_dict"), content.get("model"), content):
        if isinstance(table, dict) and any(MMF_MODEL.match(DATA_PARALLEL.sub("", str(name))) for name in table):
            return table
    return None

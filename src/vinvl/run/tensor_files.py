"""Files that torch.save has written, from whomever: read by torch's restricted loader, if it can stand them."""

import io
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vinvl.run.errors import UserError

DEEPEST_TUPLE = 100  # hashing a deeper one may overflow the stack, which ends the interpreter
KINDS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
         torch.uint8, torch.bool}  # fmt: skip


def load_tensor_file(path: str | Path, *, mmap: bool = False, whole: bool = False) -> Any:
    """The content of a file of torch.save, on the CPU; no code of the file is run.

    Raises ValueError if it is larger unpacked, or contains a tuple in a tuple in a tuple, and so on; and whatever a
    hostile or damaged file makes torch raise.

    Args:
        mmap: map the tensors into memory rather than read them; needs a file of torch 1.6 or later.
        whole: read all of it for its checksums, which torch does not look at; ValueError where one is wrong.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            stored = sum(member.file_size for member in members)
            if stored > Path(path).stat().st_size or any(member.compress_type for member in members):
                raise ValueError("it is larger unpacked, and torch.save packs nothing")
            for member in members:
                if member.filename.endswith("data.pkl"):
                    _refuse_deep_tuples(io.BytesIO(archive.read(member)))
            if whole and (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
    else:  # of torch before 1.6: five pickles, then the tensors
        with open(path, "rb") as file:
            for _ in range(5):
                _refuse_deep_tuples(file)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name; UserError if it is damaged, or one is no plain tensor."""
    try:
        return plain_tensors(load_file(path), str(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a sound safetensors file ({error}); copy or save it again.") from None


def plain_tensors(content: Mapping[Any, Any], place: str) -> dict[str, Tensor]:
    """The same, where it is a table of dense tensors by name, each of no more numbers than the file holds.

    Raises UserError, naming the first that is anything else.
    """
    for name, value in content.items():
        shown = repr(name)[:80] if isinstance(name, str) else f"a {type(name).__name__}"
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{place} is not a table of named tensors ({shown} is none); give only weights, as save_pretrained "
                "writes them."
            )
        problem = unlike_plain(value)
        if problem:
            raise UserError(f"{place}: the tensor {shown} {problem}; save its numbers as a dense tensor.")
    return dict(content)


def unlike_plain(tensor: Tensor) -> str | None:
    """What keeps a tensor of a file from being dense, real and whole, as the end of a sentence; None for nothing."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "is sparse or quantised"
    if tensor.dtype not in KINDS or tensor.device.type != "cpu":
        return f"is of the kind {tensor.dtype} on {tensor.device.type}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"says that it has {tensor.numel():,} numbers, and the file holds fewer"
    return None


def _refuse_deep_tuples(file: IO[bytes]) -> None:
    """Reads a pickle without running it; raises ValueError where tuples are too far within each other."""
    depths: list[int] = []  # of what is on the stack
    marks: list[int] = []
    memo: dict[int, int] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "MARK":
            marks.append(len(depths))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = depths[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            depths.append(memo[argument])
        else:
            taken = opcode.stack_before
            marked = pickletools.markobject in taken
            start = marks.pop() - taken.index(pickletools.markobject) if marked else len(depths) - len(taken)
            deepest = max(depths[max(start, 0) :], default=0) + name.startswith("TUPLE")
            if deepest > DEEPEST_TUPLE:
                raise ValueError("a tuple in a tuple in a tuple, and so on")
            del depths[max(start, 0) :]
            depths += [deepest] * len(opcode.stack_after)

"""Metric states that hold texts: lines of JSON as bytes, because ranks can gather only tensors."""

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def encode_lines(rows: Iterable[Sequence[object]]) -> Tensor:
    """One line of JSON per row, as uint8 (bytes,); no rows give an empty tensor."""
    lines = "".join(json.dumps(list(row)) + "\n" for row in rows)
    return torch.from_numpy(np.frombuffer(lines.encode("ascii"), dtype=np.uint8).copy())


def decode_lines(states: Tensor | Iterable[Tensor]) -> Iterator[list]:
    """The rows of encoded tensors, be they a list or already concatenated."""
    for state in [states] if isinstance(states, Tensor) else states:
        for line in state.cpu().numpy().tobytes().splitlines():
            yield json.loads(line)

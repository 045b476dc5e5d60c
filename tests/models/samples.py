"""What several tests of models begin with."""

from pathlib import Path
from typing import Any

from vinvl.models import LoadingReport, VinVLConfig, load_published_state_dict
from vinvl.models.weight_files import find_checkpoint
from vinvl.models.weights import initialise_from_tensors


def initialise_with_report(
    model_class: type[Any], config: VinVLConfig, init: str | Path, *, strict_head: bool = False
) -> tuple[Any, LoadingReport]:
    """`initialise` with the report that it logs."""
    files = find_checkpoint(init)
    tensors = load_published_state_dict(files.weights)
    return initialise_from_tensors(model_class, config, files, tensors, strict_head=strict_head)

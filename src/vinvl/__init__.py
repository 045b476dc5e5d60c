"""Train, evaluate and use VinVL / Oscar+ models over text tokens, object tags and region features."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from vinvl.run.moved import EarlierNames

if TYPE_CHECKING:
    from vinvl.predictor.predictor import Predictor, load

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "load"]

sys.meta_path.append(EarlierNames())

if sys.argv[:1] == ["-m"]:  # so while Python looks for `python -m vinvl.NAME`, which then takes seconds to import
    from vinvl.run.signals import end_at_once

    end_at_once()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """`load` and `Predictor`, once they are asked for: what they need takes seconds to import."""
    if name in ("load", "Predictor"):
        return getattr(importlib.import_module("vinvl.predictor"), name)
    raise AttributeError(f"module 'vinvl' has no attribute {name!r}")

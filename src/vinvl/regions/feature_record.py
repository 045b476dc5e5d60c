"""What a store says of how its features were made, as checkpoints carry it: a model works with such features alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError


@dataclass(frozen=True)
class FeatureRecord:
    """How the features were made that a model was trained on, as far as their store said.

    Attributes:
        detector: the store's text; "" where nothing is known.
        feature_dtype: float16 or float32, in the store; "" where nothing is known.
        provenance: the settings that they were made with, in plain types; {} where nothing is known.
    """

    detector: str = ""
    feature_dtype: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_store(cls, store: RegionStore) -> FeatureRecord:
        try:
            provenance = store.provenance
        except UserError:  # damaged: `vinvl.regions verify` says so, and it is no reason to stop a training
            provenance = {}
        return cls(store.detector, store.feature_dtype.name, provenance)

    @classmethod
    def of_plain(cls, value: object) -> FeatureRecord:
        """From what `plain` has given and a file may have changed; what is not as it should be counts as unknown."""
        given = value if isinstance(value, Mapping) else {}
        detector, dtype, provenance = (given.get(name) for name in ("detector", "feature_dtype", "provenance"))
        try:
            settings = json.loads(json.dumps(provenance))  # only what JSON can say
        except (TypeError, ValueError, RecursionError):
            settings = {}
        return cls(
            detector if isinstance(detector, str) else "",
            dtype if isinstance(dtype, str) and dtype in ("float16", "float32") else "",
            settings if isinstance(settings, dict) else {},
        )

    def plain(self) -> dict[str, Any]:
        """In dicts, lists and single values."""
        return asdict(self)

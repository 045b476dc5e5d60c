"""What a store says of how its features were made, as checkpoints carry it: a model works only with such features."""

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
        detector: the store's text; "" if nothing is known.
        feature_dtype: float16 or float32, in the store; "" if nothing is known.
        provenance: the settings that they were made with, in plain types; {} if nothing is known.
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


# Are the features that a model is given those that it was trained on? It cannot tell, and answers worse if not: those
# of other settings have the right shape and look fine (docs/features.md). What can be known, its checkpoint carries.

# What may differ without a difference to speak of in the features, or is no setting of the detector's at all. How
# batches were padded is left out because nobody who asks about one picture can do anything about it.
HARMLESS = ("weights", "image_id", "batches", "precision", "feature_dtype", "transparency")
NAMES_SHOWN = 3  # of the settings in which two differ


class OtherFeatures(UserWarning):
    """The features are not those that the model was trained on."""


def settings_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in what a store says of its features (`vinvl.extraction.provenance`)."""
    return {name: value for name, value in provenance.items() if name not in ("versions", "made")}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, for a sentence."""
    keys = dict.fromkeys([*now, *before])
    return [
        f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def unlike_store(record: FeatureRecord, store: RegionStore) -> str | None:
    """One sentence where a store has other features than a model was trained on; None if it may have the same.

    Where no settings are known the names of the detectors are compared.
    """
    own = FeatureRecord.of_store(store)
    if "weights_sha256" in record.provenance and "weights_sha256" in own.provenance:
        return unlike_settings(settings_of(record.provenance), settings_of(own.provenance), f"{store!r} has")
    if not record.detector or record.detector == own.detector:
        return None
    return (
        f"The model was trained on features of {record.detector!r}, and {store!r} has those of {own.detector!r}: "
        "unless these are two names of one thing, answers will be worse."
    )


def unlike_settings(before: Mapping[str, Any], now: Mapping[str, Any], which: str) -> str | None:
    """A sentence on what differs between the settings of the training's features and those that `which` names."""
    found = differences(
        {name: value for name, value in before.items() if name not in HARMLESS},
        {name: value for name, value in now.items() if name not in HARMLESS},
    )
    if not found:
        return None
    more = f"; and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    return (
        f"{which} other features than those that the model was trained on ({'; '.join(found[:NAMES_SHOWN])}{more}): "
        "they look fine and give worse answers; use the detector and the settings of the training's features."
    )

"""What sources say that a `_target_` takes, beside what Python says once it is imported."""

import inspect
import re
import sys
from pathlib import Path
from typing import get_args, get_origin

import pytest
from hydra.utils import get_object

from vinvl.models import VinVLConfig
from vinvl.run.folders import config_directory
from vinvl.run.options import fits
from vinvl.run.signatures import attributes_of, optional_parameters_of_class, parameters_of

NAMED = re.findall(
    r"_target_: ([\w.]+)", "\n".join(path.read_text() for path in Path(config_directory()).rglob("*.yaml"))
)
TARGETS = sorted(set(NAMED))
VALUES = (3, 0.5, True, None, "text", ["a"], {"a": 1})


@pytest.mark.parametrize("name", TARGETS)
def test_of_every_target_of_the_configuration_all_parameters_are_found(name: str) -> None:
    found, own = parameters_of(name), inspect.signature(get_object(name)).parameters.values()
    named = {one.name for one in own if one.kind is not one.VAR_KEYWORD}
    passes_on = len(named) < len(own)
    assert passes_on or not named if found is None else named <= found.keys()


def test_what_annotations_of_lightning_mean() -> None:
    found = parameters_of("pytorch_lightning.Trainer")
    assert found is not None
    taken = {name: [value for value in VALUES if fits(value, found[name])] for name in ("max_epochs", "fast_dev_run")}
    assert taken == {"max_epochs": [3, None], "fast_dev_run": [3, True]}
    assert fits("bf16-mixed", found["precision"]) and not fits("bf17", found["precision"])
    assert fits("gpu", found["accelerator"]) and not fits([3], found["accelerator"])


SOURCE = """
from __future__ import annotations
import typing as t
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NotRequired, TypedDict, Unpack
if TYPE_CHECKING:
    from pathlib import Path
    from nowhere import Unknown

class Shared(TypedDict):
    size: int
    way: NotRequired[Literal["a", "b"]]

Count = Annotated[int, len("x")]

class Base:
    def __init__(self, place: Path, *, shown: bool = True, **shared: Unpack[Shared]) -> None: ...
    @classmethod
    def build(cls, data: Unknown, **options: object) -> Base: ...

class Own(Base):
    def __init__(self, count: Count = 1, call: "Callable[[], int] | None" = None, **shared) -> None:
        self.kept = count

@dataclass
class Settings:
    number: float = 0.5
    others: t.ClassVar[int] = 1

@dataclass
class More(Settings):
    names: list[str] = ()
"""


def test_a_module_of_ones_own_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_code.py").write_text("raise SystemExit('imported')\n" + SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    found = parameters_of("own_code.Own")
    assert found is not None and list(found) == ["count", "call", "place", "shown", "size", "way"]
    assert found["count"] is int and found["place"] is Path and get_args(found["way"]) == ("a", "b")
    assert get_origin(get_args(found["call"])[0]).__name__ == "Callable"
    assert parameters_of("own_code.Own.build") is None  # it passes everything on
    assert optional_parameters_of_class("own_code.Own.build") == {"count", "call"}
    assert parameters_of("own_code.More") == {"number": float, "names": list[str]}
    assert attributes_of("own_code.Own") == {"count", "call", "shared", "kept", "place", "shown"} - {"shared"}
    assert "own_code" not in sys.modules
    assert [parameters_of(name) for name in ("own_code.Nothing", "nowhere.Thing", "builtins.int", "x")] == [None] * 4


def test_settings_of_a_model_are_those_that_its_configuration_has() -> None:
    config = VinVLConfig()
    own = {name for name in dir(config) if name[0] != "_" and not callable(getattr(type(config), name, None))}
    assert own - attributes_of("vinvl.models.config.VinVLConfig") <= {"sub_configs"}

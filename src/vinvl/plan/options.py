"""What a person may say about a plan: `+plan=true`, or `+plan.KEY=VALUE` instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from omegaconf import DictConfig

from vinvl.errors import UserError


@dataclass(frozen=True)
class PlanOptions:
    """
    Attributes:
        samples_per_second: of one device, known from elsewhere; None measures it here.
        devices: on all nodes; None takes what the trainer is configured for.
        items: size of the training split, where it cannot be read.
        seconds: about how long to measure.
    """

    samples_per_second: float | None = None
    devices: int | None = None
    items: int | None = None
    seconds: float = 20.0

    @classmethod
    def of(cls, given: Any) -> PlanOptions:
        """From the value of `plan` in a composed configuration.

        Raises:
            UserError: it is neither true nor a mapping of the options to positive numbers.
        """
        if given is True:
            return cls()
        names = [field.name for field in fields(cls)]
        if not isinstance(given, DictConfig):
            raise UserError(f"plan is {given!r}: pass +plan=true, or +plan.KEY=VALUE with KEY of {', '.join(names)}.")
        unknown = sorted(set(map(str, given)) - set(names))
        if unknown:
            raise UserError(f"There is no plan.{unknown[0]}: choose of {', '.join(names)}.")
        options = cls(**{str(name): value for name, value in given.items()})
        for name, value in asdict(options).items():
            whole = name in ("devices", "items")
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
                raise UserError(f"plan.{name} is {value!r}: give a {'whole ' if whole else ''}number above 0.")
        return options

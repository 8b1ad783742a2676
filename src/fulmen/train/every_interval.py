"""`Every`: at which steps, epochs or minutes of a run something happens."""

from __future__ import annotations

import dataclasses
from typing import Any

from fulmen.core.immutable import Immutable
from fulmen.data.arrays import check_positive


class Every(Immutable):
    """An interval of a run, by steps, epochs or minutes. `a | b` is whichever comes first.

    Args:
        steps: after each step whose number is a multiple of it, a positive integer.
        epochs: after each epoch whose number, from 1, is a multiple of it, a positive integer.
        minutes: when so much time has passed since the last time, a positive number.

    Raises:
        TypeError, ValueError: for values that are not positive, or if none is given.

    >>> fm.Every(steps=500) | fm.Every(minutes=10)
    Every(steps=500) | Every(minutes=10)
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    others: tuple[Every, ...] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if (self.steps, self.epochs, self.minutes) == (None, None, None):
            raise ValueError(
                "Every must have an interval, got none; write fm.Every(steps=500), fm.Every(epochs=1) or fm.Every(minutes=10)."
            )
        for name in ("steps", "epochs"):
            if getattr(self, name) is not None:
                check_positive(f"Every.{name}", getattr(self, name))
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"Every.minutes must be positive, got {self.minutes!r}.")

    def __or__(self, other: Every) -> Every:
        if not isinstance(other, Every):
            return NotImplemented
        return dataclasses.replace(self, others=(*self.others, other))

    @property
    def parts(self) -> tuple[Every, ...]:
        """The combined intervals, one by one."""
        return self, *(part for other in self.others for part in other.parts)

    def next_step(self, step: int) -> int | None:
        """The first step after a step at which something happens by the number of steps; None if it does not count steps."""
        found = [(step // part.steps + 1) * part.steps for part in self.parts if part.steps is not None]
        return min(found, default=None)

    def at_step(self, step: int) -> bool:
        """Whether something happens after a step, by its number."""
        return any(part.steps is not None and step % part.steps == 0 for part in self.parts)

    def at_epoch(self, epoch: int) -> bool:
        """Whether something happens after an epoch, by its number from 1."""
        return any(part.epochs is not None and epoch % part.epochs == 0 for part in self.parts)

    def after(self, seconds: float) -> bool:
        """Whether something happens since so much time has passed."""
        return any(part.minutes is not None and seconds >= 60 * part.minutes for part in self.parts)

    def __repr__(self) -> str:
        named = [f"{n}={getattr(self, n)!r}" for n in ("steps", "epochs", "minutes") if getattr(self, n) is not None]
        return " | ".join([f"Every({', '.join(named)})", *map(repr, self.others)])


def require_every(name: str, value: Any) -> Every:
    """The value; raises a TypeError with the option's name unless it is an `Every`."""
    if isinstance(value, Every):
        return value
    steps = value if isinstance(value, int) and value > 0 else 500
    raise TypeError(f"{name} must be an fm.Every, got {value!r}; write {name.rpartition('.')[2]}=fm.Every(steps={steps}).")

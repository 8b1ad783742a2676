"""`Latest` and `Best`: which checkpoints of a run are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulmen.core.immutable import Immutable
from fulmen.data.arrays import check_positive
from fulmen.train.history import best_direction


class Retention(Immutable):
    """Which checkpoints are kept; `a | b` keeps those of both."""

    def __or__(self, other: Retention) -> Either:
        return Either((self, other)) if isinstance(other, Retention) else NotImplemented

    def kept(self, saved: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps of the checkpoints to keep, from the metrics of each by its step."""
        raise NotImplementedError

    @property
    def rules(self) -> tuple[Best, ...]:
        """The `Best` among what is combined."""
        return ()


class Latest(Retention):
    """Keep the newest checkpoints.

    Args:
        n: how many, a positive integer.

    >>> fm.Latest(3) | fm.Best("validation/accuracy")
    Latest(3) | Best('validation/accuracy')
    """

    n: int = 1

    def __post_init__(self) -> None:
        check_positive("Latest.n", self.n)

    def kept(self, saved: Mapping[int, Mapping[str, float]]) -> set[int]:
        return set(sorted(saved)[-self.n :])

    def __repr__(self) -> str:
        return f"Latest({self.n})"


class Best(Retention):
    """Keep the checkpoints with the best values of a metric, of those that were saved where it was measured.

    Args:
        metric: its name in the history, such as "validation/accuracy". Of equal values the earliest is the best.
        n: how many, a positive integer.
        mode: "max" or "min"; None for metrics whose name tells, such as a loss or an accuracy.

    Raises:
        ValueError: if the name does not tell whether the highest or the lowest value is the best.
    """

    metric: str
    n: int = 1
    mode: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise TypeError(f"Best.metric must be a name, got {self.metric!r}; write fm.Best('validation/accuracy').")
        check_positive("Best.n", self.n)
        best_direction(self.metric, self.mode, "fm.Best")

    @property
    def rules(self) -> tuple[Best, ...]:
        return (self,)

    @property
    def direction(self) -> str:
        """The mode, "max" or "min"."""
        return best_direction(self.metric, self.mode, "fm.Best")

    def kept(self, saved: Mapping[int, Mapping[str, float]]) -> set[int]:
        return set(best_steps(saved, self.metric, self.direction)[: self.n])

    def __repr__(self) -> str:
        n, mode = f", {self.n}" * (self.n != 1), f", mode={self.mode!r}" * (self.mode is not None)
        return f"Best({self.metric!r}{n}{mode})"


class Either(Retention):
    """What any of several keeps."""

    parts: tuple[Retention, ...]

    def kept(self, saved: Mapping[int, Mapping[str, float]]) -> set[int]:
        return set().union(*(part.kept(saved) for part in self.parts))

    @property
    def rules(self) -> tuple[Best, ...]:
        return tuple(rule for part in self.parts for rule in part.rules)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


def best_steps(saved: Mapping[int, Mapping[str, float]], metric: str, mode: str) -> list[int]:
    """The steps at which a metric was measured, the best first."""
    sign: Any = -1.0 if mode == "max" else 1.0
    return sorted((step for step in saved if metric in saved[step]), key=lambda step: (sign * saved[step][metric], step))

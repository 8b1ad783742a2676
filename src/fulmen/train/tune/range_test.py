"""`learning_rate`: the loss of a short run whose learning rate grows, and the rate at which it falls fastest."""

import contextlib
import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import Plan, Schedule, State
from fulmen.core.immutable import Immutable
from fulmen.core.verbs import setup, show, steps
from fulmen.data.arrays import check_positive
from fulmen.data.source import Source
from fulmen.schedules.schedule_lengths import length

_DIVERGED = 4  # times the smallest loss
_FEWEST = 8  # steps for a suggestion
_ROWS = 12  # of the printed table


class Growing(Schedule):
    """From `first` to `last` in equal factors over the whole run."""

    first: float
    last: float

    def __call__(self, plan: Plan) -> Any:
        total = max(length(plan, "tune.learning_rate") - 1, 1)
        return lambda step: self.first * jnp.asarray(self.last / self.first) ** (step / total)


class Search(Immutable, eq=False):
    """The result of a search; prints as a table, whose last column has no heading and marks the suggestion."""

    title: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        rows = [self.columns, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = ("  ".join([*(c.rjust(w) for c, w in zip(row[:-1], widths)), row[-1]]).rstrip() for row in rows)
        return "\n".join(aligned)

    def _repr_html_(self) -> str:
        return show(self)


class LearningRateSearch(Search, eq=False):
    """The result of `learning_rate`; `fm.plot` draws it.

    Attributes:
        rates: the learning rate of each step, `(steps,)`; of a run that diverged, up to that step.
        losses: the loss of each step's batch before its update, `(steps,)`.
        smoothed: their exponential moving average, `(steps,)`.
        suggestion: the rate at which the smoothed loss falls fastest; None if it never falls, or if the run diverged at once.
    """

    title = "Learning rates"
    columns = ("lr", "loss", "smoothed", "")
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def rows(self) -> list[tuple[str, ...]]:  # of some of the steps
        n = len(self.rates)
        chosen = {*np.linspace(0, n - 1, min(n, _ROWS)).round().astype(int).tolist()}
        at = None if self.suggestion is None else int(np.abs(self.rates - self.suggestion).argmin())
        chosen |= set() if at is None else {at}
        found = ((i, self.rates[i], self.losses[i], self.smoothed[i]) for i in sorted(chosen))
        return [(f"{lr:.2g}", f"{loss:.4g}", f"{mean:.4g}", "suggestion" if i == at else "") for i, lr, loss, mean in found]


def learning_rate(
    system: Any,
    data: Any,
    *,
    optimizer: Any = optax.adam,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    smoothing: float = 0.9,
    batch_size: int | None = None,
    seed: int | None = 0,
    **options: Any,
) -> LearningRateSearch:
    """Search a learning rate by a range test (Smith 2017, arXiv:1506.01186).

    A new state is trained for some steps while the learning rate grows from `lowest` to `highest` by a constant factor. The run
    ends early when the smoothed loss exceeds four times its minimum or is not finite. The system is not changed.

    Args:
        system: a component that has a loss.
        data: as for `fit`.
        optimizer: a constructor that takes a learning rate, or a dict of them by path; all have the same rate.
        lowest, highest: the first and the last learning rate.
        steps: the number of steps.
        smoothing: the weight of the previous steps in the smoothed loss, in [0, 1).
        batch_size, seed, **options: as for `setup`. A rate holds for the batch size that it was found with.

    Returns:
        A `LearningRateSearch`: `.suggestion`, and a picture by `fm.plot`.

    Raises:
        TypeError: if a state is given, or an optimizer that does not take a learning rate.
        ValueError: for rates that are not in order.

    >>> system, data = fm.testing.tiny("classifier")
    >>> found = fm.tune.learning_rate(system, data, steps=30)
    >>> 1e-3 < found.suggestion <= 1.0
    True
    """
    if isinstance(system, State):
        raise TypeError("tune.learning_rate takes a component, got a State; write state.system.")
    if not 0 < lowest < highest < math.inf:
        raise ValueError(
            f"tune.learning_rate: lowest and highest must satisfy 0 < lowest < highest, got {lowest} and {highest}."
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"tune.learning_rate: smoothing must be at least 0 and below 1, got {smoothing}.")
    check_positive("steps", steps)
    source, reading = Source.of(data), {"batch_size": batch_size, "seed": seed, "steps": steps}
    state = setup(system, source, optimizer=optimizer, lr=Growing(lowest, highest), **reading, **options)
    losses = np.array(_losses(state, source, smoothing, reading))
    rates = lowest * (highest / lowest) ** (np.arange(len(losses)) / max(steps - 1, 1))
    smoothed = _smoothed(losses, smoothing)
    return LearningRateSearch(rates, losses, smoothed, _steepest(rates, smoothed, smoothing))


def _losses(state: State, source: Source, smoothing: float, reading: dict[str, Any]) -> list[float]:
    losses: list[float] = []
    with contextlib.closing(steps(state, source, **reading)) as each:
        for _, logs in each:
            losses.append(float(logs["loss"]))
            smoothed = _smoothed(np.array(losses), smoothing)
            if not math.isfinite(losses[-1]) or smoothed[-1] > _DIVERGED * smoothed.min() > 0:
                break
    return losses


def _smoothed(losses: np.ndarray, smoothing: float) -> np.ndarray:
    """The exponential moving average, without bias towards 0."""
    total = weight = 0.0
    found = []
    for loss in losses:
        total, weight = smoothing * total + (1 - smoothing) * loss, smoothing * weight + (1 - smoothing)
        found.append(total / weight)
    return np.array(found)


def _steepest(rates: np.ndarray, smoothed: np.ndarray, smoothing: float) -> float | None:
    """The rate at which the smoothed loss falls fastest, in the logarithm of the rate, before its minimum.

    The first steps, whose mean is of a few losses and varies most, count only if the minimum is among them.
    """
    finite = np.isfinite(smoothed)
    if finite.sum() < _FEWEST:
        return None
    rates, smoothed = rates[finite], smoothed[finite]
    last = int(smoothed.argmin())
    if last == 0:
        return None
    settled = round(1 / (1 - smoothing))
    first = settled if settled < last else 0
    slopes = np.gradient(smoothed, np.log(rates))[first : last + 1]
    return float(rates[first + int(slopes.argmin())]) if slopes.min() < 0 else None

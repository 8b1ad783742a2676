"""`Objective` and its algebra: sums, and terms with a weight that is a number or a schedule of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.component import Component
from fulmen.core.fields import hyper
from fulmen.core.mode import Train
from fulmen.core.naming import Named, number, numbered
from fulmen.core.prediction import widest
from fulmen.core.schedule import Schedule
from fulmen.core.tree import remake
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["Objective", "Scaled", "Scheduled", "Sum"]


class Objective(Named):
    """A loss term. `a + b` and `0.1 * a` are objectives too; a term's weight is data and may change without recompiling.

    A weight may also be a schedule, a function from the step to a number: `optax.linear_schedule(0, 1, 500) * a`.

    **Extending.** Subclass it, and write `loss(objective: Mine, prediction)`, which returns one number per example, `(n,)`,
    or one for all; it may name the `mode` last, whose `step` in training counts the steps. The examples' weights are applied
    where the loss is reduced, so a term does not look at them. A term that gives one number per example, or a number that no
    example changes, may say `per_example = True` in its class: evaluation then pads the last batch, with examples of weight
    0, and compiles one program less.

    >>> fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.L2()
    CrossEntropy(smoothing=0.1) + 0.0001 * L2()

    One of one's own, for images `(n, height, width, channels)` that shall be smooth (Rudin, Osher and Fatemi 1992):

    >>> class TotalVariation(fm.Objective):
    ...     '''Σ |x[i+1, j] − x[i, j]| + |x[i, j+1] − x[i, j]|'''
    ...     per_example = True
    >>> @fm.dispatch
    ... def loss(term: TotalVariation, prediction):
    ...     x = prediction.outputs
    ...     return sum(jnp.abs(jnp.diff(x, axis=axis)).sum((1, 2, 3)) for axis in (1, 2))
    >>> fm.MSE() + 0.01 * TotalVariation()
    MSE() + 0.01 * TotalVariation()
    >>> print(fm.loss(TotalVariation(), fm.Prediction(None, jnp.eye(2).reshape(1, 2, 2, 1), fm.Unlabeled(None))))
    [4.]
    """

    __example__ = "fm.CrossEntropy()"

    per_example: ClassVar[bool] = False

    # NumPy's numbers leave `number * objective` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def by_name(self) -> dict[str, Objective]:
        """The terms that it is a sum of, each with its weight, under the names of `losses` and in order.

        >>> (fm.MSE() + 0.1 * fm.L2() + fm.MSE()).by_name()
        {'mse': MSE(), 'l2': 0.1 * L2(), 'mse_2': MSE()}
        """
        return numbered(_summands(self))

    def __add__(self, other: Any) -> Sum:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum((*_addends(self), *_addends(other)))

    def __radd__(self, other: Any) -> Objective:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # where `sum` begins

    def __mul__(self, weight: Any) -> Scaled | Scheduled:
        if _is_function(weight):
            return Scheduled(self, weight)
        weight = _weight(weight)
        return NotImplemented if weight is None else _scaled(self, weight)

    __rmul__ = __mul__


class Sum(Objective):
    """Objectives that are added up, as `a + b`. With a name of its own it is one term.

    Args:
        terms: the objectives.
    """

    compound: ClassVar[bool] = True
    per_example: ClassVar[bool] = True  # as far as its terms are

    terms: tuple[Objective, ...]

    def expression(self) -> str:
        return " + ".join(map(repr, self.terms))


class Scaled(Objective):
    """An objective times a number, as `0.1 * a`.

    Args:
        objective: the objective.
        weight: the number: a hyperparameter.
    """

    compound: ClassVar[bool] = True
    per_example: ClassVar[bool] = True

    objective: Objective
    weight: float = hyper(finite=True)

    @property
    def default_name(self) -> str:
        return self.objective.name or self.objective.default_name

    def expression(self) -> str:
        return f"{number(self.weight)} * {_factor(self.objective)}"


class Scheduled(Objective):
    """An objective times a weight that changes with the step, as `schedule * a`.

    Outside training, where there is no step, the weight is what the schedule settles at: its value at the highest steps.

    Args:
        objective: the objective.
        schedule: from the number of steps done to the weight; an optax schedule or any function. It is part of the type: for
            equal systems to share compiled code it has to be the same function.
        evaluation: the weight outside training, a hyperparameter; None is what the schedule settles at.

    >>> term = optax.linear_schedule(0.0, 2.0, 100) * fm.MSE()
    >>> prediction = fm.Prediction(None, jnp.ones(1), fm.Labeled(None, jnp.zeros(1)))
    >>> print(*(fm.loss(term, prediction, fm.Train(jax.random.key(0), step)) for step in (0, 50, 1000)))
    [0.] [1.] [2.]
    >>> print(fm.loss(term, prediction, fm.Eval()))
    [2.]
    """

    compound: ClassVar[bool] = True
    per_example: ClassVar[bool] = True

    objective: Objective
    schedule: Callable[[Any], Any]
    evaluation: float | None = None

    @property
    def default_name(self) -> str:
        return self.objective.name or self.objective.default_name

    def expression(self) -> str:
        if self.evaluation is not None:
            return super().expression()
        return f"{number(self.schedule)} * {_factor(self.objective)}"


# What may stand on either side of `+` and `*`


def _factor(objective: Objective) -> str:
    bare = isinstance(objective, Sum) and not objective.name
    return f"({objective!r})" if bare else repr(objective)


def _addends(objective: Objective) -> tuple[Objective, ...]:
    """The terms of a sum that has no name of its own."""
    return objective.terms if isinstance(objective, Sum) and not objective.name else (objective,)


def _summands(objective: Objective) -> list[Objective]:
    """The terms with their weights, also of a sum that is scaled; what was given a name is one term."""
    if isinstance(objective, Sum) and not objective.name:
        return [each for term in objective.terms for each in _summands(term)]
    if isinstance(objective, Scaled | Scheduled) and not objective.name:
        inner = objective.objective
        if isinstance(inner, Scaled | Scheduled | Sum):
            terms = _summands(inner)
            return [objective] if terms[0] is inner else [_weighted_as(objective, term) for term in terms]
    return [objective]


def _weighted_as(objective: Scaled | Scheduled, term: Objective) -> Objective:
    return _scaled(term, objective.weight) if isinstance(objective, Scaled) else remake(objective, {"objective": term})


def _scaled(objective: Objective, weight: Any) -> Scaled:
    if isinstance(objective, Scaled):
        return remake(objective, {"weight": objective.weight * weight})
    return Scaled(objective, weight)


def _weight(weight: Any) -> Any:
    """A weight as a floating-point number, or None for what is none."""
    if isinstance(weight, np.ndarray) and not weight.shape:
        weight = weight[()]
    if isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool):
        return float(str(weight))  # np.float32(0.1) is 0.1
    if isinstance(weight, jax.Array) and not weight.shape:
        if jnp.issubdtype(weight.dtype, jnp.floating):
            return weight
        if jnp.issubdtype(weight.dtype, jnp.integer):
            return weight.astype(jnp.float32)
    return None


def _is_function(weight: Any) -> bool:
    if isinstance(weight, Schedule):
        raise TypeError(
            f"a term's weight may be a function of the step, and {type(weight).__name__} is one of the plan: "
            "`schedule(fm.Plan(total_steps=…)) * term`."
        )
    return callable(weight) and not isinstance(weight, Component | type)


# What they come to


def total(values: list[jax.Array]) -> jax.Array:
    """Their sum in the widest of their types; a number is added to each example's."""
    dtype = widest(*(value.dtype for value in values))
    values = [value.astype(dtype) for value in values]
    return sum(values[1:], values[0])


@dispatch
def loss(objective: Sum, prediction):
    return total([jnp.asarray(loss(term, prediction)) for term in objective.terms])


@dispatch
def loss(objective: Scaled, prediction):
    return _times(objective.weight, loss(objective.objective, prediction))


@dispatch
def loss(objective: Scheduled, prediction):
    weight = _settled(objective.schedule)[0] if objective.evaluation is None else objective.evaluation
    return _times(weight, loss(objective.objective, prediction))


@dispatch
def loss(objective: Scheduled, prediction, mode: Train):
    return _times(_at(objective.schedule, mode.step), loss(objective.objective, prediction))


def _times(weight: Any, value: Any) -> jax.Array:
    value = jnp.asarray(value)
    return jnp.asarray(weight).astype(value.dtype) * value


def _at(schedule: Callable[[Any], Any], step: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # a schedule counts in integers
        return schedule(jnp.asarray(step, jnp.int32))


def _settled(schedule: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Its value at the highest step that there is, and at half of that: equal if it has settled."""
    with jax.ensure_compile_time_eval():
        return _at(schedule, 2**31 - 1), _at(schedule, 2**30)


@dispatch
def validate(objective: Scheduled):
    first = np.asarray(_at(objective.schedule, 0))
    if first.shape or not np.isfinite(first):
        raise ValueError(f"{objective!r}, schedule: a finite number was expected at step 0, and {first} came.")
    if objective.evaluation is not None:
        return
    last, before = map(np.asarray, _settled(objective.schedule))
    if not (np.isfinite(last) and np.isclose(last, before, rtol=1e-3, atol=1e-6 * max(abs(first), 1))):
        raise ValueError(
            f"{objective!r}: the schedule does not settle ({before:.4g} at step 2³⁰, {last:.4g} at 2³¹), so the term's weight "
            "outside training is not known. Say it: fm.objectives.Scheduled(objective, schedule, evaluation=1.0)."
        )


@dispatch
def validate(objective: Sum, prediction):
    for term in objective.terms:
        validate(term, prediction)


@dispatch
def validate(objective: Scaled | Scheduled, prediction):
    validate(objective.objective, prediction)

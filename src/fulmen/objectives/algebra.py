"""`Objective` and its algebra: sums, and terms weighted by a number or by a schedule of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Component, Schedule, Train, hyper, remake
from fulmen.core.naming import Named, concrete, number, numbered
from fulmen.core.prediction import widest
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch


class Objective(Named):
    """A loss term. `a + b` and `0.1 * a` are objectives too; a term's weight is data and may change without recompiling.

    A weight may also be a schedule, a function from the step to a number: `optax.linear_schedule(0, 1, 500) * a`.

    **Extending.** Subclass it, and write `loss(objective: Mine, prediction)`, which returns one number per example, `(n,)`,
    or one for all. Its last argument may be the `mode`, which has the `step` in training. The examples' weights are applied
    later, where the loss is reduced. Set `per_example = True` in the class of a term that returns one number per example, or
    a number that does not depend on them: evaluation then pads the last batch, with examples of weight 0, and compiles one
    program less.

    >>> fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.L2()
    CrossEntropy(smoothing=0.1) + 0.0001 * L2()

    A custom one, which penalizes the total variation of images `(n, height, width, channels)` (Rudin, Osher and Fatemi 1992):

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
    binary: ClassVar[bool] = False  # whether each output is the logit of an independent binary target, not of a class

    # So that NumPy's numbers leave `number * objective` to `__rmul__`.
    __array_ufunc__: ClassVar[None] = None

    def by_name(self) -> dict[str, Objective]:
        """The terms of the sum, each with its weight, in order and under their names in `losses`.

        >>> (fm.MSE() + 0.1 * fm.L2() + fm.MSE()).by_name()
        {'mse': MSE(), 'l2': 0.1 * L2(), 'mse_2': MSE()}
        """
        return numbered(self._summands())

    def __add__(self, other: Any) -> Sum:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum((*_addends(self), *_addends(other)))

    def _summands(self) -> list[Objective]:
        """The terms with their weights, also of a weighted sum; an objective with a given name is one term."""
        return [self]

    def __radd__(self, other: Any) -> Objective:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # the start of `sum`

    def __neg__(self) -> Any:
        return -1.0 * self

    def __sub__(self, other: Any) -> Sum:
        return self + -other if isinstance(other, Objective) else NotImplemented

    def __truediv__(self, number: Any) -> Any:
        return NotImplemented if _weight(number) is None else 1.0 / number * self

    def __mul__(self, weight: Any) -> Scaled | Scheduled:
        if _is_function(weight):
            return Scheduled(self, weight)
        weight = _weight(weight)
        return NotImplemented if weight is None else self._scaled(weight)

    __rmul__ = __mul__

    def _scaled(self, weight: Any) -> Scaled:
        return Scaled(self, weight)


class Sum(Objective):
    """A sum of objectives, as `a + b`. With a given name it is logged as one term.

    Args:
        terms: the objectives.
    """

    compound: ClassVar[bool] = True
    per_example: ClassVar[bool] = True  # if all its terms are

    terms: tuple[Objective, ...]

    def expression(self) -> str:
        return " + ".join(map(repr, self.terms))

    def _summands(self) -> list[Objective]:
        return [self] if self.name else [each for term in self.terms for each in term._summands()]


class WeightedTerm(Objective):
    """An objective times a weight."""

    compound: ClassVar[bool] = True
    per_example: ClassVar[bool] = True

    objective: Objective

    @property
    def default_name(self) -> str:
        return self.objective.name or self.objective.default_name

    def _summands(self) -> list[Objective]:
        terms = self.objective._summands()
        return [self] if self.name or terms[0] is self.objective else [self._of(term) for term in terms]

    def _of(self, term: Objective) -> Objective:
        """The same weight for another objective."""
        return remake(self, {"objective": term})


class Scaled(WeightedTerm):
    """An objective times a number, as `0.1 * a`.

    Args:
        objective: the objective.
        weight: the number: a hyperparameter.
    """

    weight: float = hyper(finite=True)

    def expression(self) -> str:
        return f"{number(self.weight)} * {_factor(self.objective)}"

    def _of(self, term: Objective) -> Objective:
        return term._scaled(self.weight)

    def _scaled(self, weight: Any) -> Scaled:
        return remake(self, {"weight": self.weight * weight})


class Scheduled(WeightedTerm):
    """An objective times a weight that depends on the step, as `schedule * a`.

    Outside training there is no step, and the weight is the limit of the schedule: its value at the highest steps.

    Args:
        objective: the objective.
        schedule: from the number of previous steps to the weight; an optax schedule or any function. It is static: only
            systems with the same function share compiled code.
        evaluation: the weight outside training, a hyperparameter; None is the limit of the schedule.

    >>> term = optax.linear_schedule(0.0, 2.0, 100) * fm.MSE()
    >>> prediction = fm.Prediction(None, jnp.ones(1), fm.Labeled(None, jnp.zeros(1)))
    >>> print(*(fm.loss(term, prediction, fm.Train(jax.random.key(0), step)) for step in (0, 50, 1000)))
    [0.] [1.] [2.]
    >>> print(fm.loss(term, prediction, fm.Eval()))
    [2.]
    """

    schedule: Callable[[Any], Any]
    evaluation: float | None = None

    def expression(self) -> str:
        if self.evaluation is not None:
            return super().expression()
        return f"{number(self.schedule)} * {_factor(self.objective)}"


# The operands of `+` and `*`


def _addends(objective: Objective) -> tuple[Objective, ...]:
    """The terms of a sum without a given name."""
    return objective.terms if isinstance(objective, Sum) and not objective.name else (objective,)


def _factor(objective: Objective) -> str:
    return repr(objective) if _addends(objective) == (objective,) else f"({objective!r})"


def _weight(weight: Any) -> Any:
    """A weight as a floating-point number, or None for anything but a real number."""
    if isinstance(weight, jax.Array) and not weight.shape:
        if jnp.issubdtype(weight.dtype, jnp.floating):
            return weight
        return weight.astype(jnp.float32) if jnp.issubdtype(weight.dtype, jnp.integer) else None
    array = concrete(weight)
    if array is None or array.shape or array.dtype.kind not in "iuf":
        return None
    return float(str(array[()]))  # 0.1 for np.float32(0.1)


def _is_function(weight: Any) -> bool:
    if isinstance(weight, Schedule):
        raise TypeError(
            f"the weight of a term must be a number or a function of the step, got {type(weight).__name__}, a function of the "
            "plan: write `schedule(fm.Plan(total_steps=…)) * term`."
        )
    return callable(weight) and not isinstance(weight, Component | type)


# Their values


def total(values: list[jax.Array]) -> jax.Array:
    """The sum in the widest of their types; a number is added to that of each example."""
    dtype = widest(*(value.dtype for value in values))
    values = [value.astype(dtype) for value in values]
    return sum(values[1:], values[0])


@dispatch
def loss(objective: Sum, prediction):
    return total([jnp.asarray(loss(term, prediction)) for term in objective.terms])


@dispatch
def loss(objective: Scaled, prediction):
    return _product(objective.weight, loss(objective.objective, prediction))


@dispatch
def loss(objective: Scheduled, prediction):
    weight = _late_values(objective.schedule)[0] if objective.evaluation is None else objective.evaluation
    return _product(weight, loss(objective.objective, prediction))


@dispatch
def loss(objective: Scheduled, prediction, mode: Train):
    return _product(_at(objective.schedule, mode.step), loss(objective.objective, prediction))


def _product(weight: Any, value: Any) -> jax.Array:
    value = jnp.asarray(value)
    return jnp.asarray(weight).astype(value.dtype) * value


def _at(schedule: Callable[[Any], Any], step: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):  # a schedule counts in integers
        return schedule(jnp.asarray(step, jnp.int32))


def _late_values(schedule: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The values of a schedule at the highest step and at half of it, which are equal if it converges."""
    with jax.ensure_compile_time_eval():
        return _at(schedule, 2**31 - 1), _at(schedule, 2**30)


@dispatch
def validate(objective: Scheduled):
    first = np.asarray(_at(objective.schedule, 0))
    if first.shape or not np.isfinite(first):
        raise ValueError(f"{objective!r}: schedule must be a finite number at step 0, got {first}.")
    if objective.evaluation is not None:
        return
    last, before = map(np.asarray, _late_values(objective.schedule))
    if not (np.isfinite(last) and np.isclose(last, before, rtol=1e-3, atol=1e-6 * max(abs(first), 1))):
        raise ValueError(
            f"{objective!r}: the schedule does not converge ({before:.4g} at step 2³⁰, {last:.4g} at 2³¹), so the weight outside "
            "training is unknown. Give it: fm.objectives.Scheduled(objective, schedule, evaluation=1.0)."
        )


@dispatch
def validate(objective: Sum, prediction):
    for term in objective.terms:
        validate(term, prediction)


@dispatch
def validate(objective: WeightedTerm, prediction):
    validate(objective.objective, prediction)

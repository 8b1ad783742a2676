"""Objectives: loss terms that add up, `CrossEntropy(smoothing=0.1) + 1e-4 * L2()`, and print as the formula they are."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.dispatch import dispatch
from fulmen.leaves import PARAMETER, leaves
from fulmen.naming import Named, concrete, number, numbered
from fulmen.prediction import Prediction, at_least_float32, check_class_values, class_targets, number_targets, widest
from fulmen.tree import remake, static
from fulmen.verbs import loss, validate

__all__ = ["L2", "MSE", "CrossEntropy", "Objective", "Prediction", "Scaled", "Sum"]


class Objective(Named):
    """A loss term. `a + b` and `0.1 * a` are objectives too; a term's weight is data and may change without recompiling.

    **Extending.** Subclass it, and write `loss(objective: Mine, prediction)`, which returns one number per example, `(n,)`,
    or one for all. A term that gives one per example, or a number that no example changes, may say `per_example = True` in
    its class: evaluation then pads the last batch, with examples of weight 0, and compiles one program less.

    >>> fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.L2()
    CrossEntropy(smoothing=0.1) + 0.0001 * L2()
    """

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

    def __mul__(self, weight: Any) -> Scaled:
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
    weight: float

    @property
    def default_name(self) -> str:
        return self.objective.name or self.objective.default_name

    def expression(self) -> str:
        bare = isinstance(self.objective, Sum) and not self.objective.name
        return f"{number(self.weight)} * {f'({self.objective!r})' if bare else repr(self.objective)}"


class CrossEntropy(Objective):
    """The cross-entropy of a softmax over classes, in nats, one per example.

    Targets are integer labels `(n,)` or probabilities `(n, classes)`; outputs are logits `(n, classes)`.

    Args:
        smoothing: how much of each target is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016,
            arXiv:1512.00567). As a number it may change without recompiling; None leaves it out of the program.

    >>> prediction = fm.Prediction(None, jnp.zeros((2, 4)), fm.Labeled(None, jnp.array([0, 3])))
    >>> print(fm.loss(fm.CrossEntropy(), prediction))
    [1.3862944 1.3862944]
    """

    per_example: ClassVar[bool] = True

    smoothing: float | None = None


class MSE(Objective):
    """The squared error, averaged over all but the first axis: one number per example. Outputs and targets of one shape."""

    per_example: ClassVar[bool] = True


class L2(Objective):
    """Half the sum of squares of the model's weights, ½ Σ w².

    Args:
        kernels_only: count only parameters with two axes or more, which leaves out biases and the scales of
            normalizations.
    """

    per_example: ClassVar[bool] = True

    kernels_only: bool = static(default=True)


# The algebra


def _addends(objective: Objective) -> tuple[Objective, ...]:
    """The terms of a sum that has no name of its own."""
    return objective.terms if isinstance(objective, Sum) and not objective.name else (objective,)


def _summands(objective: Objective) -> list[Objective]:
    """The terms with their weights, also of a sum that is scaled; what was given a name is one term."""
    if isinstance(objective, Sum) and not objective.name:
        return [each for term in objective.terms for each in _summands(term)]
    if isinstance(objective, Scaled) and not objective.name and isinstance(objective.objective, Scaled | Sum):
        inner = _summands(objective.objective)
        return [objective] if inner[0] is objective.objective else [_scaled(term, objective.weight) for term in inner]
    return [objective]


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


def _total(values: list[jax.Array]) -> jax.Array:
    """Their sum in the widest of their types; a number is added to each example's."""
    dtype = widest(*(value.dtype for value in values))
    values = [value.astype(dtype) for value in values]
    return sum(values[1:], values[0])


@dispatch
def loss(objective: Sum, prediction):
    return _total([jnp.asarray(loss(term, prediction)) for term in objective.terms])


@dispatch
def loss(objective: Scaled, prediction):
    value = jnp.asarray(loss(objective.objective, prediction))
    return jnp.asarray(objective.weight).astype(value.dtype) * value


@dispatch
def validate(objective: Sum):
    for term in objective.terms:
        if not isinstance(term, Objective):
            raise TypeError(f"Sum, terms: objectives were expected, and {term!r} came.")


@dispatch
def validate(objective: Scaled):
    weight = concrete(objective.weight)
    if weight is not None and not np.isfinite(weight).all():
        raise ValueError(f"{objective!r}, weight: a finite number was expected, and {number(objective.weight)} came.")


@dispatch
def validate(objective: Sum, prediction):
    for term in objective.terms:
        validate(term, prediction)


@dispatch
def validate(objective: Scaled, prediction):
    validate(objective.objective, prediction)


# The terms


@dispatch
def loss(objective: CrossEntropy, prediction):
    y, labels = class_targets(prediction, objective)
    logits, smoothing = at_least_float32(prediction.outputs), objective.smoothing
    if not labels:
        y = y.astype(logits.dtype)
        if smoothing is not None:
            smoothing = jnp.asarray(smoothing).astype(logits.dtype)
            y = (1 - smoothing) * y + smoothing / y.shape[1]
        return optax.softmax_cross_entropy(logits, y)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    if smoothing is None:
        return value
    # The even part has cross-entropy log Σ exp z − mean z, so the two differ by z_y − mean z.
    own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return value + jnp.asarray(smoothing).astype(logits.dtype) * (own - logits.mean(1))


@dispatch
def validate(objective: CrossEntropy):
    smoothing = concrete(objective.smoothing)
    if smoothing is not None and not ((smoothing >= 0) & (smoothing < 1)).all():
        raise ValueError(
            f"CrossEntropy, smoothing: a number in [0, 1) was expected, and {number(objective.smoothing)} came."
        )


@dispatch
def validate(objective: CrossEntropy, prediction):
    y, labels = class_targets(prediction, objective)
    check_class_values(y, labels, prediction.outputs.shape[1], objective)


@dispatch
def loss(objective: MSE, prediction):
    y = number_targets(prediction, objective)
    outputs = at_least_float32(prediction.outputs)
    squares = (outputs - y.astype(outputs.dtype)) ** 2
    return squares.mean(tuple(range(1, squares.ndim)))


@dispatch
def validate(objective: MSE, prediction):
    number_targets(prediction, objective)


@dispatch
def loss(objective: L2, prediction):
    found = [leaf.value for leaf in leaves(prediction.model) if leaf.role == PARAMETER]
    kernels = [at_least_float32(v) for v in found if v.ndim >= 2 or not objective.kernels_only]
    if not kernels:
        return jnp.zeros(())
    return _total([jnp.sum(jnp.real(v * jnp.conj(v))) / 2 for v in kernels])

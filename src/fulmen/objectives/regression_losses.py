"""Objectives of regression: targets are numbers, of the shape of the outputs."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import at_least_float32, hyper, number_targets
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective


class NumberObjective(Objective):
    """An objective of outputs z and targets y of one shape: one number per example, averaged over all but the first axis."""

    per_example: ClassVar[bool] = True


class MSE(NumberObjective):
    """The squared error (z − y)² of outputs z and targets y of one shape, averaged over all but the first axis."""


class MAE(NumberObjective):
    """The absolute error |z − y| of outputs z and targets y of one shape, averaged over all but the first axis."""


class Huber(NumberObjective):
    """½ r² where |r| ≤ δ, and δ (|r| − ½ δ) beyond, for r = z − y: averaged over all but the first axis (Huber 1964).

    Outputs z and targets y have one shape.

    Args:
        delta: δ, where the parabola becomes a line: a hyperparameter, in the targets' unit.

    >>> prediction = fm.Prediction(None, jnp.array([0.5, 3.0]), fm.Labeled(None, jnp.zeros(2)))
    >>> print(fm.loss(fm.objectives.Huber(delta=1.0), prediction))
    [0.125 2.5  ]
    """

    delta: float = hyper(above=0, default=1.0)


def _errors(prediction: Any, objective: Objective) -> jax.Array:
    y = number_targets(prediction, objective)
    outputs = at_least_float32(prediction.outputs)
    return outputs - jnp.asarray(y).astype(outputs.dtype)


def mean_per_example(values: jax.Array) -> jax.Array:
    """The mean over all axes but the first."""
    return values.mean(tuple(range(1, values.ndim)))


@dispatch
def loss(objective: MSE, prediction):
    return mean_per_example(_errors(prediction, objective) ** 2)


@dispatch
def loss(objective: MAE, prediction):
    return mean_per_example(jnp.abs(_errors(prediction, objective)))


@dispatch
def loss(objective: Huber, prediction):
    size = jnp.abs(_errors(prediction, objective))
    delta = jnp.asarray(objective.delta).astype(size.dtype)
    near = jnp.minimum(size, delta)
    return mean_per_example(near * (size - near / 2))  # ½ r² where near is |r|


@dispatch
def validate(objective: NumberObjective, prediction):
    number_targets(prediction, objective)

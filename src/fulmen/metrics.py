"""Metrics: figures to be watched, as mergeable values, so that an epoch's is exact."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp

from fulmen.dispatch import dispatch
from fulmen.mergeable import Mean
from fulmen.naming import Named
from fulmen.prediction import Prediction, at_least_float32, check_class_values, class_targets, number_targets
from fulmen.verbs import metrics, validate

__all__ = ["Accuracy", "MeanAbsoluteError", "Metric"]


class Metric(Named):
    """A figure of a prediction. It is logged under its class's name, or that of `metric.named("…")`.

    **Extending.** Subclass it, and write `metrics(metric: Mine, prediction)`, which returns one mergeable value, such as
    `fm.Mean(values, prediction.batch.weight)`. If it weighs its examples so, it may say `per_example = True` in its class:
    evaluation then pads the last batch, with examples of weight 0.
    """

    per_example: ClassVar[bool] = False


class Accuracy(Metric):
    """The share of examples whose class has the largest output of all; a tie or a NaN counts as wrong.

    Targets are integer labels `(n,)`, or probabilities `(n, classes)`, of which the most probable class counts.

    >>> prediction = fm.Prediction(None, jnp.eye(3), fm.Labeled(None, jnp.array([0, 1, 0])))
    >>> print(round(float(fm.metrics(fm.Accuracy(), prediction).compute()), 3))
    0.667
    """

    per_example: ClassVar[bool] = True


class MeanAbsoluteError(Metric):
    """The absolute error, averaged over examples and what each has. Outputs and targets of one shape."""

    per_example: ClassVar[bool] = True


@dispatch
def metrics(metric: Metric, prediction):
    name = type(metric).__name__
    raise TypeError(
        f"{name} has no method. Write `@dispatch def metrics(metric: {name}, prediction): return fm.Mean(values, "
        "prediction.batch.weight)`."
    )


@dispatch
def metrics(metric: Accuracy, prediction):
    y, labels = class_targets(prediction, metric)
    outputs, y = jnp.asarray(prediction.outputs), jnp.asarray(y)
    if not labels:
        y = y.argmax(1)
    own = jnp.take_along_axis(outputs, y[:, None], axis=1)
    # Cheaper than argmax, and a NaN is never smaller.
    right = (outputs < own).sum(1) == outputs.shape[1] - 1
    return Mean(right, weight_of(prediction))


@dispatch
def metrics(metric: MeanAbsoluteError, prediction):
    y = number_targets(prediction, metric)
    outputs = at_least_float32(prediction.outputs)
    errors = jnp.abs(outputs - y.astype(outputs.dtype))
    return Mean(errors.mean(tuple(range(1, errors.ndim))), weight_of(prediction))


def weight_of(prediction: Prediction) -> Any:
    """How much each example counts, or None."""
    return getattr(prediction.batch, "weight", None)


@dispatch
def validate(metric: Accuracy, prediction):
    y, labels = class_targets(prediction, metric)
    check_class_values(y, labels, prediction.outputs.shape[1], metric)


@dispatch
def validate(metric: MeanAbsoluteError, prediction):
    number_targets(prediction, metric)

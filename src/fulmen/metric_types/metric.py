"""`Metric`, and what metrics share: the examples' weights, and arithmetic that runs on the host and in compiled code."""

from __future__ import annotations

from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.border import check_weight
from fulmen.core.mergeable import Mergeable
from fulmen.core.naming import Named
from fulmen.core.prediction import Prediction, check_classes, class_targets
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["Metric"]


class Metric(Named):
    """A figure of a prediction. It is logged under its class's name, or that of `metric.named("…")`.

    **Extending.** Subclass it, and write `metrics(metric: Mine, prediction)`, which returns one mergeable value, such as
    `fm.Mean(values, prediction.batch.weight)`. If it weighs its examples so, it may say `per_example = True` in its class:
    evaluation then pads the last batch, with examples of weight 0.
    """

    __example__ = "fm.Accuracy()"

    per_example: ClassVar[bool] = False


class ClassMetric(Metric):
    """A metric of predicted classes. Targets are integer labels `(n,)` or probabilities `(n, classes)`."""

    per_example: ClassVar[bool] = True


@dispatch
def validate(metric: ClassMetric, prediction):
    check_classes(prediction, metric)


@dispatch
def metrics(metric: Metric, prediction):
    name = type(metric).__name__
    raise TypeError(
        f"{name} has no method. Write `@dispatch def metrics(metric: {name}, prediction): return fm.Mean(values, "
        "prediction.batch.weight)`."
    )


def weight_of(prediction: Prediction) -> Any:
    """How much each example counts, or None."""
    return getattr(prediction.batch, "weight", None)


def weights(prediction: Prediction, n: int, dtype: Any = jnp.float32) -> jax.Array:
    """How much each of `n` examples counts."""
    weight = weight_of(prediction)
    check_weight(weight)
    return jnp.ones(n, dtype) if weight is None else jnp.broadcast_to(jnp.asarray(weight).astype(dtype), (n,))


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """The sum over examples; one of weight 0 is padding, and may be anything."""
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(weight == 0, 0, values * weight).sum(0)


def labels_of(prediction: Prediction, who: Any) -> jax.Array:
    """The targets as integer labels; of probabilities the most probable class."""
    y, labels = class_targets(prediction, who)
    return jnp.asarray(y) if labels else jnp.asarray(y).argmax(1)


def numpy_of(value: Any) -> ModuleType:
    """The library that computes with a value: NumPy, in float64, on the host; JAX's in compiled code."""
    return jnp if isinstance(value, jax.Array) else np


def ratio(a: Any, b: Any) -> Any:
    """a / b, and NaN where b is 0."""
    xp = numpy_of(b)
    return xp.where(b == 0, xp.nan, a / xp.where(b == 0, 1, b))


class OfMean(Mergeable):
    """A function of a mean.

    Args:
        total: the sum.
        weight: of how many.
    """

    total: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> Any:
        """NaN where it is of nothing."""
        return ratio(self.total, self.weight)

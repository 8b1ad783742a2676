"""`Metric`, and what metrics share: weights of examples, and arithmetic for the host and for compiled code."""

from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Prediction, check_classes, class_targets
from fulmen.core.batch_checks import check_weight
from fulmen.core.naming import Named
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch


class Metric(Named):
    """A metric of a prediction. It is logged under the name of its class, or that of `metric.named("…")`.

    **Extending.** Subclass it, and write `metrics(metric: Mine, prediction)`, which returns one mergeable value, such as
    `fm.Mean(values, prediction.batch.weight)`. Set `per_example = True` in its class if it weighs examples like this:
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
    """The weight of each example, `(n,)`, or None."""
    return getattr(prediction.batch, "weight", None)


def weights(prediction: Prediction, n: int, dtype: Any = jnp.float32) -> jax.Array:
    """The weight of each of `n` examples, `(n,)`."""
    weight = weight_of(prediction)
    check_weight(weight)
    return jnp.ones(n, dtype) if weight is None else jnp.broadcast_to(jnp.asarray(weight).astype(dtype), (n,))


def weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    """The weighted sum over examples; values of weight 0 are padding and may be NaN."""
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(weight == 0, 0, values * weight).sum(0)


def labels_of(prediction: Prediction, who: Any) -> jax.Array:
    """The targets as integer labels; for probabilities the most probable class."""
    y, labels = class_targets(prediction, who)
    return jnp.asarray(y) if labels else jnp.asarray(y).argmax(1)


def numpy_of(value: Any) -> ModuleType:
    """`numpy` for a value on the host (in float64), `jax.numpy` in compiled code."""
    return jnp if isinstance(value, jax.Array) else np


def ratio(a: Any, b: Any) -> Any:
    """a / b, or NaN where b is 0."""
    xp = numpy_of(b)
    return xp.where(b == 0, xp.nan, a / xp.where(b == 0, 1, b))

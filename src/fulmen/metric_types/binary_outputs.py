"""Binary outputs, in metrics that also take classes: logits of one label, or of several independent ones, per example."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import at_least_float32, check_binary, check_classes, hyper, number_targets
from fulmen.core.verbs import validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import ClassMetric


class BinaryOrClassMetric(ClassMetric):
    """A metric of predicted classes, or of binary predictions: outputs `(n,)` or `(n, 1)`, or `(n, k)` with a `threshold`."""

    threshold: float | None = hyper(above=0, below=1, default=None, kw_only=True)


@dispatch
def validate(metric: BinaryOrClassMetric, prediction):
    (check_binary if is_binary(metric, prediction) else check_classes)(prediction, metric)


def is_binary(metric: BinaryOrClassMetric, prediction: Any) -> bool:
    """Whether each output is the logit of an independent binary target."""
    return metric.threshold is not None or has_one_output(prediction)


def has_one_output(prediction: Any) -> bool:
    """Whether the outputs are one number per example, `(n,)` or `(n, 1)`."""
    shape = getattr(prediction.outputs, "shape", ())
    return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)


def columns(prediction: Any) -> int:
    """The number of outputs per example."""
    shape = prediction.outputs.shape
    return shape[1] if len(shape) == 2 else 1


def binary_targets(prediction: Any, who: Any) -> tuple[jax.Array, jax.Array]:
    """The logits, `(n, k)`, and whether the targets are 1."""
    y, outputs = number_targets(prediction, who), at_least_float32(prediction.outputs)
    n = outputs.shape[0]
    return outputs.reshape(n, -1), jnp.asarray(y).astype(outputs.dtype).reshape(n, -1) > 0.5


def binary_answers(metric: BinaryOrClassMetric, prediction: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each label, `(n, k)`: whether it is 1, whether it is predicted to be, and whether the output is not NaN."""
    outputs, actual = binary_targets(prediction, metric)
    border = jnp.zeros((), outputs.dtype)
    if metric.threshold is not None:
        border = jax.scipy.special.logit(jnp.asarray(metric.threshold).astype(outputs.dtype))
    return actual, outputs > border, ~jnp.isnan(outputs)

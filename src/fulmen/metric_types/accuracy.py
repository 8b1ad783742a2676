"""`Accuracy` and `TopK`: the share of correct classes."""

from typing import ClassVar

import jax.numpy as jnp

from fulmen.core import Mean, check_classes, static
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import ClassMetric, labels_of, weight_of


class Accuracy(ClassMetric):
    """The share of examples whose class has the largest output; a tie or a NaN counts as wrong.

    Targets are integer labels `(n,)`, or probabilities `(n, classes)`, whose largest marks the class.

    >>> prediction = fm.Prediction(None, jnp.eye(3), fm.Labeled(None, jnp.array([0, 1, 0])))
    >>> print(round(float(fm.metrics(fm.Accuracy(), prediction).compute()), 3))
    0.667
    """

    k: ClassVar[int] = 1


class TopK(ClassMetric):
    """The share of examples whose class is among the `k` with the largest outputs; a tie or a NaN counts as wrong.

    Targets are as in `Accuracy`. It is logged as `top_5` for k = 5.

    Args:
        k: number of classes, less than all.

    >>> outputs = jnp.array([[0.1, 0.3, 0.2], [0.5, 0.2, 0.1]])
    >>> print(fm.metrics(fm.metric_types.TopK(2), fm.Prediction(None, outputs, fm.Labeled(None, jnp.array([2, 2])))).compute())
    0.5
    """

    k: int = static(minimum=1, default=5)

    @property
    def default_name(self) -> str:
        return f"top_{self.k}"


@dispatch
def metrics(metric: Accuracy | TopK, prediction):
    y, outputs = labels_of(prediction, metric), jnp.asarray(prediction.outputs)
    true = jnp.take_along_axis(outputs, y[:, None], axis=1)
    # Cheaper than argmax or a sort, and a NaN is never smaller.
    right = (outputs < true).sum(1) >= outputs.shape[1] - metric.k
    return Mean(right, weight_of(prediction))


@dispatch
def validate(metric: TopK, prediction):
    check_classes(prediction, metric)
    classes = prediction.outputs.shape[1]
    if metric.k >= classes:
        raise ValueError(
            f"TopK.k must be less than the number of classes, {classes}, got {metric.k}: the result would always be 1."
        )

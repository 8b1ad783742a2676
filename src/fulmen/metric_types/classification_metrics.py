"""Metrics of predicted classes: accuracy, precision, recall, F1 and the confusion matrix."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fulmen.core import Mean, Mergeable, check_classes, static
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import ClassMetric, labels_of, numpy_of, ratio, weight_of, weighted_sum, weights


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


class ClassRate(ClassMetric):
    """The true positives of each class, divided by a total, and averaged over classes.

    **Extending.** Subclass it, and write `total(self, actual, predicted)`, from the numbers of examples of each class and of
    predictions of it, `(classes,)`, to the divisor.
    """

    average: Literal["macro", "micro"] | None = "macro"

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        """The divisor for each class."""
        raise NotImplementedError


class Precision(ClassRate):
    """Of the examples predicted to be of a class, the share that are: tp / (tp + fp).

    The predicted class is the first with the largest output; with a NaN among the outputs there is none. Targets are integer
    labels `(n,)`, or probabilities `(n, classes)`, whose largest marks the class.

    Args:
        average: `"macro"`, the mean over the classes that occur in targets or predictions; `"micro"`, the counts of all
            classes summed first (without NaN, the accuracy); None, one number per class, `(classes,)`. A class that occurs
            but is never predicted counts as 0; one that does not occur at all is NaN.

    >>> prediction = fm.Prediction(None, jnp.eye(2)[jnp.array([0, 0, 1])], fm.Labeled(None, jnp.array([0, 1, 1])))
    >>> print(fm.metrics(fm.Precision(average=None), prediction).compute())
    [0.5 1. ]
    """

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        return predicted


class Recall(ClassRate):
    """Of the examples of a class, the share that are predicted to be: tp / (tp + fn).

    Args:
        average: as in `Precision`. A class that is predicted but has no example counts as 0.
    """

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        return actual


class F1(ClassRate):
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn).

    Args:
        average: as in `Precision`.
    """

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        return (actual + predicted) / 2


class ConfusionMatrix(ClassMetric):
    """The weight of examples by true class (rows) and predicted class (columns): `(classes, classes)`.

    Predictions and targets are as in `Precision`.

    Args:
        classes: number of classes; None is the number of outputs.

    >>> prediction = fm.Prediction(None, jnp.eye(2)[jnp.array([0, 0, 1])], fm.Labeled(None, jnp.array([0, 1, 1])))
    >>> print(fm.metrics(fm.metric_types.ConfusionMatrix(2), prediction).compute())
    [[1. 0.]
     [1. 1.]]
    """

    classes: int | None = static(default=None)


class Rates(Mergeable):
    """The sums of a `ClassRate`, by class."""

    hits: jax.Array
    total: jax.Array
    occurrences: jax.Array  # 0 for a class in neither targets nor predictions
    average: str | None = static()

    def compute(self) -> Any:
        if self.average == "micro":
            return ratio(self.hits.sum(), self.total.sum())
        xp = numpy_of(self.hits)
        occurs = self.occurrences > 0
        each = xp.where(occurs & (self.total == 0), 0, ratio(self.hits, self.total))
        if self.average is None:
            return each
        return ratio(xp.where(occurs, each, 0).sum(), occurs.astype(each.dtype).sum())


class Counts(Mergeable):
    """Counts of any shape, which add up over batches."""

    counts: jax.Array

    def compute(self) -> Any:
        return self.counts


def _classes(metric: ClassMetric, prediction: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """True and predicted classes, one-hot `(n, classes)`, and the examples' weights."""
    y, outputs = labels_of(prediction, metric), jnp.asarray(prediction.outputs)
    n, classes = outputs.shape
    predicted = jnp.where(jnp.isnan(outputs).any(1), classes, outputs.argmax(1))  # NaN: out of range, all zeros in one-hot
    true, predicted = (jax.nn.one_hot(v, classes, dtype=jnp.float32) for v in (y, predicted))
    return true, predicted, weights(prediction, n)


@dispatch
def metrics(metric: ClassRate, prediction):
    true, predicted, weight = _classes(metric, prediction)
    hits, actual, guessed = (weighted_sum(v, weight) for v in (true * predicted, true, predicted))
    return Rates(hits, metric.total(actual, guessed), actual + guessed, average=metric.average)


@dispatch
def metrics(metric: ConfusionMatrix, prediction):
    true, predicted, weight = _classes(metric, prediction)
    return Counts(weighted_sum(true[:, :, None] * predicted[:, None], weight))


@dispatch
def validate(metric: ConfusionMatrix, prediction):
    check_classes(prediction, metric)
    classes = prediction.outputs.shape[1]
    if metric.classes not in (None, classes):
        raise ValueError(f"ConfusionMatrix.classes must be {classes}, the number of outputs, got {metric.classes}.")

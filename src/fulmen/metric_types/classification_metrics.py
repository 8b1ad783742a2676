"""Metrics of predicted classes: accuracy, precision, recall, F1 and the confusion matrix."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fulmen.core import Mean, Mergeable, check_classes, static
from fulmen.core.prediction import at_labels
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.binary_outputs import BinaryOrClassMetric, binary_answers, columns, is_binary
from fulmen.metric_types.metric import ClassMetric, labels_of, numpy_of, ratio, weight_of, weighted_sum, weights


class Accuracy(BinaryOrClassMetric):
    """The share of examples whose class has the largest output; a tie or a NaN counts as wrong.

    Targets are integer labels `(n,)`, or probabilities `(n, classes)`, whose largest marks the class. For binary outputs it is the
    share of targets that are predicted: with several labels per example, the mean over all of them.

    Args:
        threshold: for binary outputs, as in `Precision`.

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
def metrics(metric: Accuracy, prediction):
    if not is_binary(metric, prediction):
        return _in_top(metric, prediction)
    actual, positive, known = binary_answers(metric, prediction)
    right = (actual == positive) & known
    return Mean(right.astype(jnp.float32).mean(1), weight_of(prediction))


@dispatch
def metrics(metric: TopK, prediction):
    return _in_top(metric, prediction)


def _in_top(metric: Accuracy | TopK, prediction: Any) -> Mean:
    y, outputs = labels_of(prediction, metric), jnp.asarray(prediction.outputs)
    # Cheaper than argmax or a sort, and a NaN is never smaller.
    right = (outputs < at_labels(outputs, y)[:, None]).sum(1) >= outputs.shape[1] - metric.k
    return Mean(right, weight_of(prediction))


@dispatch
def validate(metric: TopK, prediction):
    check_classes(prediction, metric)
    classes = prediction.outputs.shape[1]
    if metric.k >= classes:
        raise ValueError(
            f"TopK.k must be less than the number of classes, {classes}, got {metric.k}: the result would always be 1."
        )


class ClassRate(BinaryOrClassMetric):
    """The true positives of each class, divided by a total, and averaged over classes.

    **Extending.** Subclass it, and write `total(self, actual, predicted)`, from the numbers of examples of each class and of
    predictions of it, `(classes,)`, to the divisor.
    """

    average: Literal["macro", "micro", "binary"] | None = "macro"

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        """The divisor for each class."""
        raise NotImplementedError


class Precision(ClassRate):
    """Of the examples predicted to be of a class, the share that are: tp / (tp + fp).

    The predicted class is the first with the largest output; with a NaN among the outputs there is none. Targets are integer
    labels `(n,)`, or probabilities `(n, classes)`, whose largest marks the class.

    Outputs of shape `(n,)` or `(n, 1)` are logits of binary targets of the same shape, and there are two classes, 0 and 1. With
    `threshold`, outputs `(n, k)` are logits of k independent labels, and targets `(n, k)` are 0 or 1: rates are those of the label
    1, and averages are over labels instead of classes.

    Args:
        average: `"macro"`, the mean over the classes that occur in targets or predictions; `"micro"`, the counts of all
            classes summed first (without NaN, the accuracy); `"binary"`, the rate of class 1 of two; None, one number per class,
            `(classes,)`. A class that occurs but is never predicted counts as 0; one that does not occur at all is NaN.
        threshold: t: a binary target is predicted to be 1 if σ(z) > t; None is 0.5 for outputs `(n,)` and `(n, 1)`, and otherwise
            predicts one class per example.

    >>> prediction = fm.Prediction(None, jnp.eye(2)[jnp.array([0, 0, 1])], fm.Labeled(None, jnp.array([0, 1, 1])))
    >>> print(fm.metrics(fm.Precision(average=None), prediction).compute())
    [0.5 1. ]
    >>> prediction = fm.Prediction(None, jnp.array([-1.0, 2.0, 3.0]), fm.Labeled(None, jnp.array([0, 1, 0])))
    >>> print(fm.metrics(fm.Precision("binary"), prediction).compute())
    0.5
    """

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        return predicted


class Recall(ClassRate):
    """Of the examples of a class, the share that are predicted to be: tp / (tp + fn).

    Args:
        average, threshold: as in `Precision`. A class that is predicted but has no example counts as 0.
    """

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        return actual


class F1(ClassRate):
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn).

    Args:
        average, threshold: as in `Precision`.
    """

    def total(self, actual: jax.Array, predicted: jax.Array) -> jax.Array:
        return (actual + predicted) / 2


class ConfusionMatrix(BinaryOrClassMetric):
    """The weight of examples by true class (rows) and predicted class (columns): `(classes, classes)`.

    Predictions and targets are as in `Precision`, with one label per example.

    Args:
        classes: number of classes; None is the number of outputs, or 2 for binary ones.
        threshold: as in `Precision`.

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
        if self.average == "binary":
            return each[-1]
        return ratio(xp.where(occurs, each, 0).sum(), occurs.astype(each.dtype).sum())


class Counts(Mergeable):
    """Counts of any shape, which add up over batches."""

    counts: jax.Array

    def compute(self) -> Any:
        return self.counts


def _classes(metric: BinaryOrClassMetric, prediction: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """True and predicted classes, one-hot `(n, classes)`, or labels `(n, k)`, and the examples' weights."""
    if is_binary(metric, prediction):
        actual, positive, known = binary_answers(metric, prediction)
        true, predicted = actual, positive & known
        if actual.shape[1] == 1:
            true = jnp.concatenate([~actual, actual], 1)
            predicted = jnp.concatenate([~positive & known, positive & known], 1)
        return true.astype(jnp.float32), predicted.astype(jnp.float32), weights(prediction, len(actual))
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
def validate(metric: ClassRate, prediction):
    validate.invoke(BinaryOrClassMetric, object)(metric, prediction)
    binary, n = is_binary(metric, prediction), columns(prediction)
    if metric.average == "binary" and n != (1 if binary else 2):
        raise ValueError(
            f'{type(metric).__name__}.average must not be "binary" for {n} {"labels" if binary else "classes"}; write '
            f'fm.{type(metric).__name__}("macro"{", threshold=0.5" if binary else ""}).'
        )


@dispatch
def validate(metric: ConfusionMatrix, prediction):
    validate.invoke(BinaryOrClassMetric, object)(metric, prediction)
    classes = columns(prediction)
    if is_binary(metric, prediction):
        if classes > 1:
            raise ValueError(
                f"ConfusionMatrix takes one label per example, got {classes}; use fm.Precision(None, threshold=0.5) and fm.Recall."
            )
        classes = 2
    if metric.classes not in (None, classes):
        raise ValueError(f"ConfusionMatrix.classes must be {classes}, the number of outputs, got {metric.classes}.")

"""Metrics that count predicted against true classes: precision, recall, F1 and the confusion matrix."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from fulmen.core.fields import static
from fulmen.core.mergeable import Mergeable
from fulmen.core.prediction import check_classes
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import ClassMetric, labels_of, numpy_of, ratio, weighted_sum, weights

__all__ = ["F1", "ConfusionMatrix", "Precision", "Recall"]


class ClassRate(ClassMetric):
    """What precision, recall and F1 share: how they are averaged over classes."""

    average: Literal["macro", "micro"] | None = "macro"


class Precision(ClassRate):
    """Of the examples predicted to be of a class, the share that are: tp / (tp + fp).

    The predicted class is that of the largest output, the first of equals; with a NaN among the outputs it is none. Targets are
    integer labels `(n,)`, or probabilities `(n, classes)`, of which the most probable class counts.

    Args:
        average: `"macro"`, the mean over the classes that occur among targets or predictions; `"micro"`, all classes' counts
            added up first (with one label per example and no NaN that is the accuracy); None, one number per class, `(classes,)`. A
            class that occurs but is never predicted counts as 0; one that does not occur at all is NaN.

    >>> prediction = fm.Prediction(None, jnp.eye(2)[jnp.array([0, 0, 1])], fm.Labeled(None, jnp.array([0, 1, 1])))
    >>> print(fm.metrics(fm.Precision(average=None), prediction).compute())
    [0.5 1. ]
    """


class Recall(ClassRate):
    """Of the examples of a class, the share that are predicted to be: tp / (tp + fn).

    Predictions and targets are read as by `Precision`.

    Args:
        average: over classes, as `Precision`'s: `"macro"`, `"micro"` or None. A class that is predicted but has no
            example counts as 0; one that does not occur at all is NaN.
    """


class F1(ClassRate):
    """The harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn).

    Predictions and targets are read as by `Precision`.

    Args:
        average: over classes, as `Precision`'s: `"macro"`, `"micro"` or None. A class that does not occur at all is NaN.
    """


class ConfusionMatrix(ClassMetric):
    """How many examples of each class (rows) were predicted to be of each (columns), by weight: `(classes, classes)`.

    Predictions and targets are read as by `Precision`.

    Args:
        classes: how many classes there are; None is as many as the model has outputs.

    >>> prediction = fm.Prediction(None, jnp.eye(2)[jnp.array([0, 0, 1])], fm.Labeled(None, jnp.array([0, 1, 1])))
    >>> print(fm.metrics(fm.metric_types.ConfusionMatrix(2), prediction).compute())
    [[1. 0.]
     [1. 1.]]
    """

    classes: int | None = static(default=None)


class Rates(Mergeable):
    """Shares by class.

    Args:
        hits: `(classes,)`, how many were right.
        total: `(classes,)`, of how many.
        seen: `(classes,)`, 0 for a class that does not occur.
        average: over the classes.
    """

    hits: jax.Array
    total: jax.Array
    seen: jax.Array
    average: str | None = static()

    def compute(self) -> Any:
        if self.average == "micro":
            return ratio(self.hits.sum(), self.total.sum())
        xp = numpy_of(self.hits)
        occurs = self.seen > 0
        each = xp.where(occurs & (self.total == 0), 0, ratio(self.hits, self.total))
        if self.average is None:
            return each
        return ratio(xp.where(occurs, each, 0).sum(), occurs.astype(each.dtype).sum())


class Counts(Mergeable):
    """Numbers that add up.

    Args:
        counts: of any shape.
    """

    counts: jax.Array

    def compute(self) -> Any:
        return self.counts


def _classes(metric: ClassMetric, prediction: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """True and predicted classes, `(n, classes)` with a 1 for the class, and the examples' weights."""
    y, outputs = labels_of(prediction, metric), jnp.asarray(prediction.outputs)
    n, classes = outputs.shape
    guess = jnp.where(jnp.isnan(outputs).any(1), classes, outputs.argmax(1))  # of no class
    true, predicted = (jax.nn.one_hot(v, classes, dtype=jnp.float32) for v in (y, guess))
    return true, predicted, weights(prediction, n)


@dispatch
def metrics(metric: ClassRate, prediction):
    true, predicted, weight = _classes(metric, prediction)
    hits, actual, guessed = (weighted_sum(v, weight) for v in (true * predicted, true, predicted))
    total = {Precision: guessed, Recall: actual, F1: (actual + guessed) / 2}
    kind = next(kind for kind in total if isinstance(metric, kind))
    return Rates(hits, total[kind], actual + guessed, average=metric.average)


@dispatch
def metrics(metric: ConfusionMatrix, prediction):
    true, predicted, weight = _classes(metric, prediction)
    return Counts(weighted_sum(true[:, :, None] * predicted[:, None], weight))


@dispatch
def validate(metric: ConfusionMatrix, prediction):
    check_classes(prediction, metric)
    classes = prediction.outputs.shape[1]
    if metric.classes not in (None, classes):
        raise ValueError(
            f"ConfusionMatrix, classes: {classes} were expected, as many as the model has outputs, and {metric.classes} came."
        )

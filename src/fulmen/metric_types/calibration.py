"""Metrics of probabilities: `CalibrationError`, `Perplexity`, `BitsPerCharacter`."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import Labeled, Mean, Mergeable, Prediction, at_least_float32, check_classes, class_targets, static
from fulmen.core.prediction import at_labels, reshaped
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import ClassMetric, Metric, labels_of, numpy_of, ratio, weight_of, weighted_sum, weights


class CalibrationError(ClassMetric):
    """The expected calibration error: Σ_b n_b / n · |accuracy_b − confidence_b|.

    Examples are in bins b by their confidence, the largest probability; a bin contains its upper edge, not its lower one
    (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599). Targets are as in `Accuracy`; outputs are logits `(n, classes)`.

    Args:
        bins: number of bins, of equal width.

    >>> outputs = jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2]]))
    >>> prediction = fm.Prediction(None, outputs, fm.Labeled(None, jnp.array([0, 1])))
    >>> print(round(float(fm.metrics(fm.metric_types.CalibrationError(), prediction).compute()), 3))  # 80 % confident, 50 % correct
    0.3
    """

    bins: int = static(minimum=1, default=15)


class Perplexity(Metric):
    """The exponential of the mean cross-entropy in nats.

    Outputs are logits `(n, classes)` with integer labels `(n,)` or probabilities `(n, classes)`; or `(n, …, classes)` with
    integer labels `(n, …)`, such as the tokens of texts, which have equal weights.

    >>> prediction = fm.Prediction(None, jnp.zeros((2, 8)), fm.Labeled(None, jnp.array([0, 3])))
    >>> print(round(float(fm.metrics(fm.metric_types.Perplexity(), prediction).compute()), 3))
    8.0
    """

    per_example: ClassVar[bool] = True


class BitsPerCharacter(Metric):
    """The mean cross-entropy in bits, −log₂ softmax(z)_y: the bits per character if each token is a character or a byte.

    Outputs and targets are as in `Perplexity`, which is 2 to the power of this.

    >>> prediction = fm.Prediction(None, jnp.zeros((2, 8)), fm.Labeled(None, jnp.array([0, 3])))
    >>> print(round(float(fm.metrics(fm.metric_types.BitsPerCharacter(), prediction).compute()), 3))
    3.0
    """

    per_example: ClassVar[bool] = True


class Gaps(Mergeable):
    """The sums of a `CalibrationError`."""

    gaps: jax.Array  # (bins,), of confidence − correctness
    weight: jax.Array

    def compute(self) -> Any:
        return ratio(abs(self.gaps).sum(), self.weight)


class ExponentialMean(Mean):
    """The exponential of a mean."""

    def compute(self) -> Any:
        mean = ratio(self.total, self.weight)
        with np.errstate(over="ignore"):
            return numpy_of(mean).exp(mean)


@dispatch
def metrics(metric: CalibrationError, prediction):
    y = labels_of(prediction, metric)
    probabilities = jax.nn.softmax(at_least_float32(prediction.outputs))
    confidence = probabilities.max(1)
    gap = confidence - (probabilities.argmax(1) == y.astype(int)).astype(confidence.dtype)
    inner_edges = jnp.asarray(np.linspace(0, 1, metric.bins + 1)[1:-1], confidence.dtype)
    bin_of = jnp.searchsorted(inner_edges, confidence, side="left")
    inside = jax.nn.one_hot(bin_of, metric.bins, dtype=gap.dtype)
    weight = weights(prediction, len(gap), gap.dtype)
    return Gaps(weighted_sum(inside * gap[:, None], weight), weight.sum())


@dispatch
def metrics(metric: Perplexity, prediction):
    mean = Mean(*_nats(metric, prediction))
    return ExponentialMean(mean.total, mean.weight)


@dispatch
def metrics(metric: BitsPerCharacter, prediction):
    value, weight = _nats(metric, prediction)
    return Mean(value / np.log(2).astype(value.dtype), weight)


def _nats(metric: Metric, prediction: Prediction) -> tuple[jax.Array, Any]:
    """The cross-entropy of each example, and its weight or None."""
    flat = _flat(prediction)
    y, labels = class_targets(flat, metric)
    logits = at_least_float32(flat.outputs)
    if labels:
        value = jax.nn.logsumexp(logits, axis=1) - at_labels(logits, y)
    else:
        value = optax.softmax_cross_entropy(logits, y.astype(logits.dtype))
    return value, weight_of(flat)


def _flat(prediction: Prediction) -> Prediction:
    """Merges the axes between the first and the classes with the first."""
    outputs: Any = prediction.outputs
    y, weight, shape = getattr(prediction.batch, "y", None), weight_of(prediction), getattr(outputs, "shape", ())
    if y is None or len(shape) < 3 or y.shape != shape[:-1]:
        return prediction
    n = int(np.prod(shape[:-1]))
    weight = None if weight is None else jnp.repeat(jnp.asarray(weight), n // shape[0])
    y = y.reshape(n)
    return Prediction(prediction.model, reshaped(outputs, n, shape[-1]), Labeled(y, y, weight=weight))


@dispatch
def validate(metric: Perplexity | BitsPerCharacter, prediction):
    check_classes(_flat(prediction), metric)

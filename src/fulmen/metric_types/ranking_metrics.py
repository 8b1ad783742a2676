"""Metrics of the order in which examples are ranked, whatever the threshold: `AUROC` and `AveragePrecision`."""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fulmen.core import Mergeable, Prediction, at_least_float32, check_binary, check_classes, static
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.binary_outputs import binary_targets, has_one_output
from fulmen.metric_types.metric import Metric, labels_of, numpy_of, ratio, weights


class Histograms(Mergeable):
    """The weight of examples by label and by interval of the output, for each value of the target: `(k, bins)`."""

    positive: jax.Array
    negative: jax.Array
    average: str | None = static()

    def each(self, positive: Any, negative: Any) -> Any:
        """The metric of each label, from histograms in descending order of the outputs, `(…, bins)`."""
        raise NotImplementedError

    def compute(self) -> Any:
        positive, negative = self.positive[..., ::-1], self.negative[..., ::-1]
        if self.average == "micro":
            return self.each(positive.sum(0), negative.sum(0))
        each = self.each(positive, negative)
        if self.average is None:
            return each
        xp = numpy_of(each)
        known = ~xp.isnan(each)
        return ratio(xp.where(known, each, 0).sum(), known.astype(each.dtype).sum())


class RankedPairs(Histograms):
    """The sums of an `AUROC`."""

    def each(self, positive: Any, negative: Any) -> Any:
        below = negative.sum(-1, keepdims=True) - negative.cumsum(-1)
        right = (positive * (below + negative / 2)).sum(-1)
        return ratio(right, positive.sum(-1) * negative.sum(-1))


class PrecisionByRecall(Histograms):
    """The sums of an `AveragePrecision`."""

    def each(self, positive: Any, negative: Any) -> Any:
        found = positive.cumsum(-1)
        precision = ratio(found, found + negative.cumsum(-1))
        return ratio((positive * numpy_of(found).where(positive > 0, precision, 0)).sum(-1), positive.sum(-1))


class RankingMetric(Metric):
    """A metric of how the outputs rank the examples, by histograms of the outputs for both values of a target."""

    per_example: ClassVar[bool] = True
    sums: ClassVar[type[Histograms]]

    average: Literal["macro", "micro"] | None = "macro"
    bins: int = static(minimum=2, default=2000, kw_only=True)


class AUROC(RankingMetric):
    """The area under the ROC curve: the probability that an example with target 1 has a larger output than one with target 0.

    Equal outputs count one half. Outputs are logits of binary targets, `(n,)` or `(n, 1)`, or of k independent labels, `(n, k)`, with
    targets of the same shape, 0 or 1. With integer labels `(n,)`, outputs `(n, classes)` are logits of a softmax: each class is
    compared with all others, by its probability; of two classes, 1 is compared with 0.

    It adds up over batches, since it keeps histograms: outputs z in the same of `bins` intervals of z / (1 + |z|) count as equal, which
    changes the result by at most half the share of pairs that are in one interval. For 1000 examples the change was below 0.0002 in
    60 simulations. A NaN counts as wrong. The exact value is `sklearn.metrics.roc_auc_score(y, fm.predict(state, x))`.

    Args:
        average: over labels or classes: `"macro"`, their mean; `"micro"`, all pairs of an example and a label are ranked together;
            None, one number for each, `(k,)`. A label that all examples or none have is NaN, and left out of the mean.
        bins: number of intervals.

    >>> outputs, y = jnp.array([-2.0, 0.5, 0.1, 3.0]), jnp.array([0, 0, 1, 1])
    >>> print(fm.metrics(fm.metric_types.AUROC(), fm.Prediction(None, outputs, fm.Labeled(None, y))).compute())
    0.75
    """

    sums = RankedPairs


class AveragePrecision(RankingMetric):
    """The area under the precision–recall curve, as a sum over thresholds: Σ (Rᵢ − Rᵢ₋₁) Pᵢ, as scikit-learn defines it.

    Outputs, targets and histograms are as in `AUROC`. It depends more on the intervals, by up to 0.003 for 1000 examples; the exact
    value is `sklearn.metrics.average_precision_score(y, fm.predict(state, x))`.

    Args:
        average, bins: as in `AUROC`; a label that no example has is NaN.

    >>> outputs, y = jnp.array([-2.0, 0.5, 0.1, 3.0]), jnp.array([0, 0, 1, 1])
    >>> print(fm.metrics(fm.metric_types.AveragePrecision(), fm.Prediction(None, outputs, fm.Labeled(None, y))).compute().round(4))
    0.8333
    """

    sums = PrecisionByRecall


def _scores(metric: RankingMetric, prediction: Prediction) -> tuple[jax.Array, jax.Array]:
    """Outputs that rank the examples, and whether the targets are 1, both `(n, k)`."""
    if not _is_softmax(prediction):
        return binary_targets(prediction, metric)
    y, logits = labels_of(prediction, metric), at_least_float32(prediction.outputs)
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1], y[:, None] == 1
    # log p − log (1 − p) ranks as the probability p does, and its histogram has more intervals near 0 and 1.
    logs = jax.nn.log_softmax(logits)
    return logs - jnp.log(-jnp.expm1(logs)), y[:, None] == jnp.arange(logits.shape[1], dtype=y.dtype)[None]


def _is_softmax(prediction: Prediction) -> bool:
    y = getattr(prediction.batch, "y", None)
    return not has_one_output(prediction) and len(getattr(y, "shape", ())) == 1


@dispatch
def metrics(metric: RankingMetric, prediction):
    scores, actual = _scores(metric, prediction)
    wrong = jnp.where(actual, -jnp.inf, jnp.inf).astype(scores.dtype)
    scores = jnp.where(jnp.isnan(scores), wrong, scores)
    size = jnp.abs(scores)
    unit = jnp.where(jnp.isinf(size), jnp.sign(scores), scores / (1 + size))  # from -1 to 1, with long tails
    interval = jnp.clip((unit + 1) / 2 * metric.bins, 0, metric.bins - 1).astype(jnp.int32)
    n, k = scores.shape
    weight = weights(prediction, n)[:, None]
    empty = jnp.zeros((k, metric.bins))
    label = jnp.broadcast_to(jnp.arange(k)[None], (n, k))
    positive, negative = (empty.at[label, interval].add(jnp.where(of, weight, 0)) for of in (actual, ~actual))
    return metric.sums(positive, negative, average=metric.average)


@dispatch
def validate(metric: RankingMetric, prediction):
    (check_classes if _is_softmax(prediction) else check_binary)(prediction, metric)

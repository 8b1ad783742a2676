"""Metrics of regression: targets are numbers, of the shape of the outputs."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Mean, Mergeable, at_least_float32, concrete, number, number_targets
from fulmen.core.verbs import metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import Metric, numpy_of, ratio, weight_of, weighted_sum, weights

_FARTHEST = 100.0  # standard deviations from `center` to the targets, for which single precision is accurate enough


class NumberMetric(Metric):
    """A metric of outputs z and targets y of one shape."""

    per_example: ClassVar[bool] = True


class MeanAbsoluteError(NumberMetric):
    """The absolute error |z − y| of outputs z and targets y of one shape, averaged over all axes."""


class RMSE(NumberMetric):
    """The root mean squared error, √(mean (z − y)²), of outputs z and targets y of one shape, over all axes.

    >>> prediction = fm.Prediction(None, jnp.array([0.0, 0.0]), fm.Labeled(None, jnp.array([3.0, 4.0])))
    >>> print(round(float(fm.metrics(fm.metric_types.RMSE(), prediction).compute()), 4))
    3.5355
    """


class R2(NumberMetric):
    """The coefficient of determination, 1 − Σ (y − z)² / Σ (y − ȳ)²: the share of the targets' variance that is explained.

    Outputs z and targets y have one shape; for several outputs it is the mean over them. It is 1 at best, 0 for a constant
    output ȳ, and NaN if all targets are equal, or farther from `center` than 100 standard deviations.

    Args:
        center: a number near the targets' mean, in their unit. It does not change the result, but improves its precision: the
            sums of y − center are in single precision.

    >>> prediction = fm.Prediction(None, jnp.array([1.0, 2.0, 2.0]), fm.Labeled(None, jnp.array([1.0, 2.0, 3.0])))
    >>> print(fm.metrics(fm.metric_types.R2(), prediction).compute())
    0.5
    """

    center: float = 0.0


class RootMean(Mean):
    """The root of a mean."""

    def compute(self) -> Any:
        mean = ratio(self.total, self.weight)
        return numpy_of(mean).sqrt(mean)


class Explained(Mergeable):
    """The sums of an `R2`, one per output."""

    residual: jax.Array  # of the squared errors
    total: jax.Array  # of the targets minus `center`
    squares: jax.Array  # of their squares
    weight: jax.Array

    def compute(self) -> Any:
        xp = numpy_of(self.residual)
        spread = self.squares - ratio(self.total, self.weight) * self.total
        constant = spread <= self.squares / _FARTHEST**2
        return (1 - ratio(self.residual, xp.where(constant, 0.0, spread))).mean()


@dispatch
def metrics(metric: MeanAbsoluteError, prediction):
    errors = jnp.abs(_errors(metric, prediction)[0])
    return Mean(errors.mean(tuple(range(1, errors.ndim))), weight_of(prediction))


@dispatch
def metrics(metric: RMSE, prediction):
    squares = _errors(metric, prediction)[0] ** 2
    mean = Mean(squares.mean(tuple(range(1, squares.ndim))), weight_of(prediction))
    return RootMean(mean.total, mean.weight)


@dispatch
def metrics(metric: R2, prediction):
    errors, y = _errors(metric, prediction)
    y = y - jnp.asarray(metric.center).astype(y.dtype)
    weight = weights(prediction, len(y), y.dtype)
    residual, total, squares = (weighted_sum(v, weight) for v in (errors**2, y, y**2))
    return Explained(residual, total, squares, weight.sum())


def _errors(metric: Metric, prediction: Any) -> tuple[jax.Array, jax.Array]:
    """The errors, and the targets in the same type."""
    y = number_targets(prediction, metric)
    outputs = at_least_float32(prediction.outputs)
    y = jnp.asarray(y).astype(outputs.dtype)
    return outputs - y, y


@dispatch
def validate(metric: NumberMetric, prediction):
    number_targets(prediction, metric)


@dispatch
def validate(metric: R2, prediction):
    y, center = concrete(number_targets(prediction, metric)), concrete(metric.center)
    if y is None or center is None or not y.size:
        return
    mean, spread = y.mean(0, dtype=np.float64), y.std(0, dtype=np.float64)
    far = (spread > 0) & (np.abs(mean - center) > _FARTHEST / 4 * spread)
    if far.any():
        where = np.unravel_index(np.argmax(far), far.shape)
        mean, spread = np.asarray(mean)[where], np.asarray(spread)[where]
        raise ValueError(
            f"R2.center must be near the targets' mean, got {number(metric.center)}; the mean is {mean:.6g}, the standard deviation "
            f"{spread:.3g}. Write fm.metric_types.R2(center={mean:.3g}), or subtract the mean from the targets."
        )

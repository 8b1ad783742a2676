"""Objectives of classification: targets are classes, or probabilities of them."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core.fields import hyper
from fulmen.core.naming import concrete
from fulmen.core.prediction import at_least_float32, check_classes, class_targets, number_targets, targets
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective

__all__ = ["KL", "BinaryCrossEntropy", "Brier", "CrossEntropy", "Hinge"]


class CrossEntropy(Objective):
    """The cross-entropy of a softmax over classes, in nats, one per example: −Σ_c w_c y_c log softmax(z)_c.

    Targets are integer labels `(n,)` or probabilities `(n, classes)`; outputs are logits z, `(n, classes)`.

    Args:
        smoothing: how much of each target is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016,
            arXiv:1512.00567): y becomes (1 − s) y + s / classes. As a number it may change without recompiling; None leaves
            it out of the program.
        class_weights: w, `(classes,)`, how much each class counts: a hyperparameter; None counts all as 1. The loss of a
            batch stays the mean over its examples and is not divided by the sum of their classes' weights, so that it does
            not depend on how the data is cut into batches. Weights n / (classes · n_c) keep its size.

    >>> prediction = fm.Prediction(None, jnp.zeros((2, 4)), fm.Labeled(None, jnp.array([0, 3])))
    >>> print(fm.loss(fm.CrossEntropy(), prediction))
    [1.3862944 1.3862944]
    """

    per_example: ClassVar[bool] = True

    smoothing: float | None = hyper(minimum=0, below=1, default=None)
    class_weights: jax.Array | None = hyper(minimum=0, default=None)


class BinaryCrossEntropy(Objective):
    """The cross-entropy of independent yes-or-no questions, in nats, averaged over all but the first axis.

    −[p y log σ(z) + (1 − y) log(1 − σ(z))], one number per example. Outputs are logits z, `(n,)` or `(n, k)`; targets y have
    their shape and are 0 or 1, or probabilities.

    Args:
        positive_weight: p, how much a yes counts against a no: a hyperparameter; None is 1.

    >>> prediction = fm.Prediction(None, jnp.zeros(2), fm.Labeled(None, jnp.array([0, 1])))
    >>> print(fm.loss(fm.BinaryCrossEntropy(), prediction))
    [0.6931472 0.6931472]
    """

    per_example: ClassVar[bool] = True

    positive_weight: float | None = hyper(above=0, default=None)


class KL(Objective):
    """The Kullback–Leibler divergence from the outputs to target probabilities, in nats: Σ_c y_c (log y_c − log softmax(z)_c).

    Targets y are probabilities `(n, classes)`, where 0 log 0 = 0; outputs are logits z, `(n, classes)`. It is the
    cross-entropy less the entropy of the targets: 0 where both agree, with the same gradient.

    >>> probabilities = jnp.array([[0.5, 0.5]])
    >>> print(fm.loss(fm.objectives.KL(), fm.Prediction(None, jnp.log(probabilities), fm.Labeled(None, probabilities))))
    [0.]
    """

    per_example: ClassVar[bool] = True


class Brier(Objective):
    """The squared distance of the outputs' probabilities from the targets: Σ_c (softmax(z)_c − y_c)², one per example.

    Targets are integer labels `(n,)` or probabilities `(n, classes)`; outputs are logits z, `(n, classes)`. Brier 1950.

    >>> prediction = fm.Prediction(None, jnp.zeros((1, 2)), fm.Labeled(None, jnp.array([1])))
    >>> print(fm.loss(fm.objectives.Brier(), prediction))
    [0.5]
    """

    per_example: ClassVar[bool] = True


class Hinge(Objective):
    """How much a margin of 1 is missed by.

    Of several classes: max(0, 1 + max_{c≠y} z_c − z_y), for scores z `(n, classes)` and integer labels y `(n,)` (Crammer and
    Singer 2001). Of two: max(0, 1 − y z), for scores z `(n,)` and targets y of −1 and 1, `(n,)`.

    >>> print(fm.loss(fm.objectives.Hinge(), fm.Prediction(None, jnp.array([2.0, 0.5]), fm.Labeled(None, jnp.array([1, -1])))))
    [0.  1.5]
    """

    per_example: ClassVar[bool] = True


@dispatch
def loss(objective: CrossEntropy, prediction):
    y, labels = class_targets(prediction, objective)
    logits, smoothing = at_least_float32(prediction.outputs), objective.smoothing
    weights = None if objective.class_weights is None else _class_weights(objective, logits)
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing).astype(logits.dtype)
    if not labels:
        y = y.astype(logits.dtype)
        if smoothing is not None:
            y = (1 - smoothing) * y + smoothing / y.shape[1]
        return optax.softmax_cross_entropy(logits, y if weights is None else y * weights[None])
    value = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    if weights is not None:
        value = weights[y] * value
    if smoothing is None:
        return value
    if weights is not None:
        even = optax.softmax_cross_entropy(logits, jnp.broadcast_to(weights[None] / weights.size, logits.shape))
        return (1 - smoothing) * value + _scaled(smoothing, even)
    # The even part has cross-entropy log Σ exp z − mean z, so the two differ by z_y − mean z.
    own = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return value + _scaled(smoothing, own - logits.mean(1))


def _scaled(number: jax.Array, values: jax.Array) -> jax.Array:
    """The product, and 0 for the number 0: a class excluded by a logit of −inf has an infinite even part."""
    return number * jnp.where(number == 0, 0, values)


def _class_weights(objective: CrossEntropy, logits: jax.Array) -> jax.Array:
    weights = jnp.asarray(objective.class_weights)
    _check_class_weights_shape(weights.shape, logits.shape[1])
    return weights.astype(logits.dtype)


def _check_class_weights_shape(shape: tuple[int, ...], classes: int) -> None:
    if shape != (classes,):
        raise ValueError(
            f"CrossEntropy, class_weights: one number per class, ({classes},), was expected, and an array of shape {shape} came."
        )


@dispatch
def validate(objective: CrossEntropy, prediction):
    check_classes(prediction, objective)
    if objective.class_weights is not None:
        _check_class_weights_shape(np.shape(objective.class_weights), prediction.outputs.shape[1])


@dispatch
def loss(objective: BinaryCrossEntropy, prediction):
    y = number_targets(prediction, objective)
    logits = at_least_float32(prediction.outputs)
    y = jnp.asarray(y).astype(logits.dtype)
    # −log σ(z) is softplus(−z).
    yes = jax.nn.softplus(-logits)
    if objective.positive_weight is not None:
        yes = jnp.asarray(objective.positive_weight).astype(logits.dtype) * yes
    value = y * yes + (1 - y) * jax.nn.softplus(logits)
    return value.mean(tuple(range(1, value.ndim)))


@dispatch
def validate(objective: BinaryCrossEntropy, prediction):
    y = concrete(number_targets(prediction, objective))
    if y is None or not y.size:
        return
    low, high = float(y.min()), float(y.max())
    if not (low >= 0 and high <= 1):
        hint = " Labels of −1 and 1: (y + 1) / 2." if (low, high) == (-1, 1) else ""
        raise ValueError(
            f"BinaryCrossEntropy, y: numbers from 0 to 1 were expected, and numbers from {low:.4g} to {high:.4g} came.{hint}"
        )


@dispatch
def loss(objective: KL, prediction):
    y = _probabilities(objective, prediction)
    logits = at_least_float32(prediction.outputs)
    y = y.astype(logits.dtype)
    entropy = -(y * jnp.log(jnp.where(y > 0, y, 1))).sum(1)
    return optax.softmax_cross_entropy(logits, y) - entropy


def _probabilities(objective: KL, prediction):
    y, labels = class_targets(prediction, objective)
    if labels:
        raise TypeError(
            f"KL, y: probabilities of shape {tuple(prediction.outputs.shape)} were expected, and integer labels came: for labels "
            "it is CrossEntropy()."
        )
    return y


@dispatch
def validate(objective: KL, prediction):
    _probabilities(objective, prediction)
    check_classes(prediction, objective)


@dispatch
def loss(objective: Brier, prediction):
    y, labels = class_targets(prediction, objective)
    p = jax.nn.softmax(at_least_float32(prediction.outputs))
    y = jax.nn.one_hot(y, p.shape[1], dtype=p.dtype) if labels else jnp.asarray(y).astype(p.dtype)
    return ((p - y) ** 2).sum(1)


@dispatch
def validate(objective: Brier, prediction):
    check_classes(prediction, objective)


@dispatch
def loss(objective: Hinge, prediction):
    if _of_two(prediction):
        y = number_targets(prediction, objective)
        scores = at_least_float32(prediction.outputs)
        return jax.nn.relu(1 - jnp.asarray(y).astype(scores.dtype) * scores)
    y = _labels(objective, prediction)
    scores = at_least_float32(prediction.outputs)
    own = jax.nn.one_hot(y, scores.shape[1], dtype=bool)
    best = jnp.where(own, -jnp.inf, scores).max(1)
    return jax.nn.relu(1 + best - jnp.take_along_axis(scores, jnp.asarray(y)[:, None], axis=1)[:, 0])


def _of_two(prediction) -> bool:
    return len(getattr(prediction.outputs, "shape", ())) == 1


def _labels(objective: Hinge, prediction):
    y, labels = class_targets(prediction, objective)
    if not labels:
        raise TypeError("Hinge, y: integer labels were expected, and probabilities came: y.argmax(1).")
    return y


@dispatch
def validate(objective: Hinge, prediction):
    if not _of_two(prediction):
        _labels(objective, prediction)
        return
    number_targets(prediction, objective)
    y = concrete(targets(prediction, objective))
    if y is not None and not np.isin(y, (-1, 1)).all():
        hint = " Labels of 0 and 1: 2 * y - 1." if np.isin(y, (0, 1)).all() else ""
        raise ValueError(
            f"Hinge, y: −1 and 1 were expected, since there is one output per example, and {np.unique(y)[:5]} came.{hint}"
        )

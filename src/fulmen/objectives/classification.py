"""Objectives of classification: targets are classes or probabilities."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import concrete, hyper
from fulmen.core.prediction import at_labels, at_least_float32, check_classes, class_targets, number_targets, targets
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective
from fulmen.objectives.number_objectives import NumberObjective, mean_per_example


class ClassObjective(Objective):
    """An objective of logits or scores `(n, classes)`, one number per example.

    Targets are integer labels `(n,)` or probabilities `(n, classes)`.
    """

    per_example: ClassVar[bool] = True


@dispatch
def validate(objective: ClassObjective, prediction):
    check_classes(prediction, objective)


class CrossEntropy(ClassObjective):
    """The cross-entropy of a softmax over classes, in nats, one per example: −Σ_c w_c y_c log softmax(z)_c.

    Targets are integer labels `(n,)` or probabilities `(n, classes)`; outputs are logits z, `(n, classes)`.

    Args:
        smoothing: s, the share of each target that is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016,
            arXiv:1512.00567): y becomes (1 − s) y + s / classes. A hyperparameter; None leaves it out of the program.
        class_weights: w, `(classes,)`, the weight of each class: a hyperparameter; None weighs all by 1. The loss of a batch
            is the mean over its examples, not divided by the sum of their classes' weights, so it does not depend on how the
            data is split into batches. Weights n / (classes · n_c) keep its scale.

    >>> prediction = fm.Prediction(None, jnp.zeros((2, 4)), fm.Labeled(None, jnp.array([0, 3])))
    >>> print(fm.loss(fm.CrossEntropy(), prediction))
    [1.3862944 1.3862944]
    """

    smoothing: float | None = hyper(minimum=0, below=1, default=None)
    class_weights: jax.Array | None = hyper(minimum=0, default=None)


class BinaryCrossEntropy(NumberObjective):
    """The cross-entropy of independent binary targets, in nats, averaged over all but the first axis.

    −[p y log σ(z) + (1 − y) log(1 − σ(z))], one number per example. Outputs are logits z, `(n,)` or `(n, k)`; targets y have
    the same shape and are 0 or 1, or probabilities.

    Args:
        positive_weight: p, the weight of a target of 1 relative to 0, a number or one for each label, `(k,)`: a hyperparameter;
            None is 1.

    >>> prediction = fm.Prediction(None, jnp.zeros(2), fm.Labeled(None, jnp.array([0, 1])))
    >>> print(fm.loss(fm.BinaryCrossEntropy(), prediction))
    [0.6931472 0.6931472]
    """

    binary: ClassVar[bool] = True

    positive_weight: float | jax.Array | None = hyper(above=0, default=None)


class KL(ClassObjective):
    """The Kullback–Leibler divergence from the outputs to target probabilities, in nats: Σ_c y_c (log y_c − log softmax(z)_c).

    Targets y are probabilities `(n, classes)`, where 0 log 0 = 0; outputs are logits z, `(n, classes)`. It is the
    cross-entropy minus the entropy of the targets: 0 where both agree, with the same gradient.

    >>> probabilities = jnp.array([[0.5, 0.5]])
    >>> print(fm.loss(fm.objectives.KL(), fm.Prediction(None, jnp.log(probabilities), fm.Labeled(None, probabilities))))
    [0.]
    """


class Brier(ClassObjective):
    """The squared distance between predicted probabilities and targets: Σ_c (softmax(z)_c − y_c)², one per example.

    Targets are integer labels `(n,)` or probabilities `(n, classes)`; outputs are logits z, `(n, classes)`. Brier 1950.

    >>> prediction = fm.Prediction(None, jnp.zeros((1, 2)), fm.Labeled(None, jnp.array([1])))
    >>> print(fm.loss(fm.objectives.Brier(), prediction))
    [0.5]
    """


class Hinge(ClassObjective):
    """The hinge loss, which is 0 for a margin of at least 1.

    For several classes: max(0, 1 + max_{c≠y} z_c − z_y), for scores z `(n, classes)` and integer labels y `(n,)` (Crammer and
    Singer 2001). For two: max(0, 1 − y z), for scores z `(n,)` and targets y of −1 and 1, `(n,)`.

    >>> print(fm.loss(fm.objectives.Hinge(), fm.Prediction(None, jnp.array([2.0, 0.5]), fm.Labeled(None, jnp.array([1, -1])))))
    [0.  1.5]
    """


@dispatch
def loss(objective: CrossEntropy, prediction):
    y, labels = class_targets(prediction, objective)
    logits, smoothing = at_least_float32(prediction.outputs), objective.smoothing
    weights = _class_weights(objective, logits)
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing).astype(logits.dtype)
    if not labels:
        y = y.astype(logits.dtype)
        if smoothing is not None:
            y = (1 - smoothing) * y + smoothing / y.shape[1]
        return optax.softmax_cross_entropy(logits, y if weights is None else y * weights[None])
    true = at_labels(logits, y)
    value = jax.nn.logsumexp(logits, axis=1) - true
    if weights is not None:
        value = weights[y] * value
    if smoothing is None:
        return value
    if weights is not None:
        uniform = optax.softmax_cross_entropy(logits, jnp.broadcast_to(weights[None] / weights.size, logits.shape))
        return (1 - smoothing) * value + _scaled(smoothing, uniform)
    # Uniform targets have cross-entropy log Σ exp z − mean z, which differs from that of y by z_y − mean z.
    return value + _scaled(smoothing, true - logits.mean(1))


def _scaled(number: jax.Array, values: jax.Array) -> jax.Array:
    """The product, but 0 for the number 0: values are infinite if a class is excluded by a logit of −inf."""
    return number * jnp.where(number == 0, 0, values)


def _class_weights(objective: CrossEntropy, logits: Any) -> jax.Array | None:
    weights, classes = objective.class_weights, logits.shape[1]
    if weights is None:
        return None
    if np.shape(weights) != (classes,):
        raise ValueError(
            f"CrossEntropy.class_weights must have one number per class, ({classes},), got shape {np.shape(weights)}."
        )
    return jnp.asarray(weights).astype(logits.dtype)


@dispatch
def validate(objective: CrossEntropy, prediction):
    check_classes(prediction, objective)
    _class_weights(objective, prediction.outputs)


@dispatch
def loss(objective: BinaryCrossEntropy, prediction):
    y = number_targets(prediction, objective)
    logits = at_least_float32(prediction.outputs)
    y = jnp.asarray(y).astype(logits.dtype)
    # −log σ(z) is softplus(−z).
    positive = jax.nn.softplus(-logits)
    if objective.positive_weight is not None:
        weight = jnp.asarray(objective.positive_weight).astype(logits.dtype)
        positive = weight.reshape((1,) * (logits.ndim - weight.ndim) + weight.shape) * positive
    return mean_per_example(y * positive + (1 - y) * jax.nn.softplus(logits))


@dispatch
def validate(objective: BinaryCrossEntropy, prediction):
    y, labels = concrete(number_targets(prediction, objective)), prediction.outputs.shape[1:]
    weight: Any = objective.positive_weight
    if np.shape(weight) not in ((), labels):
        raise ValueError(
            f"BinaryCrossEntropy.positive_weight must be a number or have one for each label, {labels}, got shape "
            f"{np.shape(weight)}."
        )
    if y is None or not y.size:
        return
    low, high = float(y.min()), float(y.max())
    if not (low >= 0 and high <= 1):
        hint = " Convert labels of −1 and 1: (y + 1) / 2." if (low, high) == (-1, 1) else ""
        raise ValueError(f"BinaryCrossEntropy: y must be from 0 to 1, got numbers from {low:.4g} to {high:.4g}.{hint}")


@dispatch
def loss(objective: KL, prediction):
    y = _require_kind(objective, prediction, labels=False)
    logits = at_least_float32(prediction.outputs)
    y = y.astype(logits.dtype)
    entropy = -(y * jnp.log(jnp.where(y > 0, y, 1))).sum(1)
    return optax.softmax_cross_entropy(logits, y) - entropy


def _require_kind(objective: KL | Hinge, prediction: Any, labels: bool) -> Any:
    """The targets, which must be integer labels, or must be probabilities."""
    y, are_labels = class_targets(prediction, objective)
    if are_labels != labels:
        kinds = ["probabilities", "integer labels"]
        instead = "write y.argmax(1)" if labels else "use CrossEntropy()"
        raise TypeError(f"{type(objective).__name__}: y must be {kinds[labels]}, got {kinds[not labels]}: {instead}.")
    return y


@dispatch
def validate(objective: KL, prediction):
    _require_kind(objective, prediction, labels=False)
    check_classes(prediction, objective)


@dispatch
def loss(objective: Brier, prediction):
    y, labels = class_targets(prediction, objective)
    p = jax.nn.softmax(at_least_float32(prediction.outputs))
    y = jax.nn.one_hot(y, p.shape[1], dtype=p.dtype) if labels else jnp.asarray(y).astype(p.dtype)
    return ((p - y) ** 2).sum(1)


@dispatch
def loss(objective: Hinge, prediction):
    if _is_binary(prediction):
        y = number_targets(prediction, objective)
        scores = at_least_float32(prediction.outputs)
        return jax.nn.relu(1 - jnp.asarray(y).astype(scores.dtype) * scores)
    y = _require_kind(objective, prediction, labels=True)
    scores = at_least_float32(prediction.outputs)
    true = jax.nn.one_hot(y, scores.shape[1], dtype=bool)
    best = jnp.where(true, -jnp.inf, scores).max(1)
    return jax.nn.relu(1 + best - at_labels(scores, y))


def _is_binary(prediction) -> bool:
    return len(getattr(prediction.outputs, "shape", ())) == 1


@dispatch
def validate(objective: Hinge, prediction):
    if not _is_binary(prediction):
        _require_kind(objective, prediction, labels=True)
        check_classes(prediction, objective)
        return
    number_targets(prediction, objective)
    y = concrete(targets(prediction, objective))
    if y is not None and not np.isin(y, (-1, 1)).all():
        hint = " Convert labels of 0 and 1: 2 * y - 1." if np.isin(y, (0, 1)).all() else ""
        raise ValueError(f"Hinge: y must be −1 or 1 for one output per example, got {np.unique(y)[:5]}.{hint}")

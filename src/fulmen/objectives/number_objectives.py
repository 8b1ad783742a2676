"""Objectives whose targets are numbers: of regression, and of embeddings that are compared with each other."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import at_least_float32, hyper, number_targets
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective


class NumberObjective(Objective):
    """An objective of outputs z and targets y of one shape: one number per example, averaged over all but the first axis."""

    per_example: ClassVar[bool] = True


class MSE(NumberObjective):
    """The squared error (z − y)² of outputs z and targets y of one shape, averaged over all but the first axis."""


class MAE(NumberObjective):
    """The absolute error |z − y| of outputs z and targets y of one shape, averaged over all but the first axis."""


class Huber(NumberObjective):
    """½ r² where |r| ≤ δ, and δ (|r| − ½ δ) beyond, for r = z − y: averaged over all but the first axis (Huber 1964).

    Outputs z and targets y have one shape.

    Args:
        delta: δ, where the parabola becomes a line: a hyperparameter, in the targets' unit.

    >>> prediction = fm.Prediction(None, jnp.array([0.5, 3.0]), fm.Labeled(None, jnp.zeros(2)))
    >>> print(fm.loss(fm.objectives.Huber(delta=1.0), prediction))
    [0.125 2.5  ]
    """

    delta: float = hyper(above=0, default=1.0)


def _errors(prediction: Any, objective: Objective) -> jax.Array:
    y = number_targets(prediction, objective)
    outputs = at_least_float32(prediction.outputs)
    return outputs - jnp.asarray(y).astype(outputs.dtype)


def mean_per_example(values: jax.Array) -> jax.Array:
    """The mean over all axes but the first."""
    return values.mean(tuple(range(1, values.ndim)))


@dispatch
def loss(objective: MSE, prediction):
    return mean_per_example(_errors(prediction, objective) ** 2)


@dispatch
def loss(objective: MAE, prediction):
    return mean_per_example(jnp.abs(_errors(prediction, objective)))


@dispatch
def loss(objective: Huber, prediction):
    size = jnp.abs(_errors(prediction, objective))
    delta = jnp.asarray(objective.delta).astype(size.dtype)
    near = jnp.minimum(size, delta)
    return mean_per_example(near * (size - near / 2))  # ½ r² where near is |r|


@dispatch
def validate(objective: NumberObjective, prediction):
    number_targets(prediction, objective)


class InfoNCE(Objective):
    """The cross-entropy of matching each z with its y in the batch: −log(exp(cos(z_i, y_i) / τ) / Σ_j exp(cos(z_i, y_j) / τ)).

    Outputs z and targets y are `(n, features)`, the embeddings of two views of each example. One number per example, which
    depends on the others: the loss of a smaller batch is smaller, so the last batch is never padded. Van den Oord, Li and
    Vinyals 2018, arXiv:1807.03748.

    Args:
        temperature: τ, above 0: a hyperparameter.

    >>> prediction = fm.Prediction(None, jnp.eye(2), fm.Labeled(None, jnp.eye(2)))
    >>> print(fm.loss(fm.objectives.InfoNCE(temperature=0.5), prediction).round(4))
    [0.1269 0.1269]
    """

    temperature: float = hyper(above=0, default=0.1)


class NTXent(InfoNCE):
    """`InfoNCE` with the z of the other examples as further negatives: the loss of SimCLR (Chen et al. 2020, arXiv:2002.05709).

    Args:
        temperature: τ, above 0: a hyperparameter.

    >>> prediction = fm.Prediction(None, jnp.eye(2), fm.Labeled(None, jnp.eye(2)))
    >>> print(fm.loss(fm.objectives.NTXent(temperature=0.5), prediction).round(4))
    [0.2395 0.2395]
    """

    temperature: float = 0.5


class CosineDistance(Objective):
    """2 − 2 cos(z, y), the squared distance between the directions of outputs z and targets y, `(n, features)`, per example.

    >>> prediction = fm.Prediction(None, jnp.eye(2), fm.Labeled(None, jnp.ones((2, 2))))
    >>> print(fm.loss(fm.objectives.CosineDistance(), prediction).round(4))
    [0.5858 0.5858]
    """

    per_example: ClassVar[bool] = True


def directions(v: Any) -> jax.Array:
    """Scale each vector along the last axis to length 1; zero vectors stay zero."""
    v = at_least_float32(v)
    # Without this division, squares of long vectors overflow and those of short ones underflow. The direction does not depend
    # on the scale, so no gradient passes through it.
    largest = jax.lax.stop_gradient(jnp.abs(v).max(-1, keepdims=True))
    v = v / jnp.where(largest > 0, largest, 1)
    squares = (v**2).sum(-1, keepdims=True)
    return v * jax.lax.rsqrt(jnp.where(largest > 0, squares, 1))


def _views(objective: Objective, prediction: Any) -> tuple[jax.Array, jax.Array]:
    y = number_targets(prediction, objective)
    if len(y.shape) != 2:
        raise ValueError(f"{type(objective).__name__}: embeddings must be (n, features), got {tuple(y.shape)}.")
    z = directions(prediction.outputs)
    return z, directions(y).astype(z.dtype)


@dispatch
def loss(objective: InfoNCE, prediction):
    z, y = _views(objective, prediction)
    return _cross_entropy(objective, z @ y.T)


@dispatch
def loss(objective: NTXent, prediction):
    z, y = _views(objective, prediction)
    others = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, z @ z.T)
    return _cross_entropy(objective, jnp.concatenate([z @ y.T, others], axis=1))


def _cross_entropy(objective: InfoNCE, similarity: jax.Array) -> jax.Array:
    """Of each row of logits, `similarity / temperature`, with the diagonal as the true class."""
    similarity = similarity / jnp.asarray(objective.temperature).astype(similarity.dtype)
    return jax.nn.logsumexp(similarity, axis=1) - jnp.diagonal(similarity)


@dispatch
def loss(objective: CosineDistance, prediction):
    z, y = _views(objective, prediction)
    return 2 - 2 * (z * y).sum(1)

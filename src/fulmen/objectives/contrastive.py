"""Contrastive objectives: two views of an example, compared with those of the rest of the batch."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import at_least_float32, hyper, number_targets
from fulmen.core.verbs import loss
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective


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

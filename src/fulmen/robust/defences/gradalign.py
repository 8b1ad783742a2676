"""`GradAlign`: the gradients at the input and near it shall point the same way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.example_means import total_loss
from fulmen.core.batch import index, inputs, with_inputs
from fulmen.core.fields import hyper
from fulmen.core.verbs import defence_losses, loss, project, start_point
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Uniform
from fulmen.robust.defences.adversarial import AttackTrained, attack_at

__all__ = ["GradAlign"]


class GradAlign(AttackTrained):
    """Training against an attack, with aligned gradients: loss(x′) + λ (1 − cos(∇ℓ(x), ∇ℓ(x + η))), η uniform in the ball.

    It keeps training against attacks of one step from catastrophic overfitting, and costs a second derivative. An example
    without a gradient counts as aligned. Andriushchenko and Flammarion 2020, arXiv:2007.02617.

    Args:
        system: anything that has a loss.
        attack: the attack, or an `AttackSchedule`; its region is where η is drawn.
        weight: λ.

    >>> from fulmen.robust.defences import GradAlign
    >>> GradAlign(fm.Classifier(fm.models.MLP(64, 32, 10)), fm.FGSM(fm.LinfBall(0.1))).weight
    0.2
    """

    weight: float = hyper(minimum=0, default=0.2)


@dispatch
def defence_losses(defence: GradAlign, batch):
    clean = batch.clean
    region, mode = attack_at(defence.attack, defence.mode).region, defence.mode
    key = None if mode is None else mode.at("alignment").key
    if key is None:
        raise ValueError("GradAlign draws points near the inputs, so it needs a mode with a key, such as fm.Train(key).")

    def near(number: int, x: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, number), i))(index(clean))
        return project(region, jax.vmap(lambda x, key: start_point(Uniform(), region, x, key))(x, keys), x)

    slopes = jax.grad(lambda x: total_loss(defence.system, with_inputs(clean, x)))
    flat, structure = jax.tree.flatten(inputs(clean))
    there = structure.unflatten([near(number, jnp.asarray(x)) for number, x in enumerate(flat)])
    aligned = _cosine(slopes(inputs(clean)), slopes(there))
    return {
        "robust": loss(defence.system, batch.batch),
        "alignment": jnp.asarray(defence.weight).astype(aligned.dtype) * (1 - aligned),
    }


def _cosine(a: Any, b: Any) -> jax.Array:
    """Of the angle between each example's two gradients, `(n,)`; 1 where one of them is 0."""

    def dot(a: Any, b: Any) -> jax.Array:
        products = [
            jnp.sum((u * v).reshape(len(u), -1), 1) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        ]
        return sum(products[1:], products[0])

    # Losses are means over the batch, so their squares may be too small for the type: scaled first.
    a, b = (jax.tree.map(lambda v, size=_largest(g): v / size.reshape(-1, *[1] * (v.ndim - 1)), g) for g in (a, b))
    squares = dot(a, a) * dot(b, b)
    there = squares > 0
    return jnp.where(there, dot(a, b) / jnp.sqrt(jnp.where(there, squares, 1)), 1)


def _largest(slopes: Any) -> jax.Array:
    """Each example's largest coordinate, `(n,)`, or 1 where all are 0."""
    sizes = [jnp.abs(jax.lax.stop_gradient(v)).reshape(len(v), -1).max(1) for v in jax.tree.leaves(slopes)]
    largest = jnp.stack(sizes).max(0)
    return jnp.where(largest > 0, largest, 1)

"""`VAT`: probabilities that stay as they are in the direction in which they would change most; needs no labels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import Defence, logits, validate_logits
from fulmen.compose.example_keys import example_keys
from fulmen.core.batch import inputs, is_unlabeled, with_inputs
from fulmen.core.component import still
from fulmen.core.fields import hyper, static
from fulmen.core.mode import Train
from fulmen.core.verbs import defence_losses, loss, metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.defences.divergence import total_divergence

__all__ = ["VAT"]


class VAT(Defence):
    """Virtual adversarial training: loss(x) + α KL(p(x) ‖ p(x + r)), with p(x) held fixed.

    r has length ε and, nearly, the direction in which the divergence grows fastest, found by power iteration: from a random
    direction d, the gradient of KL(p(x) ‖ p(x + ξ d)) with respect to d, which is then the next d. On an `Unlabeled` batch the
    divergence is the whole loss, so a loop over labelled and unlabelled batches is semi-supervised training. In an evaluation
    of labelled batches it is the system. Miyato et al. 2018, arXiv:1704.03976.

    Args:
        system: one with a classifier in it, at any depth.
        eps: ε, the length of r for an example, in the input's units (Euclidean).
        weight: α.
        steps: how many power iterations.
        xi: ξ, how far the divergence is looked at; smaller is more exact until float32 rounds it away.

    >>> from fulmen.robust.defences import VAT
    >>> state = fm.setup(VAT(fm.Classifier(fm.models.MLP(4, 8, 3)), eps=0.5), (jnp.ones((6, 4)), jnp.arange(6) % 3),
    ...                  optimizer=optax.sgd, lr=0.1)
    >>> state, logs = fm.train_step(state, jnp.zeros((6, 4)))    # unlabelled
    >>> sorted(logs)
    ['loss', 'lr']
    """

    eps: float = hyper(minimum=0)
    weight: float = hyper(minimum=0, default=1.0)
    steps: int = static(minimum=1, default=1, kw_only=True)
    xi: float = hyper(above=0, default=0.001)

    def defends(self, batch: Any) -> bool:
        return isinstance(self.mode, Train) or is_unlabeled(batch)


@dispatch
def defence_losses(vat: VAT, batch):
    reference = still(logits(vat, vat.system, batch))
    x = jax.tree.map(jnp.asarray, inputs(batch))

    def moved(r: Any) -> jax.Array:
        there = with_inputs(batch, jax.tree.map(jnp.add, x, r))
        return total_divergence(reference, logits(vat, vat.system, there))

    direction = _unit(_drawn(vat, batch, x))
    for _ in range(vat.steps):
        slope = jax.grad(lambda d: moved(_times(vat.xi, d)).sum())(direction)
        direction = _unit(still(slope))
    virtual = moved(_times(vat.eps, direction))
    virtual = jnp.asarray(vat.weight).astype(virtual.dtype) * virtual
    return {"virtual": virtual} if is_unlabeled(batch) else {"labelled": loss(vat.system, batch), "virtual": virtual}


def _drawn(vat: VAT, batch: Any, x: Any) -> Any:
    """A normal direction for each example, drawn by its own key."""
    keys = example_keys(vat, batch, "direction")
    flat, structure = jax.tree.flatten(x)
    draw = lambda number, v: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), v.shape[1:], v.dtype))(
        keys
    )
    return structure.unflatten([draw(number, v) for number, v in enumerate(flat)])


def _times(factor: Any, tree: Any) -> Any:
    return jax.tree.map(lambda v: jnp.asarray(factor).astype(v.dtype) * v, tree)


def _unit(tree: Any) -> Any:
    """Each example's vector with length 1; 0 stays 0."""
    wide = lambda v: (len(v), *[1] * (v.ndim - 1))
    largest = jnp.stack([jnp.abs(v).reshape(len(v), -1).max(1) for v in jax.tree.leaves(tree)]).max(0)
    largest = jnp.where(largest > 0, largest, 1)  # so that no square is too small for the type
    tree = jax.tree.map(lambda v: v / largest.reshape(wide(v)), tree)
    squares = sum((v**2).reshape(len(v), -1).sum(1) for v in jax.tree.leaves(tree))
    length = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jax.tree.map(lambda v: v / length.reshape(wide(v)), tree)


@dispatch
def metrics(vat: VAT, batch):
    return {} if is_unlabeled(batch) else metrics(vat.system, batch)


@dispatch
def validate(vat: VAT, batch):
    if not is_unlabeled(batch):
        validate.invoke(Defence, object)(vat, batch)
    validate_logits(vat, batch)

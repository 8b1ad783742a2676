"""`VAT`: probabilities that are constant in the direction in which they change most; needs no labels."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import Defence, logits, validate_logits
from fulmen.compose.example_keys import example_keys
from fulmen.core import Train, hyper, inputs, is_unlabeled, static, still, with_inputs
from fulmen.core.verbs import defence_losses, loss, metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.defences.divergence import total_divergence
from fulmen.robust.defences.example_vectors import times, unit


class VAT(Defence):
    """Virtual adversarial training: loss(x) + α KL(p(x) ‖ p(x + r)), with p(x) held fixed.

    r has length ε and approximately the direction in which the divergence grows fastest, found by power iteration: d starts at
    random, and each iteration replaces it by the gradient of KL(p(x) ‖ p(x + ξ d)) with respect to d. On an `Unlabeled` batch
    the divergence is the whole loss, so a loop over labelled and unlabelled batches is semi-supervised training. In an
    evaluation, a labelled batch has the system's loss. Miyato et al. 2018, arXiv:1704.03976.

    Args:
        system: one with a classifier in it, at any depth.
        eps: ε, the Euclidean length of an example's r, in the input's units.
        weight: α.
        steps: the number of power iterations.
        xi: ξ, the finite difference of the power iteration; smaller is more exact, until float32 rounds the divergence to 0.

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

    def divergence_at(r: Any) -> jax.Array:
        moved = with_inputs(batch, jax.tree.map(jnp.add, x, r))
        return total_divergence(reference, logits(vat, vat.system, moved))

    direction = unit(_random_direction(vat, batch, x))
    for _ in range(vat.steps):
        gradient = jax.grad(lambda d: divergence_at(times(vat.xi, d)).sum())(direction)
        direction = unit(still(gradient))
    virtual = divergence_at(times(vat.eps, direction))
    virtual = jnp.asarray(vat.weight).astype(virtual.dtype) * virtual
    return {"virtual": virtual} if is_unlabeled(batch) else {"labelled": loss(vat.system, batch), "virtual": virtual}


def _random_direction(vat: VAT, batch: Any, x: Any) -> Any:
    """Normal noise for each example, drawn from its own key."""
    keys = example_keys(vat, batch, "direction")

    def draw(number: int, v: Any) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), v.shape[1:], v.dtype))(keys)

    flat, structure = jax.tree.flatten(x)
    return structure.unflatten([draw(number, v) for number, v in enumerate(flat)])


@dispatch
def metrics(vat: VAT, batch):
    return {} if is_unlabeled(batch) else metrics(vat.system, batch)


@dispatch
def validate(vat: VAT, batch):
    if not is_unlabeled(batch):
        validate.invoke(Defence, object)(vat, batch)
    validate_logits(vat, batch)

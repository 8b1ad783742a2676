"""Training with the gradients at an example and near it: `GradAlign` and `VAT`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fulmen.compose.defence import Defence, logits, validate_logits
from fulmen.compose.example_keys import example_keys
from fulmen.compose.example_means import total_loss
from fulmen.core import Train, hyper, index, inputs, is_unlabeled, static, still, with_inputs
from fulmen.core.verbs import defence_losses, loss, metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Uniform
from fulmen.robust.attacks.chain_attacks import start_points
from fulmen.robust.defences.adversarial import AttackTrained, attack_at
from fulmen.robust.defences.divergence import total_divergence


def times(factor: Any, tree: Any) -> Any:
    """A tree of arrays times a number."""
    return jax.tree.map(lambda v: jnp.asarray(factor).astype(v.dtype) * v, tree)


@jax.vmap
def unit(example: Any) -> Any:
    """Each example's vector with length 1; 0 stays 0."""
    v, structure = _vector(example)
    squares = (v * v).sum()
    return structure(v / jnp.sqrt(jnp.where(squares > 0, squares, 1)))


@jax.vmap
def cosine(a: Any, b: Any) -> jax.Array:
    """The cosine of the angle between each example's two vectors, `(n,)`; 1 if one of them is 0."""
    u, v = _vector(a)[0], _vector(b)[0]
    squares = (u * u).sum() * (v * v).sum()
    return jnp.where(squares > 0, (u * v).sum() / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 1)


def _vector(example: Any) -> tuple[jax.Array, Any]:
    """A tree as one vector, divided by its largest coordinate, so that squares do not underflow; and the way back."""
    v, structure = ravel_pytree(example)
    largest = jnp.abs(jax.lax.stop_gradient(v)).max()
    return v / jnp.where(largest > 0, largest, 1), structure


class GradAlign(AttackTrained):
    """Adversarial training with aligned gradients: loss(x′) + λ (1 − cos(∇ℓ(x), ∇ℓ(x + η))), with η uniform in the ball.

    It prevents the catastrophic overfitting of training against single-step attacks, and needs second derivatives. An example
    whose gradient is 0 counts as aligned. Andriushchenko and Flammarion 2020, arXiv:2007.02617.

    Args:
        system: anything that has a loss.
        attack: the attack, or an `AttackSchedule`; η is drawn from its region.
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
        raise ValueError("GradAlign draws random points near the inputs and needs a mode with a key, such as fm.Train(key).")

    keys = lambda number: jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, number)))(index(clean))
    near = start_points(Uniform(), region, inputs(clean), keys)
    gradients = jax.grad(lambda x: total_loss(defence.system, with_inputs(clean, x)))
    aligned = cosine(gradients(inputs(clean)), gradients(near))
    return {
        "robust": loss(defence.system, batch.batch),
        "alignment": jnp.asarray(defence.weight).astype(aligned.dtype) * (1 - aligned),
    }


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

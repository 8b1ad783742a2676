"""`GradAlign`: training that aligns the gradients at the input and near it."""

import jax
import jax.numpy as jnp

from fulmen.compose.example_means import total_loss
from fulmen.core import hyper, index, inputs, with_inputs
from fulmen.core.verbs import defence_losses, loss, project, start_point
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Uniform
from fulmen.robust.defences.adversarial import AttackTrained, attack_at
from fulmen.robust.defences.example_vectors import cosine


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

    def near(number: int, x: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, number), i))(index(clean))
        return project(region, jax.vmap(lambda x, key: start_point(Uniform(), region, x, key))(x, keys), x)

    gradients = jax.grad(lambda x: total_loss(defence.system, with_inputs(clean, x)))
    flat, structure = jax.tree.flatten(inputs(clean))
    points = structure.unflatten([near(number, jnp.asarray(x)) for number, x in enumerate(flat)])
    aligned = cosine(gradients(inputs(clean)), gradients(points))
    return {
        "robust": loss(defence.system, batch.batch),
        "alignment": jnp.asarray(defence.weight).astype(aligned.dtype) * (1 - aligned),
    }

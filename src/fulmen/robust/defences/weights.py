"""`SAM` and `AWP`: training with the gradient at weights displaced towards a higher loss."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.compose.part_defaults import augmented
from fulmen.core import Component, Wrapper, briefly, covers, first_field, hyper
from fulmen.core.leaves import components, leaves
from fulmen.core.verbs import ascent, update
from fulmen.dispatching.registry import dispatch
from fulmen.train.gradients import apply_gradients, differentiate
from fulmen.train.step import end_step, require_standard_steps


class WorseWeights(Wrapper):
    """A system trained with the gradient at displaced weights, w + v, where v increases the loss of the same batch.

    Its training step takes two gradients. The first, at w, determines v; running statistics, the loss and the metrics are those
    of this pass, since w is what is evaluated. The second, at w + v, is the one that the optimizer gets.

    Args:
        system: anything that has a loss, such as a defence. The wrapper must be the outermost component of the training.

    **Extending.** Subclass it, and write `ascent(worse: Mine, slopes, weights)`.
    """

    system: Component

    def __repr__(self) -> str:
        return briefly(self)


class SAM(WorseWeights):
    """Sharpness-aware minimization: v = ρ g / ‖g‖, with the norm over all weights (Foret et al. 2021, arXiv:2010.01412).

    Args:
        system: anything that has a loss.
        rho: ρ.

    >>> from fulmen.robust.defences import SAM
    >>> SAM(fm.Classifier(fm.models.MLP(64, 32, 10))).rho
    0.05
    """

    rho: float = hyper(minimum=0, default=0.05)


class AWP(WorseWeights):
    """Adversarial weight perturbation: v = γ ‖w‖ g / ‖g‖ for each kernel (Wu, Xia and Wang 2020, arXiv:2004.05884).

    Biases and the scales of normalizations are not displaced. It wraps a defence: `AWP(TRADES(…))`, `AWP(fm.Adversarial(…))`,
    and costs one more gradient of the defence's loss.

    Args:
        system: anything that has a loss, such as a defence.
        gamma: γ.

    >>> from fulmen.robust.defences import AWP
    >>> AWP(fm.Adversarial(fm.Classifier(fm.models.MLP(64, 32, 10)), fm.FGSM(fm.LinfBall(0.1)))).gamma
    0.01
    """

    gamma: float = hyper(minimum=0, default=0.01)


_TINY = 1e-12  # a gradient of 0 displaces nothing


@dispatch
def ascent(sam: SAM, slopes, weights):
    factor = jnp.asarray(sam.rho) / (optax.tree.norm(slopes) + _TINY)
    return jax.tree.map(lambda g: factor.astype(g.dtype) * g, slopes)


@dispatch
def ascent(awp: AWP, slopes, weights):
    leading_axes = [_leading_axes(weights, leaf.path) for leaf in leaves(weights)]

    def move(g: jax.Array, w: jax.Array, leading: int) -> jax.Array:
        if w.ndim - leading < 2:
            return jnp.zeros_like(g)
        axes = tuple(range(leading, w.ndim))
        size = lambda v: jnp.sqrt(jnp.sum(jnp.abs(v) ** 2, axes, keepdims=True))
        return jnp.asarray(awp.gamma).astype(g.dtype) * (size(w) / (size(g) + _TINY)).astype(g.dtype) * g

    flat, structure = jax.tree.flatten(slopes)
    rows: Any = zip(flat, jax.tree.leaves(weights), leading_axes, strict=True)
    return structure.unflatten([move(*row) for row in rows])


def _leading_axes(component: Any, path: str) -> int:
    """The number of axes that the components above a leaf add in front, such as `Stacked`."""
    return sum(getattr(type(part), "leading_axes", 0) for where, part in components(component) if covers(where, path))


def trained(slopes: Any, component: Any) -> Any:
    """The component with None in place of everything that has no gradient."""
    return jax.tree.map(lambda g, w: None if g is None else w, slopes, component, is_leaf=lambda v: v is None)


@dispatch
def update(worse: WorseWeights, state, batch, mode):
    component: Any = worse  # or a wrapper around it
    part = component
    while not isinstance(part, WorseWeights):
        part = first_field(part)
    require_standard_steps(part, state, batch, mode)
    batch = augmented(component, batch, mode.at("augment"))
    value, slopes, moved, logs = differentiate(component, batch, mode)
    up = ascent(part, slopes, trained(slopes, component))
    there = jax.tree.map(lambda v, w: w if v is None else w + v, up, component, is_leaf=lambda v: v is None)
    _, gradients, _, _ = differentiate(there, batch, mode)
    state = apply_gradients(state.replace(system=moved), gradients, value=value)
    return end_step(state, batch, mode), logs

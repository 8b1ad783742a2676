"""`SigmaZero`: few changed coordinates, by gradient descent on a smooth approximation of their number."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core import hyper, remake, static
from fulmen.core.marks import ignores_steps
from fulmen.core.verbs import advance, begin, length, transformation
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack_loop import AttackState, along
from fulmen.robust.attacks.minimal_norm import MinimalNorm, annealed, ascent, clean_fields, keep_nearest, limits, share_done
from fulmen.robust.attacks.region import ball_of


class SigmaZero(MinimalNorm):
    """Adam on max(0, z_y − max_{i≠y} z_i) + the mean of δ² / (δ² + σ), which approximates the share of changed coordinates.

    After each step, changes smaller than a threshold are set to 0; the threshold rises after a success and falls after a
    failure. Gradients are divided by their largest coordinate. Cinà et al. 2024, arXiv:2402.01879. A step takes a forward and
    a backward pass. See `MinimalNorm` for what `perturb` and `attempt` return.

    Args:
        region: with an `L0Ball`, whose `eps` is the number of coordinates that may change; its boxes limit the points.
        steps: the number of steps.
        step_size: Adam's first learning rate, in the input's units; it falls along half a cosine to a tenth.
        sigma: σ, the square of the changes that count as half a coordinate.
        threshold: the first threshold, in the input's units.
        adjustment: the change of the threshold at a step, in units of the learning rate.
        target: the goal.

    **Extending.** `transformation(attack: Mine)` may be another optimizer than `optax.scale_by_adam`.

    >>> fm.attacks.SigmaZero(fm.attacks.L0Ball(5) & fm.Box(0, 1), steps=200)
    SigmaZero(region=L0Ball(eps=5) & Box(lo=0, hi=1), steps=200)
    """

    needs_ball = True
    norms = (0,)

    steps: int = static(default=1000)
    step_size: float = hyper(above=0, default=1.0, kw_only=True)
    sigma: float = hyper(above=0, default=1e-3, kw_only=True)
    threshold: float = hyper(minimum=0, maximum=1, default=0.3, kw_only=True)
    adjustment: float = hyper(minimum=0, default=0.01, kw_only=True)


class SigmaZeroState(AttackState):
    """The state of `SigmaZero`.

    Attributes:
        memory: the optimizer's state.
        rate: the learning rate, a number.
        threshold: `(n,)`, the size under which changes are set to 0.
    """

    memory: Any = None
    rate: Any = None
    threshold: Any = None


@dispatch
@ignores_steps
def transformation(attack: SigmaZero):
    return optax.scale_by_adam()


@dispatch
def begin(attack: SigmaZero, problem):
    x = problem.image
    first = lambda value: jnp.broadcast_to(jnp.asarray(value).astype(x.dtype), (len(x),))
    memory = jax.vmap(transformation(attack).init)(x)
    rates = {"rate": first(attack.step_size), "threshold": first(attack.threshold)}
    return SigmaZeroState(**clean_fields(problem), memory=memory, **rates)


@dispatch
@ignores_steps
def advance(attack: SigmaZero, problem, state, step):
    (x,), origin, ball = jax.tree.leaves(state.x), problem.image, ball_of(attack.region)
    lo, hi = limits(attack.region, origin)
    offset, sigma = x - origin, jnp.asarray(attack.sigma).astype(x.dtype)
    _, adversarial, ascending = ascent(problem, x, lambda margin: (margin < 0).astype(margin.dtype))
    state = keep_nearest(problem, state, x, adversarial, length(ball, offset), step)

    gradient = 2 * sigma * offset / (offset**2 + sigma) ** 2 / x[0].size - ascending
    gradient /= jnp.maximum(jnp.abs(gradient).max(tuple(range(1, x.ndim)), keepdims=True), 1e-12)
    with jax.numpy_dtype_promotion("standard"):  # optax raises numbers to an integer power
        direction, memory = jax.vmap(transformation(attack).update)(gradient, state.memory, x)
    moved = jnp.clip(x - along(state.rate, x) * direction, lo, hi)

    rate = annealed(share_done(problem, step, x.dtype), attack.step_size, 0.1 * jnp.asarray(attack.step_size))
    change = jnp.asarray(attack.adjustment).astype(x.dtype) * rate
    threshold = jnp.clip(state.threshold + jnp.where(adversarial, change, -change), 0, 1)
    moved = jnp.where(jnp.abs(moved - origin) < along(threshold, x), origin, moved)
    new = {"memory": memory, "rate": jnp.broadcast_to(rate, state.rate.shape), "threshold": threshold}
    return remake(state, {"x": problem.points(moved), **new})

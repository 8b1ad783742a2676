"""The attack of Carlini and Wagner: minimises the distance and the margin together."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fulmen.core import hyper, remake, static
from fulmen.core.verbs import advance, begin, transformation, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack_loop import AttackState, select
from fulmen.robust.attacks.minimal_norm import MinimalNorm, clean_fields, keep_nearest, limits, maximized
from fulmen.robust.attacks.problem import finite
from fulmen.robust.attacks.region import boxes


class CarliniWagner(MinimalNorm):
    """Adam on ‖x′ − x‖₂² + c · max(0, z_y − max_{i≠y} z_i + κ), with a search for the constant c of each example (C&W).

    Carlini and Wagner 2017, arXiv:1608.04644. The variable is w, with x′ = tanh(w) scaled to the box. c is multiplied by ten
    after each search without success; once one succeeds, it is the middle of the bracket (bisection). Each example has its
    own search and constant, starts the next search as soon as its loss stops falling, and is left alone after the last. With
    a target t the margin is max_{i≠t} z_i − z_t. A step takes a forward and a backward pass. See `MinimalNorm` for what
    `perturb` and `attempt` return.

    Args:
        region: its boxes limit the points and must be finite; a ball, if any, defines which points are near enough.
        steps: the largest number of steps in each search.
        step_size: Adam's learning rate.
        searches: the number of values of c.
        constant: the first value of c.
        confidence: the required lead of the wrong class, κ.
        target: the goal.

    **Extending.** `transformation(attack: Mine)` may be another optimizer than `optax.adam`.

    >>> fm.attacks.CarliniWagner(fm.Box(0, 1), steps=200)
    CarliniWagner(region=Box(lo=0, hi=1), steps=200)
    """

    steps: int = static(default=1000)
    step_size: float = hyper(minimum=0, default=0.01, kw_only=True)
    searches: int = static(minimum=1, default=9, kw_only=True)
    constant: float = hyper(above=0, default=1e-3, kw_only=True)
    confidence: float = hyper(minimum=0, default=0.0, kw_only=True)

    @property
    def length(self) -> int:
        return self.steps * self.searches


class CarliniWagnerState(AttackState):
    """The state of `CarliniWagner`, `(n,)` each except for the first two.

    Attributes:
        moved: the change of w since the start, `(n, …)`.
        memory: the optimizer's state.
        search: the number of finished searches.
        search_step: the number of steps in this search.
        found: whether this search has found an adversarial point.
        checked_loss: the loss at the last check.
        constant: c.
        low: the largest c that was too small.
        high: the smallest c that was large enough.
        finished: whether all searches are finished.
    """

    moved: Any = None
    memory: Any = None
    search: Any = None
    search_step: Any = None
    found: Any = None
    checked_loss: Any = None
    constant: Any = None
    low: Any = None
    high: Any = None
    finished: Any = None

    @property
    def done(self) -> Any:
        return self.finished if self.succeeded is None else self.finished | self.succeeded


@dispatch
def transformation(attack: CarliniWagner):
    # A schedule's value is cast to the gradient's type.
    return optax.adam(lambda step: attack.step_size)


@dispatch
def begin(attack: CarliniWagner, problem):
    x = problem.image
    n, zeros = len(x), jnp.zeros(len(x), x.dtype)
    first = _new_search(attack, x, zeros + jnp.asarray(attack.constant).astype(x.dtype))
    bounds = {"low": zeros, "high": zeros + jnp.inf, "search": jnp.zeros(n, jnp.int32), "finished": jnp.zeros(n, bool)}
    margin, _ = maximized(problem, x)
    state = CarliniWagnerState(**clean_fields(problem), **first, **bounds)
    return keep_nearest(problem, state, x, margin > _confidence(attack, margin), zeros, 0)


def _new_search(attack: CarliniWagner, x: jax.Array, constant: jax.Array) -> dict[str, Any]:
    """The fields of the state when a search begins."""
    return {
        "moved": jnp.zeros_like(x),
        "memory": jax.vmap(transformation(attack).init)(x),
        "search_step": jnp.zeros(len(x), jnp.int32),
        "found": jnp.zeros(len(x), bool),
        "checked_loss": jnp.full(len(x), jnp.inf, x.dtype),
        "constant": constant,
    }


@dispatch
def advance(attack: CarliniWagner, problem, state, step):
    origin, transform = problem.image, transformation(attack)
    lo, hi = limits(attack.region, origin)
    middle, half = (lo + hi) / 2, (hi - lo) / 2
    start = jnp.arctanh((origin - middle) / jnp.where(half > 0, half, 1) * 0.999999)
    unit = jnp.tanh(start + state.moved)
    x, unmoved = unit * half + middle, jnp.tanh(start) * half + middle

    margin, pull_back, _ = jax.vjp(lambda x: maximized(problem, x), x, has_aux=True)
    confidence, constant = _confidence(attack, margin), state.constant.astype(margin.dtype)
    gradient = finite(pull_back(jnp.where(margin < confidence, -constant, 0))[0])
    gradient = (2 * (x - unmoved) + gradient) * half * (1 - unit**2)
    value = _squared(x - unmoved) + (constant * jnp.maximum(confidence - margin, 0)).astype(x.dtype)
    with jax.numpy_dtype_promotion("standard"):  # optax raises numbers to an integer power
        change, memory = jax.vmap(transform.update)(gradient, state.memory, x)

    check = state.search_step % -(-attack.steps // 10) == 0
    stuck = check & ~(value <= 0.9999 * state.checked_loss)
    adversarial = (margin > confidence) & ~stuck & ~state.finished
    state = keep_nearest(problem, state, x, adversarial, jnp.sqrt(_squared(x - origin)), step + 1)

    found, end = state.found | adversarial, stuck | (state.search_step + 1 == attack.steps)
    low, high = jnp.where(end & ~found, state.constant, state.low), jnp.where(end & found, state.constant, state.high)
    new_search = _new_search(attack, x, jnp.where(jnp.isinf(high), state.constant * 10, (low + high) / 2))
    same_search = {
        "moved": state.moved + change,
        "memory": memory,
        "search_step": state.search_step + 1,
        "found": found,
        "checked_loss": jnp.where(check, value, state.checked_loss),
        "constant": state.constant,
    }
    search = state.search + end.astype(jnp.int32)
    bounds = {"low": low, "high": high, "search": search, "finished": search >= attack.searches}
    return remake(state, {"x": problem.points(x), **select(end, new_search, same_search), **bounds})


def _confidence(attack: CarliniWagner, margin: jax.Array) -> jax.Array:
    return jnp.asarray(attack.confidence).astype(margin.dtype)


def _squared(offset: jax.Array) -> jax.Array:
    return (offset**2).sum(tuple(range(1, offset.ndim)))


@dispatch
def validate(attack: CarliniWagner):
    validate.invoke(MinimalNorm)(attack)
    if not boxes(attack.region):
        raise ValueError(
            f"CarliniWagner, region: must contain a box to search in, got {attack.region!r}. Write fm.Box(0, 1), and "
            "& fm.attacks.L2Ball(eps) to define which points are near enough."
        )

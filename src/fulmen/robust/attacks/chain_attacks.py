"""Attacks that are an optax chain: the steepest step and the uniform start in the ball of each norm, and the loop of steps."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import remake
from fulmen.core.marks import ignores_steps, keeps_points
from fulmen.core.verbs import advance, begin, finish, for_examples, shown, start_point, transformation, views
from fulmen.dispatching.registry import dispatch, verb
from fulmen.robust.attacks.attack import PGD, Attack, Uniform, require_key
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields
from fulmen.robust.attacks.projections import projected
from fulmen.robust.attacks.region import L0Ball, L1Ball, L2Ball, LinfBall, ball_of
from fulmen.robust.attacks.rounding import at_least_32_bits

__all__ = ["SHARE", "ChainState", "fgm", "fgsm", "slide", "start_points"]

SHARE = 0.05
"""The share of the coordinates that a step in an `L1Ball` moves, where an attack takes many."""


def fgsm(eps: Any) -> optax.GradientTransformation:
    """The step of `FGSM` as an optax transformation: the sign of the gradient, then scaled.

    It descends, so attacks pass the gradient of −loss; `fgsm(eps)` is `optax.sign_sgd(eps)`. Goodfellow, Shlens and Szegedy
    2015, arXiv:1412.6572.

    Args:
        eps: the size of a step in the input's units: a number, possibly traced, or an optax schedule over the steps.

    >>> step, _ = fm.attacks.fgsm(0.5).update(jnp.array([3.0, -0.1, 0.0]), fm.attacks.fgsm(0.5).init(None))
    >>> print(step)
    [-0.5  0.5 -0. ]
    """
    return _steps(jnp.sign, eps)


def fgm(step_size: Any) -> optax.GradientTransformation:
    """The fast gradient method as an optax transformation: the gradient divided by its Euclidean norm, then scaled.

    The step is −step_size · g / max(‖g‖₂, 10⁻¹²), the steepest one of its length; each array is normalised separately.
    Miyato, Dai and Goodfellow 2017, arXiv:1605.07725.

    Args:
        step_size: the length of a step in the input's units: a number, possibly traced, or an optax schedule over the steps.

    >>> step, _ = fm.attacks.fgm(0.5).update(jnp.array([3.0, -4.0]), fm.attacks.fgm(0.5).init(None))
    >>> print(step)
    [-0.3  0.4]
    """

    def direction(g: jax.Array) -> jax.Array:
        wide = g.astype(at_least_32_bits(g.dtype))
        largest = jnp.maximum(jnp.abs(wide).max(initial=0), 1e-12)  # otherwise the squares of small values would be 0
        length = largest * jnp.linalg.norm((wide / largest).ravel())
        return (wide / jnp.maximum(length, 1e-12)).astype(g.dtype)

    return _steps(direction, step_size)


def slide(step_size: Any, q: float) -> optax.GradientTransformation:
    """The step of `SLIDE` as an optax transformation: equal steps along the coordinates of largest gradient, by its sign.

    With q = 0 one coordinate moves, the steepest step of its length. Tramèr and Boneh 2019, arXiv:1904.13000.

    Args:
        step_size: the 1-norm of a step in the input's units: a number, possibly traced, or an optax schedule over the steps.
        q: the share of the coordinates that move, at least one. Coordinates that tie with the smallest of them move too.

    Raises:
        ValueError: unless q is between 0 and 1.

    >>> step, _ = fm.attacks.slide(1.0, q=0.5).update(jnp.array([3.0, -4.0, 1.0, 0.5]), fm.attacks.slide(1.0, 0.5).init(None))
    >>> print(step)
    [-0.5  0.5 -0.  -0. ]
    """
    if not 0 <= q <= 1:
        raise ValueError(f"slide: q must be between 0 and 1, the share of the coordinates that move, got {q!r}.")

    def direction(g: jax.Array) -> jax.Array:
        sizes = jnp.abs(g).ravel()
        least = jax.lax.top_k(sizes, max(1, round(q * g.size)))[0][-1]
        signs = jnp.where(jnp.abs(g) >= least, jnp.sign(g), 0)
        count = jnp.abs(signs).astype(at_least_32_bits(g.dtype)).sum()
        return signs / jnp.maximum(count, 1).astype(g.dtype)

    return _steps(direction, step_size)


@verb(delegates=False)
def repeated(ball, step_size):
    """The optax chain of an attack that takes many steps in a ball: by default steepest steps."""


@dispatch
def repeated(ball: object, step_size):
    return transformation(ball, step_size)


@dispatch
def repeated(ball: L1Ball, step_size):
    """Not the steepest step, which moves one coordinate: it would take as many steps as coordinates have to change."""
    return slide(step_size, SHARE)


@dispatch
@ignores_steps
def transformation(attack: PGD):
    return repeated(ball_of(attack.region), attack.step_length)


def _steps(direction: Callable[[jax.Array], jax.Array], step_size: Any) -> optax.GradientTransformation:
    # A schedule's value is cast to the gradient's type.
    schedule: Any = step_size if callable(step_size) else lambda step: step_size
    return optax.chain(
        optax.stateless(lambda slopes, params: jax.tree.map(direction, slopes)), optax.scale_by_learning_rate(schedule)
    )


@dispatch
def transformation(ball: LinfBall, step_size):
    return fgsm(step_size)


@dispatch
def transformation(ball: L2Ball, step_size):
    return fgm(step_size)


@dispatch
def transformation(ball: L1Ball, step_size):
    return slide(step_size, q=0)


@dispatch
def transformation(ball: L0Ball, step_size):
    """Along the gradient, in steps of a given 1-norm; the projection chooses the coordinates (arXiv:1909.05040)."""
    return _steps(lambda g: g / jnp.maximum(jnp.abs(g).sum(), 1e-12), step_size)


@dispatch
def start_point(start: Uniform, ball: L0Ball, x, key):
    require_key(key)
    return x + jax.random.uniform(key, x.shape, x.dtype, -1, 1)  # the projection keeps few coordinates


@dispatch
def start_point(start: Uniform, ball: LinfBall, x, key):
    require_key(key)
    return x + jnp.asarray(ball.eps).astype(x.dtype) * jax.random.uniform(key, x.shape, x.dtype, -1, 1)


@dispatch
def start_point(start: Uniform, ball: L2Ball, x, key):
    """A normal direction is isotropic, and the share of the volume within radius r is rᵈ."""
    direction, share = _draw(jax.random.normal, x, key)
    return _offset(x, ball.eps, direction / jnp.linalg.norm(direction.ravel()) * share ** (1 / x.size))


@dispatch
def start_point(start: Uniform, ball: L1Ball, x, key):
    """Normalised exponential numbers are uniform on a simplex (Devroye 1986, section V.2); with signs they are Laplace's."""
    direction, share = _draw(jax.random.laplace, x, key)
    return _offset(x, ball.eps, direction / jnp.abs(direction).sum() * share ** (1 / x.size))


def _draw(distribution: Callable[..., jax.Array], x: Any, key: Any) -> tuple[jax.Array, jax.Array]:
    """Random numbers in the shape of an example, and one between 0 and 1, in at least 32 bits."""
    require_key(key)
    wide = at_least_32_bits(x.dtype)
    one, other = jax.random.split(key)
    return distribution(one, x.shape, wide), jax.random.uniform(other, (), wide)


def _offset(x: Any, eps: Any, offset: jax.Array) -> jax.Array:
    return (x.astype(offset.dtype) + jnp.asarray(eps).astype(offset.dtype) * offset).astype(x.dtype)


def start_points(start: Any, region: Any, origin: Any, keys: Callable[[int], Any]) -> Any:
    """The starting points, projected onto the region, in the structure of the clean inputs.

    `keys` returns the random keys of the examples, `(n,)`, or None, for the number of an array in `origin`.
    """

    flat, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, origin))
    n = len(flat[0])
    draw = jax.vmap(lambda row, x, key: start_point(start, for_examples(region, row, n), x, key))
    drawn = [draw(np.arange(n), x, keys(i)) for i, x in enumerate(flat)]
    return projected(region, structure.unflatten(drawn), structure.unflatten(flat))


class ChainState(AttackState):
    """The state of an attack that is an optax chain.

    Attributes:
        memory: per leaf of `x`, the state of the transformation for each example.
    """

    memory: Any = None


@dispatch
def begin(attack: Attack, problem):
    keys = lambda number: None if problem.key is None else problem.keys(number)
    x = start_points(attack.start, attack.region, problem.origin, keys)
    n = len(problem.batch)
    first = jax.vmap(lambda row, x: _transform(attack, row, n).init(x))
    memory = [first(np.arange(n), x) for x in jax.tree.leaves(problem.origin)]
    return ChainState(**initial_fields(problem, x), memory=memory)


@dispatch
@ignores_steps
@keeps_points
def advance(attack: Attack, problem, state, step):
    through = views(attack)
    see = lambda x: functools.reduce(lambda x, view: shown(view, problem, state, x, step), through, x)
    seen_points, pull_back = jax.vjp(see, state.x)
    gradient, seen = problem.gradient(seen_points, step)
    (gradient,) = pull_back(gradient)
    if through and state.value is not None:
        seen = problem.evaluate(state.x, step)  # the gradient was evaluated at other points
    state = state.keep(state.x, seen, step)
    n = len(problem.batch)

    def move(gradient: jax.Array, memory: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        update = lambda row, gradient, memory, x, value: _transform(attack, row, n).update(gradient, memory, x, value=value)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and raises numbers to that power
            # Mapped over examples, so that norms do not couple them.
            change, after = jax.vmap(update)(np.arange(n), gradient, memory, x, -seen.value)
        after = jax.tree.map(lambda new, old: _cast(new, old.dtype), after, memory)
        return x + _cast(change, x.dtype), after

    flat, structure = jax.tree.flatten(state.x)
    moved, memory = zip(*map(move, jax.tree.leaves(gradient), state.memory, flat), strict=True)
    x = projected(attack.region, structure.unflatten(moved), problem.origin)
    return remake(state, {"x": x, "memory": [*memory]})


def _transform(attack: Any, row: Any, n: int) -> optax.GradientTransformationExtraArgs:
    """The optax chain for one of the examples, whose radius may be its own."""
    return optax.with_extra_args_support(transformation(for_examples(attack, row, n)))


@dispatch
@keeps_points
def finish(attack: Attack, problem, state):
    if state.best is None:
        return state
    steps = attack.length if problem.steps is None else problem.steps
    return state.keep(state.x, problem.evaluate(state.x, steps), steps)


def _cast(value: Any, dtype: Any) -> Any:
    return value if jnp.issubdtype(dtype, jax.dtypes.extended) else value.astype(dtype)  # random keys keep their type

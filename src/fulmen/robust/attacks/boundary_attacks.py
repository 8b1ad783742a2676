"""Attacks on the nearest class boundary, linearised: `DeepFool` and `FAB`."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import hyper, remake, static
from fulmen.core.verbs import advance, begin, finish, length
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack_loop import AttackState, along, select
from fulmen.robust.attacks.minimal_norm import (
    MinimalNorm,
    candidate_classes,
    class_to_beat,
    clean_fields,
    flat,
    is_adversarial,
    keep_nearest,
    limits,
    onto_hyperplane,
)
from fulmen.robust.attacks.problem import finite
from fulmen.robust.attacks.region import ball_of
from fulmen.robust.attacks.rounding import at_least_32_bits


class DeepFool(MinimalNorm):
    """Shortest steps to the nearest of the linearised class boundaries, until the predicted class changes.

    Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv:1511.04599. Distances to the planes z_k = z_y are in the norm of the
    region's ball, within the box if the region has one. The total step is scaled by 1 + overshoot to cross the boundary. A
    step takes a forward pass, and a backward pass per class. At the end, a search on the line to the clean input brings the point
    back to the boundary, which the last step may have crossed by far: a forward pass for each bisection; the paper has none. See
    `MinimalNorm` for what `perturb` and `attempt` return.

    Args:
        region: its ball defines the norm, and which points are near enough; its boxes limit the points.
        steps: the largest number of steps; an example stops after crossing the boundary.
        overshoot: the relative extension of the step beyond the planes.
        candidates: the number of classes to consider, the most likely wrong ones of the clean input.
        bisections: the number of bisections at the end.
        target: the goal; with `Target(label)` or `LikelyTarget(rank)`, that class alone.

    >>> fm.attacks.DeepFool(fm.attacks.L2Ball(0.5) & fm.Box(0, 1))
    DeepFool(region=L2Ball(eps=0.5) & Box(lo=0, hi=1))
    """

    norms = (1, 2, math.inf)
    finishes_all = True

    steps: int = static(default=50)
    overshoot: float = hyper(minimum=0, default=0.02, kw_only=True)
    candidates: int = static(minimum=1, default=9, kw_only=True)
    bisections: int = static(minimum=0, default=12, kw_only=True)

    @property
    def passes(self) -> int:
        return 1 + (1 if self.target.one_class else self.candidates)

    @property
    def last_passes(self) -> int:
        return 1 + self.bisections

    @property
    def stepped(self) -> Any:
        return remake(self, {"steps": 1})


class DeepFoolState(AttackState):
    """The state of `DeepFool`.

    Attributes:
        offset: the total step without the overshoot, `(n, features)`.
        classes: the classes to consider, `(n, k)`.
        crossed: `(n,)`, which examples have crossed the boundary.
        taken: `(n,)`, the number of steps before that.
    """

    offset: Any = None
    classes: Any = None
    crossed: Any = None
    taken: Any = None

    @property
    def done(self) -> Any:
        return self.crossed


@dispatch
def begin(attack: DeepFool, problem):
    x = problem.image
    logits, n = problem.logits(x), len(x)
    classes = candidate_classes(problem, logits, min(attack.candidates, logits.shape[1] - 1))
    memory = {"offset": jnp.zeros_like(x), "crossed": jnp.zeros(n, bool), "taken": jnp.zeros(n, jnp.int32)}
    return DeepFoolState(**clean_fields(problem), classes=classes, **memory)


@dispatch
def advance(attack: DeepFool, problem, state, step):
    (x,), origin, ball = jax.tree.leaves(state.x), problem.image, ball_of(attack.region)
    logits, pull_back = jax.vjp(problem.logits, x)
    state = _keep_adversarial(problem, state, logits)

    one_hot = lambda label: jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
    lead = one_hot(state.classes.T) - one_hot(class_to_beat(problem, logits))[None]  # (k, n, classes)
    gaps = -(lead * logits[None]).sum(-1)
    gradients = finite(jax.vmap(lambda cotangent: pull_back(cotangent)[0])(lead))
    lo, hi = limits(attack.region, origin)

    def to_plane(gradient: jax.Array, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The shortest offset to one of the planes, and its length, extrapolated if the plane is out of reach."""
        gradient, gap = flat(gradient), gap.astype(x.dtype)
        offset = onto_hyperplane(ball, flat(x), gradient, gap, flat(lo), flat(hi))
        distance = length(ball, offset) * gap / (gradient * offset).sum(1)
        return offset, jnp.where(jnp.isfinite(distance), distance, jnp.inf)

    offsets, distances = jax.vmap(to_plane)(gradients, gaps)
    nearest = jax.nn.one_hot(distances.argmin(0), len(distances), dtype=bool).T[:, :, None]
    offset = state.offset + jnp.where(nearest, offsets, 0).sum(0).reshape(x.shape)
    moved = jnp.clip(origin + offset * (1 + jnp.asarray(attack.overshoot).astype(x.dtype)), lo, hi)
    new = {"x": problem.points(moved), "offset": offset, "taken": state.taken + 1}
    return remake(state, select(state.crossed, {name: getattr(state, name) for name in new}, new))


@dispatch
def finish(attack: DeepFool, problem, state):
    (x,) = jax.tree.leaves(state.x)
    state = _keep_adversarial(problem, state, problem.logits(x))
    origin, high = problem.image, jnp.ones(len(x), at_least_32_bits(x.dtype))

    def bisected(_: Any, carry: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
        state, low, high = carry
        middle = (low + high) / 2
        there = origin + along(middle, x).astype(x.dtype) * (x - origin)
        adversarial = is_adversarial(problem, problem.logits(there)) & state.crossed
        distance = length(ball_of(attack.region), there - origin)
        state = keep_nearest(problem, state, there, adversarial, distance, state.taken)
        return state, jnp.where(adversarial, low, middle), jnp.where(adversarial, middle, high)

    return jax.lax.fori_loop(0, attack.bisections, bisected, (state, 0 * high, high))[0]


def _keep_adversarial(problem: Any, state: DeepFoolState, logits: jax.Array) -> DeepFoolState:
    """The state after its points were evaluated."""
    (x,), adversarial = jax.tree.leaves(state.x), is_adversarial(problem, logits)
    distance = length(ball_of(problem.attack.region), x - problem.image)
    state = keep_nearest(problem, state, x, adversarial, distance, state.taken)
    return remake(state, {"crossed": state.crossed | adversarial})


class FAB(MinimalNorm):
    """The fast adaptive boundary attack, towards one wrong class after another (FAB-T).

    A step linearises the boundary z_t = z_y, projects the point and the clean input onto this plane within the box, and
    moves to a weighted mean of both projections, slightly extrapolated. Adversarial points are moved back towards the clean
    input. A step takes two forward passes and a backward pass. See `MinimalNorm` for what `perturb` and `attempt` return.

    Croce and Hein 2020, arXiv:1907.02044, with the targets of arXiv:2003.01690, as in their code, which omits the final
    search on the line to the clean input.

    Args:
        region: its ball defines the norm, and which points are near enough; its boxes limit the points.
        steps: the number of steps for each class.
        targets: the number of classes, the most likely wrong ones of the clean input.
        alpha_max: the largest weight of the clean input's projection, between 0 and 1.
        eta: the extrapolation of a step, at least 1.
        beta: the remaining share of the distance to the clean input after moving back, between 0 and 1.
        target: the goal; with `Target(label)` or `LikelyTarget(rank)`, that class alone.
        restarts: the number of runs; the first starts at the clean input, the others at half the radius from it.

    >>> fm.attacks.FAB(fm.LinfBall(0.1) & fm.Box(0, 1), targets=3)
    FAB(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), targets=3)
    """

    norms = (1, 2, math.inf)

    steps: int = static(default=100)
    targets: int = static(minimum=1, default=9, kw_only=True)
    alpha_max: float = hyper(minimum=0, maximum=1, default=0.1, kw_only=True)
    eta: float = hyper(minimum=1, default=1.05, kw_only=True)
    beta: float = hyper(minimum=0, maximum=1, default=0.9, kw_only=True)
    restarts: int = static(default=1, kw_only=True)

    @property
    def passes(self) -> int:
        return 3

    @property
    def length(self) -> int:
        return self.steps * (1 if self.target.one_class else self.targets)

    @property
    def stepped(self) -> Any:
        return remake(self, {"restarts": min(self.restarts, 2)})


class FABState(AttackState):
    """The state of `FAB`.

    Attributes:
        classes: the target classes, one after another, `(n, k)`.
    """

    classes: Any = None


@dispatch
def begin(attack: FAB, problem):
    x = problem.image
    logits = problem.logits(x)
    classes = logits.shape[1]
    if problem.target is None and attack.targets >= classes:
        raise ValueError(
            f"FAB.targets must be less than the number of classes, got {attack.targets} for a model with {classes} outputs. "
            f"Write FAB(region, targets={classes - 1})."
        )
    state = FABState(**clean_fields(problem), classes=candidate_classes(problem, logits, attack.targets))
    return keep_nearest(problem, state, x, is_adversarial(problem, logits), jnp.zeros(len(x), x.dtype), 0)


@dispatch
def advance(attack: FAB, problem, state, step):
    (x,), origin, ball = jax.tree.leaves(state.x), problem.image, ball_of(attack.region)
    target = jnp.take(state.classes, step // attack.steps, axis=1)
    x = jnp.where(step % attack.steps == 0, _first_point(attack, problem, step), x)

    def lead(x: jax.Array) -> jax.Array:
        """By how much the logit of the class to beat exceeds that of the target, `(n,)`."""
        logits = problem.logits(x)
        of = lambda label: jnp.where(jax.nn.one_hot(label, logits.shape[1], dtype=bool), logits, 0).sum(1)
        return of(class_to_beat(problem, logits)) - of(target)

    gap, pull_back = jax.vjp(lead, x)
    gradient = flat(finite(pull_back(-jnp.ones_like(gap))[0]))
    gap, (lo, hi) = gap.astype(x.dtype), limits(attack.region, origin)
    clean_gap = gap - (gradient * flat(origin - x)).sum(1)
    both = lambda a, b: jnp.concatenate([flat(a), flat(b)])
    gaps = jnp.concatenate([gap, clean_gap])
    offsets = onto_hyperplane(ball, both(x, origin), both(gradient, gradient), gaps, both(lo, lo), both(hi, hi))
    distance, clean_distance = jnp.split(jnp.maximum(length(ball, offsets), 1e-8), 2)
    most = jnp.asarray(attack.alpha_max).astype(x.dtype)
    bias = along(jnp.minimum(distance / (distance + clean_distance), most), x)

    offset, clean_offset = (v.reshape(x.shape) * jnp.asarray(attack.eta).astype(x.dtype) for v in jnp.split(offsets, 2))
    x = jnp.clip((x + offset) * (1 - bias) + (origin + clean_offset) * bias, lo, hi)
    adversarial = is_adversarial(problem, problem.logits(x))
    state = keep_nearest(problem, state, x, adversarial, length(ball, x - origin), step + 1)
    back = origin + (x - origin) * jnp.asarray(attack.beta).astype(x.dtype)
    return remake(state, {"x": problem.points(select(adversarial, back, x))})


def _first_point(attack: FAB, problem: Any, step: Any) -> jax.Array:
    """The first point on the way to a class."""
    origin, region = problem.image, attack.region
    if attack.restarts == 1:
        return origin
    ball = ball_of(region)

    def draw(key: jax.Array) -> jax.Array:
        if ball.norm_order == math.inf:
            return jax.random.uniform(key, origin.shape[1:], origin.dtype, -1, 1)
        return jax.random.normal(key, origin.shape[1:], origin.dtype)

    offset = jax.vmap(draw)(problem.keys(step))
    radius = jnp.asarray(ball.eps).astype(origin.dtype) / 2
    random = jnp.clip(origin + offset * along(radius / length(ball, offset), origin), *limits(region, origin))
    return jnp.where(problem.restart > 0, random, origin)

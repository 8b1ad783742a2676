"""DeepFool: steps to the nearest class boundary, linearised."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import hyper, remake, static
from fulmen.core.verbs import advance, begin, finish, length
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack_loop import AttackState, select
from fulmen.robust.attacks.hyperplane import onto_hyperplane
from fulmen.robust.attacks.minimal import (
    BoundaryAttack,
    candidate_classes,
    class_to_beat,
    clean_fields,
    flat,
    is_adversarial,
    keep_nearest,
    limits,
)
from fulmen.robust.attacks.problem import finite
from fulmen.robust.attacks.region import ball_of


class DeepFool(BoundaryAttack):
    """Shortest steps to the nearest of the linearised class boundaries, until the predicted class changes.

    Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv:1511.04599. Distances to the planes z_k = z_y are in the norm of the
    region's ball, within the box if the region has one. The total step is scaled by 1 + overshoot to cross the boundary. A
    step takes a forward pass, and a backward pass per class. See `MinimalNorm` for what `perturb` and `attempt` return.

    Args:
        region: its ball defines the norm, and which points are near enough; its boxes limit the points.
        steps: the largest number of steps; an example stops after crossing the boundary.
        overshoot: the relative extension of the step beyond the planes.
        candidates: the number of classes to consider, the most likely wrong ones of the clean input.
        target: the goal; with `Target(label)` or `LikelyTarget(rank)`, that class alone.

    >>> fm.attacks.DeepFool(fm.attacks.L2Ball(0.5) & fm.Box(0, 1))
    DeepFool(region=L2Ball(eps=0.5) & Box(lo=0, hi=1))
    """

    steps: int = static(default=50)
    overshoot: float = hyper(minimum=0, default=0.02, kw_only=True)
    candidates: int = static(minimum=1, default=9, kw_only=True)

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
    return _keep_adversarial(problem, state, problem.logits(x))


def _keep_adversarial(problem: Any, state: DeepFoolState, logits: jax.Array) -> DeepFoolState:
    """The state after its points were evaluated."""
    (x,), adversarial = jax.tree.leaves(state.x), is_adversarial(problem, logits)
    distance = length(ball_of(problem.attack.region), x - problem.image)
    state = keep_nearest(problem, state, x, adversarial, distance, state.taken)
    return remake(state, {"crossed": state.crossed | adversarial})

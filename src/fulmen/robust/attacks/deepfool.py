"""DeepFool, which goes to the nearest boundary as if the classes' boundaries were planes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.fields import hyper, static
from fulmen.core.tree import remake
from fulmen.core.verbs import advance, begin, finish, length, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack_loop import Walk, along
from fulmen.robust.attacks.hyperplane import onto_hyperplane
from fulmen.robust.attacks.minimal import (
    MinimalNorm,
    class_ahead,
    finite,
    flat,
    is_adversarial,
    keep_nearest,
    limits,
    standing_still,
    wrong_classes,
)
from fulmen.robust.attacks.region import ball_of

__all__ = ["DeepFool"]


class DeepFool(MinimalNorm):
    """To the nearest boundary of classes, taken for planes, again and again until the class is another one.

    Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv:1511.04599. Each step is the shortest one to the nearest of the planes
    z_k = z_y, in the norm of the region's ball; where the region has a box, the shortest within it, and that for each of the
    planes. What has been gone is overshot, so that the boundary is crossed. A step takes a forward pass, and a backward pass
    for each class.

    `perturb` returns the nearest adversarial point that was found, at any distance, or the clean input. The ball's radius
    decides what counts in `attempt`: a point inside the region.

    Args:
        region: its ball decides the norm, and what counts as near enough; its boxes, where the points may be.
        steps: how many at most; an example takes none after it has been led over the boundary.
        overshoot: by which share more is gone than to the planes.
        candidates: how many classes are looked at, the likeliest wrong ones of the clean input.
        target: what it is after; with `Target(label)` or `LikelyTarget(rank)` that class alone.

    >>> fm.attacks.DeepFool(fm.attacks.L2Ball(0.5) & fm.Box(0, 1))
    DeepFool(region=L2Ball(eps=0.5) & Box(lo=0, hi=1))
    """

    steps: int = static(default=50)
    overshoot: float = hyper(minimum=0, default=0.02, kw_only=True)
    candidates: int = static(minimum=1, default=9, kw_only=True)

    @property
    def stepped(self) -> Any:
        return remake(self, {"steps": 1})


class DeepFoolWalk(Walk):
    """Where the attacks stand.

    Attributes:
        gone: what has been gone, before the overshoot, `(n, …)`.
        classes: the classes that are looked at, `(n, k)`.
        over: `(n,)`, which examples have been led over the boundary.
        taken: `(n,)`, after how many steps.
    """

    gone: Any = None
    classes: Any = None
    over: Any = None
    taken: Any = None

    @property
    def done(self) -> Any:
        return self.over


@dispatch
def begin(attack: DeepFool, problem):
    logits = problem.logits(problem.points(problem.image))
    classes = wrong_classes(problem, logits, min(attack.candidates, logits.shape[1] - 1))
    n = len(classes)
    memory = {"gone": jnp.zeros_like(problem.image), "classes": classes, "over": jnp.zeros(n, bool)}
    return DeepFoolWalk(**standing_still(problem), **memory, taken=jnp.zeros(n, jnp.int32))


@dispatch
def advance(attack: DeepFool, problem, walk, step):
    (x,), origin, ball = jax.tree.leaves(walk.x), problem.image, ball_of(attack.region)
    logits, pull = jax.vjp(lambda x: problem.logits(problem.points(x)), x)
    walk = _looked(problem, walk, logits)

    one_hot = lambda label: jax.nn.one_hot(label, logits.shape[1], dtype=logits.dtype)
    lead = one_hot(walk.classes.T) - one_hot(class_ahead(problem, logits))[None]  # (k, n, classes)
    gaps = -(lead * logits[None]).sum(-1)
    slopes = finite(jax.vmap(lambda cotangent: pull(cotangent)[0])(lead))
    lo, hi = (flat(v) for v in limits(attack.region, origin))

    def to_one(slope: jax.Array, gap: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The shortest offset to one of the planes, and its length; if it is out of reach, as much more."""
        offset, gap = onto_hyperplane(ball, flat(x), flat(slope), gap.astype(x.dtype), lo, hi), gap.astype(x.dtype)
        far = length(ball, offset) * gap / (flat(slope) * offset).sum(1)
        return offset, jnp.where(jnp.isfinite(far), far, jnp.inf)

    offsets, far = jax.vmap(to_one)(slopes, gaps)
    nearest = jax.nn.one_hot(far.argmin(0), len(far), dtype=bool).T[:, :, None]
    gone = walk.gone + jnp.where(nearest, offsets, 0).sum(0).reshape(x.shape)
    there = jnp.clip(
        origin + gone * (1 + jnp.asarray(attack.overshoot).astype(x.dtype)), lo.reshape(x.shape), hi.reshape(x.shape)
    )
    stay = along(walk.over, x)
    new = {"x": problem.points(jnp.where(stay, x, there)), "gone": jnp.where(stay, walk.gone, gone)}
    return remake(walk, {**new, "taken": jnp.where(walk.over, walk.taken, walk.taken + 1)})


@dispatch
def finish(attack: DeepFool, problem, walk):
    return _looked(problem, walk, problem.logits(walk.x))


def _looked(problem: Any, walk: DeepFoolWalk, logits: jax.Array) -> DeepFoolWalk:
    """The walk, with what is over the boundary now."""
    (x,), over = jax.tree.leaves(walk.x), is_adversarial(problem, logits)
    far = length(ball_of(problem.attack.region), x - problem.image)
    return remake(keep_nearest(problem, walk, x, over, far, walk.taken), {"over": walk.over | over})


@dispatch
def validate(attack: DeepFool):
    validate.invoke(MinimalNorm)(attack)
    ball_of(attack.region)

"""`Smallest`: any attack of a fixed radius as one that searches for the nearest adversarial point."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import concrete, remake, static
from fulmen.core.verbs import advance, attempt, begin, for_examples, length, scaled, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Margin
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_loop import AttackState
from fulmen.robust.attacks.attack_runs import with_index
from fulmen.robust.attacks.ensemble import fields_around, most_passes
from fulmen.robust.attacks.minimal_norm import MinimalNorm, clean_fields, keep_nearest
from fulmen.robust.attacks.region import ball_of
from fulmen.robust.attacks.rounding import at_least_32_bits


class Smallest(MinimalNorm):
    """A binary search for the smallest radius at which an attack succeeds, for each example.

    The first trial is at the radius of the attack's region. The radius is doubled until a trial succeeds; then the next radius
    is in the middle between the largest failure and the nearest adversarial point. Each trial runs the attack, scaled to the
    radius with its steps and starts. See `MinimalNorm` for what `perturb` and `attempt` return.

    Args:
        attack: an attack of a fixed radius, with one ball.
        trials: the number of radii to try.

    >>> region = fm.LinfBall(0.1) & fm.Box(0, 1)
    >>> fm.attacks.Smallest(fm.PGD(region, step_size=0.02, steps=10), trials=8)
    Smallest(attack=PGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), step_size=0.02, steps=10), trials=8)
    """

    needs_ball = True

    attack: Attack = None  # type: ignore[assignment]  # `__init__` requires it
    trials: int = static(minimum=1, default=10)
    steps: int = static(default_factory=lambda: 1, init=False, repr=False)

    def __init__(self, attack: Attack, trials: int = 10) -> None:
        self.__dict__.update(fields_around(Smallest, attack, objective=Margin()), trials=trials)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(attack={self.attack!r}, trials={self.trials})"

    @property
    def passes(self) -> int:
        return most_passes(self.attack)

    @property
    def length(self) -> int:
        return self.trials

    @property
    def stepped(self) -> Any:
        return remake(self, {"trials": 1})


class SmallestState(AttackState):
    """The state of `Smallest`, `(n,)` each, in units of the region's radius.

    Attributes:
        factor: the next radius to try.
        failed: the largest radius at which the attack failed.
        reached: the distance of the nearest adversarial point, infinite before the first.
    """

    factor: Any = None
    failed: Any = None
    reached: Any = None


@dispatch
def begin(attack: Smallest, problem):
    n, dtype = len(problem.batch), at_least_32_bits(problem.image.dtype)
    state = {"factor": jnp.ones(n, dtype), "failed": jnp.zeros(n, dtype), "reached": jnp.full(n, jnp.inf, dtype)}
    return SmallestState(**clean_fields(problem), **state)


@dispatch
def advance(attack: Smallest, problem, state, step):
    def trial(example: Any, row: Any, factor: Any) -> Any:
        one = for_examples(scaled(attack.attack, factor), row, len(problem.batch))
        return attempt(one, problem.system, example, problem.key, checked=True)

    # One example at a time, each in a ball of its own radius.
    rows = np.arange(len(problem.batch))
    alone, row = jax.tree.map(lambda v: jnp.expand_dims(v, 1), (with_index(problem.given), rows))
    found = jax.vmap(trial)(alone, row, state.factor)
    (x,), adversarial, ball = jax.tree.leaves(found.x), found.succeeded[:, 0], ball_of(attack.region)
    x = x[:, 0].astype(problem.image.dtype)
    distance = length(ball, x - problem.image)
    state = keep_nearest(problem, state, x, adversarial, distance, step + 1)

    share = distance.astype(state.factor.dtype) / jnp.asarray(ball.eps).astype(state.factor.dtype)
    reached = jnp.where(adversarial, jnp.minimum(state.reached, share), state.reached)
    failed = jnp.where(adversarial, state.failed, jnp.maximum(state.failed, state.factor))
    failed = jnp.where(failed < reached, failed, 0)  # an adversarial point was nearer than a failure
    factor = jnp.where(jnp.isfinite(reached), (failed + reached) / 2, 2 * state.factor)
    return remake(state, {"x": problem.points(x), "factor": factor, "failed": failed, "reached": reached})


@dispatch
def validate(attack: Smallest):
    validate.invoke(MinimalNorm)(attack)
    inner = attack.attack
    if inner.nearest:
        raise ValueError(
            f"Smallest.attack must have a fixed radius, got {inner!r}, which searches for the nearest point itself."
        )
    eps = concrete(ball_of(attack.region).eps)
    if eps is not None and not (np.ndim(eps) == 0 and eps > 0):
        raise ValueError(
            f"Smallest.attack must have a ball with one radius above 0, where the search starts, got {inner!r}."
        )


@dispatch
def validate(attack: Smallest, system, batch):
    validate.invoke(Attack, object, object)(attack, system, batch)
    validate(attack.attack, system, batch)

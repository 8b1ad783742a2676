"""How to attack, as data: `Attack`, `FGSM`, `PGD`, where they start, and the optax chain that each stands for."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import optax

from fulmen.core.batch import inputs
from fulmen.core.component import Component
from fulmen.core.fields import hyper, static
from fulmen.core.leaves import components
from fulmen.core.marks import ignores_steps
from fulmen.core.naming import briefly
from fulmen.core.tree import remake
from fulmen.core.verbs import advance, start_point, transformation, validate, views
from fulmen.dispatching.registry import MissingMethodError, dispatch
from fulmen.objectives import Objective
from fulmen.robust.attacks.input_transform import View
from fulmen.robust.attacks.region import Intersection, Region, ball_of, require_inside
from fulmen.robust.attacks.targets import Targeting, TrueLabel

__all__ = ["FGSM", "PGD", "Attack", "Clean", "Start", "Uniform"]


# Where an attack starts


class Start(Component):
    """Where an attack starts.

    **Extending.** Subclass it, and write `start_point(start: Mine, region, x, key)`.
    """

    __example__ = "fm.attacks.Uniform()"


class Clean(Start):
    """The clean input itself."""


class Uniform(Start):
    """A point drawn uniformly from the ball around the clean input."""


CLEAN, TRUE_LABEL = Clean(), TrueLabel()


def require_key(key: Any) -> None:
    """Raise where a start has no key to draw with."""
    if key is None:
        raise ValueError("key: a start drawn at random needs a random key, such as jax.random.key(0), and None came.")


@dispatch
def start_point(start: Clean, region, x, key):
    return x


@dispatch
def start_point(start: Uniform, region: Intersection, x, key):
    return start_point(start, ball_of(region), x, key)


# Attacks


class Attack(Component):
    """Steps of an optax transformation along the gradient of −loss at the input, each followed by `project`.

    Radii and step sizes are data: they may change without recompiling. A transformation is static: make it once, and use
    it again.

    Args:
        transform: the optax transformation. It sees one example at a time, and starts at the clean input.
        region: where the attack may go.
        steps: how many.
        start: where it starts.
        objective: what it makes large, of the outputs: an objective such as `fm.objectives.DLR()`. None is the system's own loss, each
            example's by itself.
        target: what it is after: `TrueLabel()`, `PredictedLabel()`, `Target(label)` or `LikelyTarget(rank)`.
        restarts: how often it is run, each time with other random draws; each example's best point counts.
        views: what is put to the system in the place of a point, such as `(fm.attacks.Diverse(),)`; the gradient is taken through it.
        samples: for systems that draw at random: the mean over so many draws of each example's own is attacked ("expectation
            over transformation", Athalye et al. 2018, arXiv:1707.07397). None attacks one draw, the same in every step.

    **Extending.** A subclass has these fields, and those that it adds. Write `transformation(attack: Mine)`; where it is no
    optax chain but goes by steps, `begin` and `advance` of `fm.attacks`; and else `perturb(attack: Mine, system, batch, key)`.

    >>> chain = optax.chain(optax.normalize_by_update_norm(), optax.trace(decay=1.0), fm.attacks.fgsm(0.02))
    >>> fm.Attack(chain, fm.LinfBall(0.1), steps=10)
    Attack(region=LinfBall(eps=0.1), steps=10)
    """

    __example__ = "fm.PGD(region, step_size=0.01, steps=40)"
    nearest: ClassVar[bool] = False  # whether it looks for the nearest adversarial point, which may be outside its region

    region: Region
    steps: int = static(minimum=1, default=1, kw_only=True)
    start: Start = dataclasses.field(default=CLEAN, kw_only=True)
    objective: Objective | None = dataclasses.field(default=None, kw_only=True)
    target: Targeting = dataclasses.field(default=TRUE_LABEL, kw_only=True)
    restarts: int = static(minimum=1, default=1, kw_only=True)
    samples: int | None = static(minimum=1, default=None, kw_only=True)
    views: tuple[View, ...] = dataclasses.field(default=(), kw_only=True)
    transform: optax.GradientTransformation | None = static(
        default=None, kw_only=True, repr=False, metadata={"example": "fm.attacks.fgsm(0.02)"}
    )

    def __init__(
        self,
        transform: optax.GradientTransformation,
        region: Region,
        *,
        steps: int = 1,
        start: Start = CLEAN,
        objective: Objective | None = None,
        target: Targeting = TRUE_LABEL,
        restarts: int = 1,
        samples: int | None = None,
        views: tuple[View, ...] = (),
    ) -> None:
        options = {"objective": objective, "target": target, "restarts": restarts, "samples": samples, "views": views}
        self.__dict__.update(region=region, steps=steps, start=start, transform=transform, mode=None, **options)

    def __repr__(self) -> str:
        return briefly(self)

    @property
    def length(self) -> int:
        """How many times it advances."""
        return self.steps

    @property
    def stepped(self) -> Any:
        """The attack as its steps see it. A chain that does not look at their number needs one program for any number."""
        methods = advance.method(self, None, None, 0), transformation.method(self), views.method(self)
        return remake(self, {"steps": 1}) if all(map(ignores_steps.on, methods)) else self


class _Stepped(Component):
    """A field that stands before the others: they come in the order of the bases."""

    region: Region
    step_size: float | None = hyper(minimum=0, default=None)


class SteepestAscent(Attack, _Stepped):
    """Attacks whose step is the steepest one in the norm of their region's ball."""


class FGSM(SteepestAscent):
    """The fast gradient sign method: one step (Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572).

    Args:
        region: where the attack may go; its one ball decides the norm.
        step_size: the size of the step; None is the ball's radius.
        start: where it starts.

    >>> fm.FGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    FGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    step_size: float | None = hyper(default=None, kw_only=True)
    steps: int = static(default_factory=lambda: 1, init=False, repr=False)


class PGD(SteepestAscent):
    """Projected gradient descent on −loss (Madry et al. 2018, arXiv:1706.06083).

    Args:
        region: where the attack may go; its one ball decides the norm.
        step_size: the size of a step, in the input's units.
        steps: how many.
        start: where it starts.

    >>> fm.PGD(fm.LinfBall(0.1), step_size=0.02, steps=10)
    PGD(region=LinfBall(eps=0.1), step_size=0.02, steps=10)
    """

    step_size: float = hyper()
    steps: int = static()
    start: Start = dataclasses.field(default=Uniform())


@dispatch
@ignores_steps
def transformation(attack: Attack):
    if attack.transform is None:
        name = type(attack).__name__
        raise MissingMethodError(f"{name} has no optax chain. Write `transformation(attack: {name})`, which returns it.")
    return attack.transform


@dispatch
@ignores_steps
def views(attack: Attack):
    return attack.views


@dispatch
@ignores_steps
def transformation(attack: SteepestAscent):
    ball = ball_of(attack.region)
    return transformation(ball, ball.eps if attack.step_size is None else attack.step_size)


@dispatch
def validate(attack: SteepestAscent):
    ball_of(attack.region)


@dispatch
def validate(attack: Attack, system, batch):
    for _, part in components(attack):
        validate(part)
    require_inside(attack.region, jax.tree.leaves(inputs(batch)))
    validate(attack.target, system, batch)

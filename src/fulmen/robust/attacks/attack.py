"""`Attack`, `FGSM` and `PGD`, their starting points, and the optax chain of each."""

import dataclasses
from typing import Any, ClassVar

import jax
import optax

from fulmen.core import Component, briefly, components, hyper, inputs, remake, static
from fulmen.core.component import map_parts
from fulmen.core.limits import check_limits
from fulmen.core.marks import ignores_steps
from fulmen.core.verbs import advance, for_examples, scaled, start_point, transformation, validate, views
from fulmen.dispatching.errors import MissingMethodError
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Objective
from fulmen.robust.attacks.input_transform import View, check_layout
from fulmen.robust.attacks.region import Intersection, Region, ball_of
from fulmen.robust.attacks.region_checks import require_inside
from fulmen.robust.attacks.targets import Targeting, TrueLabel, check_objective

# Starting points


class Start(Component):
    """The starting point of an attack.

    **Extending.** Subclass it, and write `start_point(start: Mine, region, x, key)`.
    """

    __example__ = "fm.attacks.Uniform()"


class Clean(Start):
    """The clean input."""


class Uniform(Start):
    """A point drawn uniformly from the ball around the clean input."""


CLEAN, TRUE_LABEL = Clean(), TrueLabel()


def require_key(key: Any) -> None:
    """Raise if a random start has no key."""
    if key is None:
        raise ValueError("key: a random start needs a random key, got None. Pass jax.random.key(0).")


@dispatch
def start_point(start: Clean, region, x, key):
    return x


@dispatch
def start_point(start: Uniform, region: Intersection, x, key):
    return start_point(start, ball_of(region), x, key)


# Attacks


class Attack(Component):
    """Steps of an optax transformation along the gradient of −loss with respect to the input, each followed by `project`.

    Radii and step sizes are data: they can change without recompiling. A transformation is static: create it once and reuse
    it.

    Args:
        transform: the optax transformation. It gets one example at a time, and is initialised with the clean input.
        region: the region of allowed points.
        steps: the number of steps.
        start: the starting point.
        objective: the objective to maximise, such as `fm.objectives.DLR()`. None is the system's own loss, per example.
        target: the goal: `TrueLabel()`, `PredictedLabel()`, `Target(label)` or `LikelyTarget(rank)`.
        restarts: the number of runs, with different random draws; each example's best point is returned.
        views: transforms of the input before the system, such as `(fm.attacks.Diverse(),)`; the gradient is taken through
            them.
        samples: for random systems: the attack maximises the mean over this number of draws per example ("expectation over
            transformation", Athalye et al. 2018, arXiv:1707.07397). None attacks one draw, the same in every step.

    **Extending.** A subclass has these fields and its own. Write `transformation(attack: Mine)`; for an iterative attack
    that is not an optax chain, `begin` and `advance` of `fm.attacks`; for any other, `perturb(attack: Mine, system, batch,
    key)`. Set `uses_gradients = False` if the steps do not differentiate the system: then they loop inside one program.

    >>> chain = optax.chain(optax.normalize_by_update_norm(), optax.trace(decay=1.0), fm.attacks.fgsm(0.02))
    >>> fm.Attack(chain, fm.LinfBall(0.1), steps=10)
    Attack(region=LinfBall(eps=0.1), steps=10)
    """

    __example__ = "fm.PGD(region, step_size=0.01, steps=40)"
    needs_ball: ClassVar[bool] = False  # whether its region must contain one ball
    norms: ClassVar[tuple[float, ...] | None] = None  # of the balls that it supports; None does not limit them
    finishes_all: ClassVar[bool] = False  # whether `finish` improves examples that are done
    uses_gradients: ClassVar[bool] = True  # whether its steps differentiate the system
    nearest: ClassVar[bool] = False  # whether it searches for the nearest adversarial point, possibly outside its region

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
        self.__post_init__()

    def __post_init__(self) -> None:
        # The commonest mistake, a number instead of a region, is an error where it is made.
        if not isinstance(self.region, Region):
            check_limits(self)

    def __repr__(self) -> str:
        return briefly(self)

    @property
    def length(self) -> int:
        """The number of calls of `advance`."""
        return self.steps

    @property
    def passes(self) -> int:
        """The forward and backward passes of a step for one example, at most."""
        return (1 + self.uses_gradients + bool(views(self))) * (self.samples or 1)

    @property
    def last_passes(self) -> int:
        """The passes after the last step; a long attack may take one more step instead, of one pass more."""
        return 1

    @property
    def stepped(self) -> Any:
        """The attack as its steps see it: a chain that does not read `steps` needs one program for any number of them."""
        methods = advance.method(self, None, None, 0), transformation.method(self), views.method(self)
        return remake(self, {"steps": 1}) if all(map(ignores_steps.on, methods)) else self


class _StepSize(Component):
    """Declares `step_size` right after `region`: fields are ordered by the base classes."""

    region: Region
    step_size: float | None = hyper(minimum=0, default=None)


class SteepestAscent(Attack, _StepSize):
    """Attacks that take the steepest step in the norm of their region's ball."""

    needs_ball = True

    @property
    def default_step(self) -> Any:
        """The size of a step if `step_size` is None; it may read `steps` only with a new method of `transformation`."""
        return ball_of(self.region).eps

    @property
    def step_length(self) -> Any:
        return self.default_step if self.step_size is None else self.step_size


class FGSM(SteepestAscent):
    """The fast gradient sign method: one step (Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572).

    Args:
        region: the region of allowed points; its one ball defines the norm.
        step_size: the size of the step; None is the ball's radius.
        start: the starting point.

    >>> fm.FGSM(fm.LinfBall(0.1) & fm.Box(0, 1))
    FGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """

    step_size: float | None = hyper(default=None, kw_only=True)
    steps: int = static(default_factory=lambda: 1, init=False, repr=False)


class PGD(SteepestAscent):
    """Projected gradient descent on −loss (Madry et al. 2018, arXiv:1706.06083).

    Args:
        region: the region of allowed points; its one ball defines the norm. In an `L1Ball` a step moves a twentieth of the
            coordinates, those of largest gradient (see `SLIDE`).
        step_size: the size of a step, in the input's units.
        steps: the number of steps.
        start: the starting point.

    >>> fm.PGD(fm.LinfBall(0.1), step_size=0.02, steps=10)
    PGD(region=LinfBall(eps=0.1), step_size=0.02, steps=10)
    """

    step_size: float = hyper()  # type: ignore[assignment]  # narrower than the base class's
    steps: int = static()
    start: Start = dataclasses.field(default=Uniform())


@dispatch
@ignores_steps
def transformation(attack: Attack):
    if attack.transform is None:
        name = type(attack).__name__
        if advance.method(attack, None, None, 0).members[0] != (Attack,):
            raise MissingMethodError(
                f"{name} has a method of `advance`, and none of `begin`. Write `begin(attack: {name}, problem)`, which returns the "
                "first state: fm.attacks.AttackState(**fm.attacks.initial_fields(problem, problem.origin))."
            )
        raise MissingMethodError(
            f"{name} has no optax chain. Write `transformation(attack: {name})`, which returns it, or `begin` and `advance`."
        )
    return attack.transform


@dispatch
@ignores_steps
def views(attack: Attack):
    return attack.views


@dispatch
@ignores_steps
def transformation(attack: SteepestAscent):
    return transformation(ball_of(attack.region), attack.step_length)


@dispatch
def scaled(attack: Attack, factor):
    changes = {name: scaled(value, factor) for name, value in vars(attack).items()}
    size = getattr(attack, "step_size", None)
    if size is not None and not attack.nearest:  # the search for the nearest point does not depend on the radius
        changes["step_size"] = size * factor
    return remake(attack, changes)


@dispatch
def for_examples(attack: Attack, rows, n):
    return map_parts(lambda part, _: for_examples(part, rows, n), attack)


@dispatch
def validate(attack: Attack):
    norm = ball_of(attack.region).norm_order if attack.needs_ball or attack.norms else None
    if attack.norms is not None and norm not in attack.norms:
        names = " or an ".join(f"L{norm:g}Ball" for norm in attack.norms)
        raise ValueError(f"{type(attack).__name__}, region: must contain an {names}, got {attack.region!r}.")


@dispatch
def validate(attack: SteepestAscent):
    validate.invoke(Attack)(attack)
    if attack.restarts > 1 and type(attack.start) is Clean and not views(attack) and attack.samples is None:
        name = type(attack).__name__
        raise ValueError(
            f"{name}.restarts must be 1, got {attack.restarts}: without a random start all runs are the same. Write "
            f"{name}(…, start=fm.attacks.Uniform(), restarts={attack.restarts})."
        )


@dispatch
def validate(attack: Attack, system, batch):
    for _, part in components(attack):
        validate(part)
    require_inside(attack.region, jax.tree.leaves(inputs(batch)))
    for x in jax.tree.leaves(inputs(batch)):
        check_layout(attack, system, x)
    validate(attack.target, system, batch)
    check_objective(attack, system, batch)

"""Optimizers as values, and what any form of optimizer becomes once the run is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from fulmen.core.mode import Plan
from fulmen.core.tree import Tree, short, static
from fulmen.core.verbs import configure_optimizers
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers.rates import rate_in
from fulmen.schedules import Schedule
from fulmen.schedules.span import span

__all__ = ["Built", "Enclosing", "Optimizer", "build", "frozen", "of_plan"]

frozen = optax.set_to_zero()
"""As an optimizer: these parameters stay as they are."""


class Built(NamedTuple):
    """An optimizer for a known run: the transformation, its learning rate, and when that comes to its end.

    The rate is a number, a function of the moves done, or None where it is not known; the end, in moves, None where there is
    none. It moves in the last of `every` so many steps.
    """

    transformation: optax.GradientTransformationExtraArgs
    rate: Any
    end: int | None
    every: int = 1


class Optimizer(Tree):
    """An optax constructor with its arguments, as a value: two that were made alike are alike to jit.

    Args:
        constructor: such as `optax.adam`.
        lr: a number, an optax schedule, or a function of the plan.
        **options: the constructor's keywords. Floats are data and may change without recompiling; the rest is static.

    Raises:
        TypeError: for text or several rates in the place of one.

    >>> fm.optimizers.Optimizer(optax.adam, 1e-3, b1=0.5)
    adam(0.001, b1=0.5)
    """

    constructor: Callable[..., Any]
    lr: float | None
    schedule: Schedule | None
    function: Callable[..., Any] | None
    numbers: dict[str, float]
    settings: tuple[tuple[str, Any], ...] = static()

    def __init__(self, constructor: Callable[..., Any], lr: Any, **options: Any) -> None:
        _require_rate(lr)
        numbers = {k: v for k, v in options.items() if isinstance(v, float | jax.Array)}
        self.__dict__.update(
            constructor=constructor,
            lr=None if callable(lr) else lr,
            schedule=lr if isinstance(lr, Schedule) else None,
            function=lr if callable(lr) and not isinstance(lr, Schedule) else None,
            numbers=numbers,
            settings=tuple((k, v) for k, v in options.items() if k not in numbers),
        )

    def rate(self, plan: Plan) -> Any:
        """The learning rate: a number or an optax schedule."""
        if self.lr is not None:  # first, so that a number put in a schedule's place counts
            return self.lr
        if self.schedule is not None:
            return self.schedule(plan)
        assert self.function is not None
        return self.function(plan) if of_plan(self.function) else self.function

    def span(self, plan: Plan) -> int | None:
        """After how many steps the learning rate has come to its end; None where it has none, or it cannot be known."""
        if self.lr is None and self.schedule is not None:
            return self.schedule.span(plan)
        rate = self.rate(plan)
        known = span(rate)
        return plan.total_steps if known is None and callable(rate) and rate is not self.function else known

    def build(self, plan: Plan) -> optax.GradientTransformation:
        """The transformation."""
        return self.constructor(self.rate(plan), **self.numbers, **dict(self.settings))

    def __repr__(self) -> str:
        rate = next(v for v in (self.lr, self.schedule, self.function) if v is not None)
        options = {**self.numbers, **dict(self.settings)}
        shown = [str(getattr(rate, "__name__", rate))]
        shown += [f"{k}={getattr(v, '__name__', v)}" for k, v in options.items()]
        return f"{getattr(self.constructor, '__name__', self.constructor)}({', '.join(shown)})"


class Enclosing(Tree):
    """An optimizer around another one, such as `plateau`; what is inside may be of any form.

    Subclass it with more fields and `built(self, system, plan)`.
    """

    optimizer: optax.GradientTransformation

    def built(self, system: Any, plan: Plan) -> Built:
        """What it becomes for a component and the run ahead; `build(self.optimizer, system, plan)` is what is inside."""
        raise NotImplementedError


def _require_rate(lr: Any) -> None:
    """Raise for what can be no learning rate: text, and several of them where one was expected."""
    if not isinstance(lr, str | bytes | Mapping | list | tuple | set):
        return
    instead = "lr=1e-3 or lr=fm.cosine(1e-3)"
    if isinstance(lr, Mapping):
        parts = ", ".join(f"{key!r}: fm.optimizers.Optimizer(optax.adam, {short(rate)})" for key, rate in lr.items())
        instead = f"for each part its own optimizer, `optimizer={{{parts}}}` without `lr`"
    elif isinstance(lr, list | tuple):
        instead = "for each member of a fm.Population its own, `optimizer=optax.adam, lr=[1e-3, 1e-4]` in `setup` or `fit`"
    raise TypeError(f"lr: a number or a schedule was expected, and {short(lr)} came: {instead}.")


def of_plan(function: Callable[..., Any]) -> bool:
    """Whether a callable is a function of the plan: its first argument is called `plan` or annotated so."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except (StopIteration, TypeError, ValueError):
        return False
    return first.name == "plan" or first.annotation in (Plan, "Plan", "fm.Plan")


@dispatch
def configure_optimizers(component: object):
    return None


@dispatch
def configure_optimizers(component: object, constructor, lr, **options):
    _require_options(constructor, options)
    return Optimizer(constructor, lr, **options)


def _require_options(constructor: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise for keywords that a constructor does not have; those of `setup` and `fit` have been taken out before."""
    theirs = inspect.signature(constructor).parameters
    if any(p.kind is p.VAR_KEYWORD for p in theirs.values()):
        return
    for name in options:
        if name not in theirs:
            inside = ", ".join(list(theirs)[1:]) or "none"
            instead = "; a classifier takes them itself: fm.Classifier(model, metrics=…)" if name == "metrics" else ""
            raise TypeError(
                f"{name} is no option of `fit` or `setup`, nor of {getattr(constructor, '__name__', constructor)}, whose options "
                f"are: {inside}{instead}."
            )


def build(spec: Any, system: Any, plan: Plan, path: str = "") -> Built:
    """What an optimizer of any form becomes.

    Args:
        spec: the optimizer.
        system: the component that it is for, or in which its parameters lie.
        plan: the run ahead.
        path: where it was given, for errors.

    Raises:
        TypeError: for something that is no optimizer.
    """
    if callable(spec) and not isinstance(spec, tuple) and of_plan(spec):
        return build(spec(plan), system, plan, path)
    if isinstance(spec, Enclosing):
        return spec.built(system, plan)
    if isinstance(spec, Optimizer):
        return Built(optax.with_extra_args_support(spec.build(plan)), spec.rate(plan), spec.span(plan))
    if isinstance(spec, optax.MultiSteps):  # it has the two functions of a transformation, and is none
        spec = spec.gradient_transformation()
    if isinstance(spec, optax.GradientTransformation):
        rate = rate_in(spec)
        return Built(optax.with_extra_args_support(spec), rate, span(rate))
    where = f" for {path!r}" if path else ""
    if callable(spec):
        raise TypeError(
            f"the optimizer {getattr(spec, '__name__', spec)}{where} needs a learning rate: give `lr=` beside `optimizer=`, or "
            "a transformation such as `optax.adam(1e-3)`, or a function whose argument is called `plan`."
        )
    raise TypeError(
        "an optimizer is an optax transformation, a constructor with `lr=`, a function of the plan, `fm.frozen`, or a dict of "
        f"them by path; {type(spec).__name__} came{where}."
    )

"""Optimizers as values, and what any form of optimizer becomes once the run is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fulmen.core.component import Component
from fulmen.core.fields import static
from fulmen.core.mode import Plan
from fulmen.core.schedule import Schedule
from fulmen.core.tree import Tree, short
from fulmen.core.verbs import configure_optimizers
from fulmen.dispatching.registry import dispatch
from fulmen.schedules.schedule_lengths import as_schedule, of_plan

__all__ = ["Built", "Enclosing", "FrozenMarker", "Optimizer", "build", "frozen", "is_constructor"]


class FrozenMarker(optax.GradientTransformation):
    """The type of `frozen`."""

    __slots__ = ()

    def __call__(self, component: Any) -> Any:
        raise TypeError(
            "`fm.frozen` is an optimizer (`optimizer={'encoder': fm.frozen}`); to freeze a component write "
            f"`fm.Frozen({type(component).__name__}(...))`."
        )

    def __repr__(self) -> str:
        return "fm.frozen"


def _no_update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """As in `optax.set_to_zero`, whose function is local to it and cannot be pickled with a state."""
    del params
    return jax.tree.map(jnp.zeros_like, updates), state


frozen = FrozenMarker(optax.set_to_zero().init, _no_update)
"""As an optimizer: these parameters stay as they are."""


class Built(NamedTuple):
    """An optimizer for a known run.

    Attributes:
        transformation: the optax transformation.
        rate: from the optimizer's state before and after an update to the learning rate of that update, or None if it is not
            known.
        end: after how many updates the learning rate no longer changes; None if it has no end or that is not known.
        every: it updates in the last of every so many steps.
    """

    transformation: optax.GradientTransformationExtraArgs
    rate: Callable[[Any, Any], Any]
    end: int | None = None
    every: int = 1

    def followed_by(self, last: optax.GradientTransformation, scale: Callable[[Any], Any] | None = None) -> Built:
        """The same with another transformation after it, and the learning rate times `scale` of that one's state."""

        def rate(before: Any, after: Any) -> Any:
            inside = self.rate(before[0], after[0])
            return inside if inside is None or scale is None else inside * scale(after[1])

        return self._replace(transformation=optax.chain(self.transformation, last), rate=rate)


class Optimizer(Tree):
    """An optax constructor with its arguments, as a value: two that were made alike are alike to jit.

    Args:
        constructor: such as `optax.adam`.
        lr: a number, a function of the step such as an optax schedule, or one of the plan: a `fm.schedules.Schedule` such as
            `fm.cosine(1e-3)`, or a function whose parameter is annotated `plan: fm.Plan`.
        **options: the constructor's keywords. Floats are data and may change without recompiling; the rest is static.

    Raises:
        TypeError: if `lr` is text or several rates.

    >>> fm.optimizers.Optimizer(optax.adam, 1e-3, b1=0.5)
    adam(0.001, b1=0.5)
    """

    constructor: Callable[..., Any]
    lr: float | None
    schedule: Schedule | None
    numbers: dict[str, float]
    settings: tuple[tuple[str, Any], ...] = static()

    def __init__(self, constructor: Callable[..., Any], lr: Any, **options: Any) -> None:
        _require_rate(lr)
        numbers = {k: v for k, v in options.items() if isinstance(v, float | jax.Array)}
        self.__dict__.update(
            constructor=constructor,
            lr=None if callable(lr) else lr,
            schedule=as_schedule(lr) if callable(lr) else None,
            numbers=numbers,
            settings=tuple((k, v) for k, v in options.items() if k not in numbers),
        )

    def built(self, system: Any, plan: Plan) -> Built:
        """The transformation for a run."""
        del system

        def make(rate: Any) -> optax.GradientTransformationExtraArgs:
            options = {**self.numbers, **dict(self.settings)}
            return optax.with_extra_args_support(self.constructor(rate, **options))

        if self.schedule is None:
            return Built(make(self.lr), lambda before, after: self.lr)
        # A number in the place of a schedule's None counts, with a state of the same structure.
        schedule = self.schedule(plan) if self.lr is None else lambda step: self.lr
        end = self.schedule.span(plan) if self.lr is None else None
        return Built(scheduled(make, schedule), lambda before, after: schedule(before.count), end)

    def __repr__(self) -> str:
        options = {**self.numbers, **dict(self.settings)}
        shown = [str(self.schedule if self.lr is None else self.lr)]
        shown += [f"{k}={getattr(v, '__name__', v)}" for k, v in options.items()]
        return f"{getattr(self.constructor, '__name__', self.constructor)}({', '.join(shown)})"


class ScheduledState(NamedTuple):
    """How many updates were made, and the state of the transformation."""

    count: Any
    inner: Any


def scheduled(
    make: Callable[[Any], optax.GradientTransformationExtraArgs], schedule: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """`make(rate)`, with the rate of a schedule that counts the updates from outside.

    A constructor need not count as its caller does: `optax.MultiSteps` counts one update in every k.
    """

    def at(count: Any, params: Any) -> optax.GradientTransformationExtraArgs:
        # In the parameters' real type, so that the updates have the type that they have with a number.
        return make(jnp.asarray(schedule(count), jnp.finfo(optax.tree.dtype(params, "highest")).dtype))

    def init(params: Any) -> Any:
        count = jnp.zeros((), jnp.int32)
        return ScheduledState(count, at(count, params).init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        changes, inner = at(state.count, params).update(updates, state.inner, params, **extra)
        return changes, ScheduledState(optax.safe_increment(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


class Enclosing(Tree):
    """An optimizer around another one, such as `plateau`; the inner one may be of any form.

    Subclass it with more fields and `built(self, system, plan)`.
    """

    optimizer: optax.GradientTransformation

    def built(self, system: Any, plan: Plan) -> Built:
        """The transformation for a component and a run; `build(self.optimizer, system, plan)` is the inner one."""
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
    """The transformation that an optimizer of any form becomes.

    Args:
        spec: the optimizer.
        system: the component that it is for, or that contains its parameters.
        plan: the run ahead.
        path: where it was given, for errors.

    Raises:
        TypeError: for anything but an optimizer.
    """
    refuse_component(spec)
    if of_plan(spec):
        return build(spec(plan), system, plan, path)
    if isinstance(spec, Enclosing | Optimizer):
        return spec.built(system, plan)
    if isinstance(spec, optax.MultiSteps):  # it has the two functions of a transformation, and is none
        spec = spec.gradient_transformation()
    if isinstance(spec, optax.GradientTransformation):
        return Built(optax.with_extra_args_support(spec), lambda before, after: injected_rate(after))
    where = f" for {path!r}" if path else ""
    if callable(spec):
        raise TypeError(
            f"the optimizer {getattr(spec, '__name__', spec)}{where} needs a learning rate: give `lr=` beside `optimizer=`, or "
            "a transformation such as `optax.adam(1e-3)`. A function of the plan is annotated: `def optimizer(plan: fm.Plan)`."
        )
    raise TypeError(
        "an optimizer must be an optax transformation, a constructor with `lr=`, a function `(plan: fm.Plan)`, `fm.frozen`, or a "
        f"dict of them by path, got {type(spec).__name__}{where}."
    )


def is_constructor(spec: Any) -> bool:
    """Whether an optimizer is a constructor that needs a learning rate."""
    refuse_component(spec)
    return callable(spec) and not isinstance(spec, tuple) and not of_plan(spec)


def refuse_component(spec: Any) -> None:
    """Raise for a component where an optimizer must be given, such as `fm.Frozen` for `fm.frozen`."""
    kind = spec if isinstance(spec, type) else type(spec)
    if issubclass(kind, Component):
        raise TypeError(
            f"{kind.__name__} is a component, not an optimizer. To keep parameters as they are: `optimizer={{path: fm.frozen}}`, or "
            "wrap their component in `fm.Frozen(component)` and give no optimizer for it."
        )


def injected_rate(state: Any) -> Any:
    """The learning rate that `optax.inject_hyperparams` keeps in its state, or None."""
    for node in jax.tree.leaves(state, is_leaf=lambda v: hasattr(v, "hyperparams")):
        if hasattr(node, "hyperparams"):
            return node.hyperparams.get("learning_rate")
    return None

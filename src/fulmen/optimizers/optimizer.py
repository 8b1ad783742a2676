"""Optimizers as values, and `build`, which makes the transformation for a run from an optimizer of any form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import Component, Plan, Schedule, Tree, concrete, short, static
from fulmen.core.verbs import configure_optimizers
from fulmen.dispatching.registry import dispatch
from fulmen.schedules.schedule_lengths import as_schedule, is_plan_function


class FrozenMarker(optax.GradientTransformation):
    """The type of `frozen`."""

    __slots__ = ()

    def __call__(self, component: Any = None, *args: Any) -> Any:
        part = "part" if component is None else f"{type(component).__name__}(...)"
        raise TypeError(
            "`fm.frozen` is an optimizer (`optimizer={'encoder': fm.frozen}`); to freeze a component, write "
            f"`fm.Frozen({part})`."
        )

    def __repr__(self) -> str:
        return "fm.frozen"


def _no_update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """As `optax.set_to_zero`, whose function is local and cannot be pickled with a state."""
    return jax.tree.map(jnp.zeros_like, updates), state


frozen = FrozenMarker(optax.set_to_zero().init, _no_update)
"""An optimizer that leaves its parameters unchanged."""


class Built(NamedTuple):
    """An optimizer for a run.

    Attributes:
        transformation: the optax transformation.
        rate: from the optimizer's state before and after an update to the learning rate of that update, or None if unknown.
        end: number of updates after which the learning rate is constant; None if there is none or it is unknown.
        every: it updates in the last of every so many steps.
    """

    transformation: optax.GradientTransformationExtraArgs
    rate: Callable[[Any, Any], Any]
    end: int | None = None
    every: int = 1

    def followed_by(self, last: optax.GradientTransformation, scale: Callable[[Any], Any] | None = None) -> Built:
        """Chain another transformation, whose state determines a factor of the learning rate by `scale`."""

        def rate(before: Any, after: Any) -> Any:
            first = self.rate(before[0], after[0])
            return first if first is None or scale is None else first * scale(after[1])

        return self._replace(transformation=optax.chain(self.transformation, last), rate=rate)


class Optimizer(Tree):
    """An optax constructor with its arguments, as a value: equal ones share compiled programs.

    Args:
        constructor: such as `optax.adam`.
        lr: a number, a function of the step such as an optax schedule, or a function of the plan: a `fm.schedules.Schedule`
            such as `fm.cosine(1e-3)`, or a function whose parameter is annotated `plan: fm.Plan`.
        **options: keywords of the constructor. Floats are data and may change without recompiling; the others are static.

    Raises:
        TypeError: if `lr` is a string or a container.

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
        numbers: Any = {k: v for k, v in options.items() if isinstance(v, float | jax.Array)}
        settings = tuple((k, v) for k, v in options.items() if k not in numbers)
        self.constructor, self.numbers, self.settings = constructor, numbers, settings
        self.lr, self.schedule = (None, as_schedule(lr)) if callable(lr) else (lr, None)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of the constructor."""
        return {**self.numbers, **dict(self.settings)}

    def built(self, system: Any, plan: Plan) -> Built:
        """The transformation for a run."""

        def make(rate: Any) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(self.constructor(rate, **self.options))

        if self.schedule is None:
            return Built(make(self.lr), lambda before, after: self.lr)
        # If `lr` was replaced by a number, it overrides the schedule, with an optimizer state of the same structure.
        schedule = self.schedule(plan) if self.lr is None else lambda step: self.lr
        end = self.schedule.span(plan) if self.lr is None else None
        return Built(scheduled(make, schedule), lambda before, after: schedule(before.count), end)

    def __repr__(self) -> str:
        arguments = [str(self.schedule if self.lr is None else self.lr)]
        arguments += [f"{k}={getattr(v, '__name__', v)}" for k, v in self.options.items()]
        return f"{getattr(self.constructor, '__name__', self.constructor)}({', '.join(arguments)})"


class ScheduledState(NamedTuple):
    """The number of updates, and the state of the transformation."""

    count: Any
    inner: Any


def scheduled(
    make: Callable[[Any], optax.GradientTransformationExtraArgs], schedule: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """`make(rate)`, with the rate of a schedule at the number of updates so far.

    The count is not left to the constructor, since `optax.MultiSteps` counts only every k-th update.
    """

    def at(count: Any, params: Any) -> optax.GradientTransformationExtraArgs:
        # In the parameters' real type, so that updates have the same type as with a number.
        return make(jnp.asarray(schedule(count), jnp.finfo(optax.tree.dtype(params, "highest")).dtype))

    def init(params: Any) -> Any:
        count = jnp.zeros((), jnp.int32)
        return ScheduledState(count, at(count, params).init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        changes, inner = at(state.count, params).update(updates, state.inner, params, **extra)
        return changes, ScheduledState(optax.safe_increment(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


class Enclosing(Tree):
    """An optimizer that wraps another one, of any form, such as `plateau`.

    **Extending.** Subclass it with more fields and `built(self, system, plan)`.
    """

    optimizer: optax.GradientTransformation

    def built(self, system: Any, plan: Plan) -> Built:
        """The transformation for a component and a run; that of the inner one is `build(self.optimizer, system, plan)`."""
        raise NotImplementedError


def _require_rate(lr: Any) -> None:
    """Raise for a string, a container or an optimizer as a learning rate, and for a negative or infinite one."""
    array = concrete(lr)
    if array is not None and not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"lr must be finite and not negative, got {short(lr)}; write lr=1e-3, for example.")
    if not isinstance(lr, str | bytes | Mapping | list | tuple | set | Enclosing):
        return
    instead = "lr=1e-3 or lr=fm.cosine(1e-3)"
    if isinstance(lr, Enclosing):
        instead = "optimizer=fm.plateau(optax.adam), lr=1e-2"
    elif isinstance(lr, Mapping):
        parts = ", ".join(f"{key!r}: fm.optimizers.Optimizer(optax.adam, {short(rate)})" for key, rate in lr.items())
        instead = f"for one optimizer per part, `optimizer={{{parts}}}` without `lr`"
    elif isinstance(lr, list | tuple):
        instead = "for one rate per member of a fm.Population, `optimizer=optax.adam, lr=[1e-3, 1e-4]` in `setup` or `fit`"
    raise TypeError(f"lr must be a number or a schedule, got {short(lr)}: write {instead}.")


@dispatch
def configure_optimizers(component: object):
    return None


@dispatch
def configure_optimizers(component: object, constructor, lr, **options):
    _require_options(constructor, options)
    return Optimizer(constructor, lr, **options)


def _require_options(constructor: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise for keywords that a constructor does not have; those of `setup` and `fit` are not among them."""
    known = inspect.signature(constructor).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for name in options:
        if name not in known:
            raise TypeError(
                f"{name} is no option of `fit` or `setup`, nor of {getattr(constructor, '__name__', constructor)}, whose options "
                f"are: {', '.join(list(known)[1:]) or 'none'}."
            )


def build(spec: Any, system: Any, plan: Plan, path: str = "") -> Built:
    """The transformation for a run of an optimizer of any form, whose parameters are in `system`; `path` is its key in a dict.

    Raises:
        TypeError: for anything but an optimizer.
    """
    refuse_component(spec)
    if is_plan_function(spec):
        return build(spec(plan), system, plan, path)
    if isinstance(spec, Enclosing | Optimizer):
        return spec.built(system, plan)
    if isinstance(spec, optax.MultiSteps):  # not a GradientTransformation, though it has its functions
        spec = spec.gradient_transformation()
    if isinstance(spec, optax.GradientTransformation):
        return Built(optax.with_extra_args_support(spec), lambda before, after: injected_rate(after))
    where = f" for {path!r}" if path else ""
    if callable(spec):
        raise TypeError(
            f"the optimizer {getattr(spec, '__name__', spec)}{where} needs a learning rate: write lr=1e-3 in `setup` or `fit`, or give a "
            f"transformation such as `optax.adam(1e-3)`.{_plan_hint(spec)}"
        )
    raise TypeError(
        "an optimizer must be an optax transformation, a constructor with `lr=`, a function `(plan: fm.Plan)`, `fm.frozen`, or a "
        f"dict of them by path, got {type(spec).__name__}{where}."
    )


def _plan_hint(constructor: Callable[..., Any]) -> str:
    """What to write if a constructor seems to be a function of the plan."""
    try:
        first = next(iter(inspect.signature(constructor).parameters), "")
    except (TypeError, ValueError):
        return ""
    return " Annotate a function of the plan: `def optimizer(plan: fm.Plan)`." if first == "plan" else ""


def is_constructor(spec: Any) -> bool:
    """Whether an optimizer is a constructor that needs a learning rate."""
    refuse_component(spec)
    return callable(spec) and not isinstance(spec, tuple) and not is_plan_function(spec)


def refuse_component(spec: Any) -> None:
    """Raise for a component where an optimizer must be given, such as `fm.Frozen` for `fm.frozen`."""
    kind = spec if isinstance(spec, type) else type(spec)
    if issubclass(kind, Component):
        raise TypeError(
            f"{kind.__name__} is a component, not an optimizer. To freeze parameters, write `optimizer={{path: fm.frozen}}`, or wrap "
            "their component, `fm.Frozen(component)`, without an optimizer."
        )


def injected_rate(state: Any) -> Any:
    """The learning rate that `optax.inject_hyperparams` keeps in its state, or None."""
    nodes = jax.tree.leaves(state, is_leaf=lambda v: hasattr(v, "hyperparams"))
    return next((node.hyperparams.get("learning_rate") for node in nodes if hasattr(node, "hyperparams")), None)

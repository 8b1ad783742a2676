"""Whose optimizer: how each parameter gets its transformation, and optimizers as values."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from fulmen.component import Buffer, Component, Parameter
from fulmen.dispatch import dispatch
from fulmen.leaves import PARAMETER, leaves
from fulmen.mode import Plan
from fulmen.schedules import Schedule
from fulmen.tree import Tree, children, static
from fulmen.verbs import configure_optimizers

__all__ = ["Group", "Optimizer", "frozen", "groups"]

frozen = optax.set_to_zero()
"""As an optimizer: these parameters stay as they are."""


class Optimizer(Tree):
    """An optax constructor with its arguments, as a value: two that were made alike are alike to jit.

    Args:
        constructor: such as `optax.adam`.
        lr: a number, an optax schedule, or a function of the plan.
        **options: the constructor's keywords. Floats are data and may change without recompiling; the rest is static.

    >>> fm.Optimizer(optax.adam, 1e-3, b1=0.5)
    adam(0.001, b1=0.5)
    """

    constructor: Callable[..., Any]
    lr: float | None
    schedule: Schedule | None
    function: Callable[..., Any] | None
    numbers: dict[str, float]
    settings: tuple[tuple[str, Any], ...] = static()

    def __init__(self, constructor: Callable[..., Any], lr: Any, **options: Any) -> None:
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

    def build(self, plan: Plan) -> optax.GradientTransformation:
        """The transformation."""
        return self.constructor(self.rate(plan), **self.numbers, **dict(self.settings))

    def __repr__(self) -> str:
        rate = next(v for v in (self.lr, self.schedule, self.function) if v is not None)
        options = {**self.numbers, **dict(self.settings)}
        shown = [str(getattr(rate, "__name__", rate)), *(f"{k}={v}" for k, v in options.items())]
        return f"{getattr(self.constructor, '__name__', self.constructor)}({', '.join(shown)})"


def of_plan(function: Callable[..., Any]) -> bool:
    """Whether a callable is a function of the plan: its first argument is called `plan` or annotated so."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()))
    except (StopIteration, TypeError, ValueError):
        return False
    return first.name == "plan" or first.annotation in (Plan, "Plan", "fm.Plan")


@dispatch
def configure_optimizers(component):
    return None


@dispatch
def configure_optimizers(component, constructor, lr, **options):
    return Optimizer(constructor, lr, **options)


@dataclasses.dataclass(eq=False)
class Group:
    """Parameters under one transformation.

    Attributes:
        path: of the component that the optimizer was configured for; empty for the root.
        transformation: the optax transformation.
        rate: the learning rate, a number or a schedule, or None where it is not known.
        members: the places of its parameters among the system's leaves.
    """

    path: str
    transformation: optax.GradientTransformationExtraArgs
    rate: Any
    members: list[int] = dataclasses.field(default_factory=list)

    def select(self, tree: Any, like: Any) -> Any:
        """The tree with all but the group's leaves left out, in the structure of `like`."""
        structure = jax.tree.structure(like)
        members = set(self.members)
        values = structure.flatten_up_to(tree)
        return structure.unflatten([v if i in members else None for i, v in enumerate(values)])

    def rate_at(self, step: Any, state: Any) -> Any:
        """The learning rate at a step, or None where it cannot be known."""
        rate = self.rate if self.rate is not None else _rate_in(self.transformation, state)
        rate = rate(step) if callable(rate) else rate
        for node in jax.tree.leaves(state, is_leaf=lambda v: hasattr(v, "plateau_count")):
            if rate is not None and hasattr(node, "plateau_count"):
                rate = rate * node.scale  # what reduces the rate on a plateau keeps it in its state
        return rate


def _rate_in(transformation: Any, state: Any) -> Any:
    """The learning rate of a transformation made by hand: from its state, or else from what its functions close over."""
    for node in jax.tree.leaves(state, is_leaf=lambda v: hasattr(v, "hyperparams")):
        if hasattr(node, "hyperparams"):
            return node.hyperparams.get("learning_rate")
    seen, queue = set(), [getattr(transformation, "update", None)]
    while queue:
        function = queue.pop()
        if id(function) in seen or not callable(function):
            continue
        seen.add(id(function))
        name = getattr(function, "__qualname__", "")
        cells = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
        if name.startswith("scale.<locals>") and isinstance(cells.get("step_size"), float):
            return -cells["step_size"]
        if name.startswith("scale_by_schedule.<locals>") and callable(cells.get("step_size_fn")):
            schedule = cells["step_size_fn"]
            return lambda step: -schedule(step)
        for value in cells.values():
            queue += value if isinstance(value, list | tuple) else [value]
    return None


def groups(system: Any, optimizer: Any, plan: Plan) -> list[Group]:
    """Which transformation each parameter is under.

    An optimizer given by hand beats every method; then a dict from the parent, then a component's own method, then what it
    inherits. All parameters that inherit one form one group.

    Args:
        system: the component.
        optimizer: what was given by hand, or None.
        plan: the run ahead.

    Raises:
        ValueError: for a parameter without an optimizer, or a field that does not exist.
        TypeError: for something that is no optimizer.
    """
    owner: dict[str, Group | None] = {}
    _assign(system, "", optimizer, None, None, plan, owner)
    found: dict[int, Group] = {}
    for i, leaf in enumerate(leaves(system)):
        if leaf.role == PARAMETER:
            group = owner[max((path for path in owner if _above(path, leaf.path)), key=len)]
            if group is None:
                raise ValueError(_nothing_for(system, leaf.path))
            if group is not _FROZEN:
                found.setdefault(id(group), group).members.append(i)
    return list(found.values())


_FROZEN = Group("", optax.with_extra_args_support(frozen), None)


def _above(path: str, leaf: str) -> bool:
    return leaf == path or path == "" or leaf.startswith((f"{path}.", f"{path}["))


def _assign(value: Any, path: str, hand: Any, parent: Any, inherited: Any, plan: Plan, owner: dict[str, Any]) -> None:
    """Give what lies at and below a path its group: by hand, by the parent's dict, by its own method, by inheritance."""
    hand, own = _planned(hand, plan), _planned(parent, plan)
    if hand is not None and not isinstance(hand, Mapping):
        owner[path] = _group(hand, path, plan)
        return
    if isinstance(value, Component) and (own is None or isinstance(own, Mapping)):
        said = _planned(configure_optimizers(value, plan), plan)
        if said is not None and own is not None and not isinstance(said, Mapping):
            inherited = _group(said, path, plan)  # for what the parent's dict leaves out
        else:
            own = {**said, **own} if said is not None and own is not None else own if said is None else said
    if own is not None and not isinstance(own, Mapping):
        inherited, own = _group(own, path, plan), None
    inside = {} if isinstance(value, Parameter | Buffer) else dict(children(value))
    for name in [*(hand or ()), *(own or ())]:
        if name not in inside:
            near = difflib.get_close_matches(str(name), inside, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(inside)}."
            where = f"{type(value).__name__}{f' at {path!r}' if path else ''}"
            raise ValueError(f"an optimizer was given for {name!r}, and {where} has no such field; {hint}")
    for name, inner in inside.items():
        below = f"{path}.{name}" if path else name
        _assign(inner, below, (hand or {}).get(name), (own or {}).get(name), inherited, plan, owner)
    if not inside:
        owner[path] = inherited


def _planned(spec: Any, plan: Plan) -> Any:
    """What a function of the plan gives."""
    return spec(plan) if callable(spec) and not isinstance(spec, tuple) and of_plan(spec) else spec


def _group(spec: Any, path: str, plan: Plan) -> Group:
    """A group from any form of optimizer."""
    if getattr(spec, "update", None) is frozen.update:  # as a part of a state it is made anew of the same functions
        return _FROZEN
    if isinstance(spec, Optimizer):
        return Group(path, optax.with_extra_args_support(spec.build(plan)), spec.rate(plan))
    if isinstance(spec, optax.GradientTransformation):
        return Group(path, optax.with_extra_args_support(spec), None)
    if callable(spec):
        raise TypeError(
            f"the optimizer {getattr(spec, '__name__', spec)} needs a learning rate: give `lr=` beside `optimizer=`, or a "
            "transformation such as `optax.adam(1e-3)`, or a function whose argument is called `plan`."
        )
    raise TypeError(
        f"an optimizer is an optax transformation, a constructor with `lr=`, a function of the plan, `fm.frozen`, or a dict of "
        f"them by field; {type(spec).__name__} came{f' for {path!r}' if path else ''}."
    )


def _nothing_for(system: Any, path: str) -> str:
    name = type(system).__name__
    return (
        f"no optimizer for {path!r}. Give one to `setup` or `fit` (`optimizer=optax.adam, lr=1e-3`), or write\n\n    @dispatch\n"
        f"    def configure_optimizers({name.lower()}: {name}): return optax.adam(1e-3)\n"
    )

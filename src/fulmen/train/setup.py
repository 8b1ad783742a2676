"""`setup`: from a description to a state, with every check that can be made before the first step."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any

import jax

from fulmen.component import Component, fold_name, unbind
from fulmen.data.arrays import check_arrays, check_batch_size, count, steps_per_epoch
from fulmen.dispatch import dispatch
from fulmen.leaves import check_fields, components, require_dispatched
from fulmen.mode import Plan
from fulmen.optimizers import Enclosing, fewer, groups, of_plan
from fulmen.schedules.span import warn_if_longer
from fulmen.train.state import State
from fulmen.train.step import step_program
from fulmen.train.turns import turns
from fulmen.tree import get, remake
from fulmen.verbs import as_batch, configure_optimizers, init, setup, validate

__all__ = ["plan_of"]


@dispatch
def setup(
    component,
    data,
    *,
    optimizer=None,
    lr=None,
    seed=0,
    epochs=None,
    steps=None,
    batch_size=32,
    drop_last=False,
    **options,
):
    if isinstance(component, State):
        raise TypeError("setup takes a component, and a state came: `setup(state.system, …)` starts anew with its arrays.")
    check_component(component)
    component = unbind(component)
    data = check_arrays(data)
    batch_size = min(batch_size, count(data))
    plan = plan_of(count(data), batch_size, epochs, steps, drop_last)
    optimizer = _given(component, optimizer, lr, options)
    key = jax.random.key(seed)
    component = init(component, fold_name(key, "init"))
    check_fields(component)
    validate(component, as_batch(component, data))
    state = State(component, optimizer=optimizer, key=fold_name(key, "run"), plan=plan)
    component = state.system  # its numbers are arrays now
    found = groups(component, state.optimizer, plan)
    for group in found:
        if plan.total_steps is not None and group.every > plan.total_steps:
            what = f"{group.path!r} moves" if group.path else "the parameters move"
            warnings.warn(f"{what} every {group.every} steps, and the run has {plan.total_steps}: never.", stacklevel=3)
        warn_if_longer(group.rate, group.end, fewer(plan, group.every), group.path)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        states = tuple(g.transformation.init(g.select(component, component)) for g in found)
    state = state.replace(optimizer_state=states)
    # Tracing a step finds missing methods, shapes that do not fit and a loss that is no number; the first step reuses it.
    for resting in turns(state).sets():
        step_program.trace(state, jax.tree.map(lambda v: v[:batch_size], data), resting)
    return state


def check_component(component: Any) -> None:
    """All that can be said of a component without data."""
    if not isinstance(component, Component) and jax.tree_util.all_leaves([component]):
        raise TypeError(f"a component was expected, and {type(component).__name__} came.")
    check_fields(component)
    for _, part in components(component):
        require_dispatched(part)
        validate(part)


def plan_of(n: int, batch_size: int, epochs: int | None, steps: int | None, drop_last: bool) -> Plan:
    """What is known of a run over `n` examples."""
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs or steps was expected, and both came: epochs={epochs}, steps={steps}.")
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: at least 1 was expected, and {value} came.")
    check_batch_size(n, batch_size)
    each = steps_per_epoch(n, batch_size, drop_last)
    total = steps if steps is not None else None if epochs is None else epochs * each
    return Plan(steps_per_epoch=each, epochs=epochs, total_steps=total, batch_size=batch_size)


def _given(component: Any, optimizer: Any, lr: Any, options: dict[str, Any]) -> Any:
    """The optimizer as it was given by hand, constructors with their learning rate as values."""
    constructors = _constructors(optimizer)
    for constructor in constructors or [optimizer]:
        _require_known(constructor, options)
    if (lr is not None or options) and not constructors:
        names = ", ".join(["lr"] * (lr is not None) + list(options))
        raise TypeError(
            f"{names} came without a constructor to give it to; `optimizer=optax.adam, lr=1e-3` was expected"
            f"{'' if optimizer is None else ', or a finished transformation alone'}."
        )
    return _filled(component, optimizer, lr, options)


def _filled(component: Any, optimizer: Any, lr: Any, options: dict[str, Any]) -> Any:
    if isinstance(optimizer, dict):
        return {k: _filled(_at(component, str(k)), v, lr, options) for k, v in optimizer.items()}
    if isinstance(optimizer, Enclosing):
        return remake(optimizer, {"optimizer": _filled(component, optimizer.optimizer, lr, options)})
    if _is_constructor(optimizer) and lr is not None:
        return configure_optimizers(component, optimizer, lr, **options)
    return optimizer


def _at(component: Any, path: str) -> Any:
    """What lies at a path, or None, of which `groups` will say more."""
    try:
        return get(component, path)
    except KeyError:
        return None


def _constructors(optimizer: Any) -> list[Any]:
    """The constructors without a learning rate in an optimizer of any form."""
    if isinstance(optimizer, dict):
        return [found for value in optimizer.values() for found in _constructors(value)]
    if isinstance(optimizer, Enclosing):
        return _constructors(optimizer.optimizer)
    return [optimizer] if _is_constructor(optimizer) else []


def _require_known(optimizer: Any, options: dict[str, Any]) -> None:
    """A keyword that is neither ours nor the constructor's is misspelt."""
    theirs = inspect.signature(optimizer).parameters if _is_constructor(optimizer) else {}
    if any(p.kind is p.VAR_KEYWORD for p in theirs.values()):
        return
    ours = ["epochs", "steps", "batch_size", "validation", "callbacks", "seed", "progress", "drop_last", "optimizer", "lr"]
    for name in options:
        near = difflib.get_close_matches(name, [*ours, *theirs], n=1)
        if name not in theirs and near:
            raise TypeError(f"{name} is no option of `fit` or `setup`, nor of the optimizer; did you mean {near[0]!r}?")


def _is_constructor(value: Any) -> bool:
    return callable(value) and not isinstance(value, tuple) and not of_plan(value)


@dispatch
def validate(component, batch):
    return None

"""`setup`: from a component to a state, with every check that is possible before the first step."""

from __future__ import annotations

import collections
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.vectorized import check_parts, check_setup, members_of, seeded
from fulmen.core import RECENT, State, components, fold_name, get, is_part, remake, unbind
from fulmen.core.field_checks import check_fields, check_shared_arrays
from fulmen.core.leaves import CONTAINERS
from fulmen.core.verbs import configure_optimizers, fit, setup, validate
from fulmen.data.arrays import check_positive, count
from fulmen.data.source import Source
from fulmen.devices.placement import computed, initialized
from fulmen.devices.policies import on_rows, require_policy
from fulmen.dispatching.lazy_libraries import hint
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import Enclosing, groups, is_constructor, warn_of_unreached_ends
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.schedules.schedule_lengths import each_member
from fulmen.train.compiled_step import traced_step
from fulmen.train.foreign_options import unknown_options
from fulmen.train.gradients import start_optimizer
from fulmen.train.interruption import stop_if_interrupted

_OPTIONS = [p.name for p in inspect.signature(fit).parameters.values() if p.kind is p.KEYWORD_ONLY]


@dispatch
def setup(
    component: object,
    data,
    *,
    optimizer=None,
    lr=None,
    seed=0,
    epochs=None,
    steps=None,
    batch_size=None,
    drop_last=False,
    limit=None,
    microbatches=1,
    devices=None,
    **options,
):
    require_policy(devices)
    if isinstance(component, State):
        raise TypeError("setup takes a component, got a State; write setup(state.system, …) to start again with its arrays.")
    check_component(component)
    component = unbind(component)
    if epochs is not None and steps is not None:
        raise ValueError(f"either `epochs` or `steps` must be given, got both: epochs={epochs}, steps={steps}.")
    source = Source.with_first(data)
    reading = source.plan(usual=batch_size, epochs=epochs, steps=steps, seed=seed, drop_last=drop_last, limit=limit)
    raw = source.first(reading)
    # The order of the data is not part of what is compiled.
    kept = {"batch_size": count(raw), "seed": None, "drop_last": False, "microbatches": microbatches}
    check_positive("microbatches", microbatches)
    if microbatches > count(raw):
        raise ValueError(
            f"microbatches must be at most {count(raw)}, the number of examples in a batch, got {microbatches}."
        )
    plan = remake(reading, kept)
    optimizer = _configured(component, optimizer, _rate(component, lr), options)
    seed = 0 if seed is None else seed  # None concerns the order of the data
    component = seeded(component, component, seed)
    key = jax.random.key(seed)
    component = initialized(component, fold_name(key, "init"), devices)
    stop_if_interrupted()
    check_shared_arrays(component)
    source.validate(component, source.data if source.in_memory else raw)
    state = State(component, optimizer=optimizer, key=fold_name(key, "run"), plan=plan, devices=devices)
    component = state.system  # its numbers are arrays now
    check_setup(component, state, raw)
    warn_of_unreached_ends(groups(component, state.optimizer, plan), plan)
    state = computed(start_optimizer, state)
    stop_if_interrupted()
    # Tracing a step finds missing methods, wrong shapes and a loss that is not a number; the first step reuses the trace.
    raw = on_rows(raw, devices)  # as `fit` does
    for resting in update_schedule(state).sets():
        traced_step(state, raw, resting)
    RECENT.keep(state.structure)
    return state


def _rate(component: Any, lr: Any) -> Any:
    """A learning rate; a list of them, one for each member of a population, becomes an array or one schedule."""
    if not isinstance(lr, list | tuple | np.ndarray) or np.ndim(lr) == 0:
        return lr
    if not members_of(component, component):
        raise TypeError(f"lr must be one number, got {lr!r}; one for each member needs a fm.Population.")
    if any(callable(rate) for rate in lr):
        return each_member([*lr])
    return jnp.stack([jnp.asarray(float(rate)) for rate in lr])


def check_component(component: Any) -> None:
    """Raise on what is wrong with a component, before any data is seen."""
    if not is_part(component):
        is_class, name = isinstance(component, type), getattr(component, "__name__", type(component).__name__)
        got = f"the class {name}; write {name}(…)" if is_class else type(component).__name__
        several = (
            "; write class Both(fm.System): … with a field for each component" if isinstance(component, CONTAINERS) else ""
        )
        raise TypeError(f"a component must be given, got {got}{several}. {hint(type(component))}".strip())
    everything = components(component)
    check_fields(component, everything)
    check_parts(component, everything)


def _configured(component: Any, optimizer: Any, lr: Any, options: dict[str, Any]) -> Any:
    """The optimizer as a state keeps it: constructors with their learning rate and options."""
    constructors = _constructors(optimizer)
    require_known(optimizer, options, "setup")
    if (lr is not None or options) and not constructors:
        names = ", ".join(["lr"] * (lr is not None) + list(options))
        raise TypeError(
            f"{names}: there is no optimizer constructor that takes it; write optimizer=optax.adam, lr=1e-3"
            f"{'' if optimizer is None else ', or give the finished transformation alone'}."
        )
    return _filled(component, optimizer, lr, options)


def _filled(component: Any, optimizer: Any, lr: Any, options: dict[str, Any]) -> Any:
    if isinstance(optimizer, dict):
        filled = {k: _filled(_at(component, str(k)), v, lr, options) for k, v in optimizer.items()}
        # JAX sorts the keys of a dict, and the first pattern that matches counts.
        return collections.OrderedDict(filled) if any("*" in str(key) for key in filled) else filled
    if isinstance(optimizer, Enclosing):
        return remake(optimizer, {"optimizer": _filled(component, optimizer.optimizer, lr, options)})
    if is_constructor(optimizer) and lr is not None:
        return configure_optimizers(component, optimizer, lr, **options)
    return optimizer


def _at(component: Any, path: str) -> Any:
    """The part at a path, or None, for which `groups` raises the error."""
    try:
        return get(component, path)
    except KeyError:
        return None


def _constructors(optimizer: Any, name: str = "optimizer") -> list[Any]:
    """The constructors in an optimizer of any form, called `name` in errors, that have no learning rate yet."""
    if isinstance(optimizer, dict):
        return [found for value in optimizer.values() for found in _constructors(value, name)]
    if isinstance(optimizer, Enclosing):
        return _constructors(optimizer.optimizer, f"the optimizer in {type(optimizer).__name__}")
    if isinstance(optimizer, str | int | float):
        lr = 1e-3 if isinstance(optimizer, str) else optimizer
        raise TypeError(
            f"{name} must be an optax constructor or transformation, got {optimizer!r}; write optax.adam instead, and lr={lr} in "
            "`setup` or `fit`."
        )
    return [optimizer] if is_constructor(optimizer) else []


def require_known(optimizer: Any, options: dict[str, Any], verb: str = "fit") -> None:
    """Raise on keywords that neither `fit` nor an optimizer constructor has, if it is known what to write instead."""
    for constructor in _constructors(optimizer) or [None]:
        theirs = inspect.signature(constructor).parameters if constructor is not None else {}
        if any(p.kind is p.VAR_KEYWORD for p in theirs.values()):
            continue
        known = [*_OPTIONS, *[*theirs][1:]]  # the first parameter is the learning rate
        unknown = {name: value for name, value in options.items() if name not in known}
        if answer := unknown_options(verb, unknown, known):
            raise TypeError(answer)


@dispatch
def validate(component: object, batch):
    return None

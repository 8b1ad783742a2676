"""`setup`: from a description to a state, with every check that can be made before the first step."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.vectorized import check_parts, check_setup, members_of, seeded
from fulmen.core.component import fold_name, is_part, unbind
from fulmen.core.leaves import check_fields, check_shared_arrays
from fulmen.core.state import State
from fulmen.core.structure import RECENT
from fulmen.core.tree import get, remake
from fulmen.core.verbs import configure_optimizers, init, setup, validate
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.dispatching.lazy_libraries import hint
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import Enclosing, groups, is_constructor, warn_of_unreached_ends
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.compiled_step import traced_step
from fulmen.train.gradients import start_optimizer
from fulmen.train.interruption import stop_if_interrupted

__all__: list[str] = []

_SHORTENED = 3  # letters from which a keyword is taken for the beginning of another, such as val


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
    **options,
):
    if isinstance(component, State):
        raise TypeError("setup takes a component, and a state came: `setup(state.system, …)` starts anew with its arrays.")
    check_component(component)
    component = unbind(component)
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs or steps was expected, and both came: epochs={epochs}, steps={steps}.")
    source = Source.with_first(data)
    reading = source.plan(usual=batch_size, epochs=epochs, steps=steps, seed=seed, drop_last=drop_last)
    raw = source.first(reading)
    # Another order is no other program.
    plan = remake(reading, {"batch_size": count(raw), "seed": None, "drop_last": False})
    optimizer = _given(component, optimizer, _rate(component, lr), options)
    seed = 0 if seed is None else seed  # None is about the order of the data
    component = seeded(component, component, seed)
    key = jax.random.key(seed)
    component = init(component, fold_name(key, "init"))
    stop_if_interrupted()
    check_shared_arrays(component)
    source.validate(component, source.data if source.in_memory else raw)
    state = State(component, optimizer=optimizer, key=fold_name(key, "run"), plan=plan)
    component = state.system  # its numbers are arrays now
    check_setup(component, state, raw)
    warn_of_unreached_ends(groups(component, state.optimizer, plan), plan)
    state = start_optimizer(state)
    stop_if_interrupted()
    # Tracing a step finds missing methods, shapes that do not fit and a loss that is no number; the first step reuses it.
    for resting in update_schedule(state).sets():
        traced_step(state, raw, resting)
    RECENT.keep(state.structure)
    return state


def _rate(component: Any, lr: Any) -> Any:
    """A learning rate; a list of them, one for each member of a population, as an array."""
    if not isinstance(lr, list | tuple | np.ndarray) or np.ndim(lr) == 0:
        return lr
    if not members_of(component, component):
        raise TypeError(f"lr: one number was expected, and {lr!r} came; one for each member is for a fm.Population.")
    if any(callable(rate) for rate in lr):
        raise TypeError(
            "lr: a number for each member was expected, and a schedule came. One schedule for all is `lr=fm.cosine(1e-3)`; "
            "numbers may differ."
        )
    return jnp.stack([jnp.asarray(float(rate)) for rate in lr])


def check_component(component: Any) -> None:
    """All that can be said of a component without data."""
    if not is_part(component) and jax.tree_util.all_leaves([component]):
        made = f": make one, {component.__name__}(…)" if isinstance(component, type) else ""
        came = f"the class {component.__name__}" if made else type(component).__name__
        raise TypeError(f"a component was expected, and {came} came{made}. {hint(type(component))}".strip())
    is_state = lambda value: isinstance(value, State)
    if any(map(is_state, jax.tree.leaves(component, is_leaf=is_state))):
        found = jax.tree_util.tree_flatten_with_path(component, is_leaf=is_state)[0]
        where = next(jax.tree_util.keystr(path, simple=True, separator=".") for path, part in found if is_state(part))
        raise TypeError(f"{where} must be a component, got a State; write state.system.")
    check_fields(component)
    check_parts(component)


def _given(component: Any, optimizer: Any, lr: Any, options: dict[str, Any]) -> Any:
    """The optimizer as it was given by hand, constructors with their learning rate as values."""
    constructors = _constructors(optimizer)
    require_known(optimizer, options)
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
    if is_constructor(optimizer) and lr is not None:
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
    if isinstance(optimizer, str):
        raise TypeError(
            f"optimizer: an optax constructor or transformation was expected, and {optimizer!r} came, such as "
            "`optimizer=optax.adam, lr=1e-3`."
        )
    return [optimizer] if is_constructor(optimizer) else []


def require_known(optimizer: Any, options: dict[str, Any]) -> None:
    """Raise for a keyword that is neither ours nor a constructor's, and near to one of them."""
    for constructor in _constructors(optimizer) or [None]:
        _require_near(constructor, options)


def _require_near(optimizer: Any, options: dict[str, Any]) -> None:
    theirs = inspect.signature(optimizer).parameters if is_constructor(optimizer) else {}
    if any(p.kind is p.VAR_KEYWORD for p in theirs.values()):
        return
    ours = ["epochs", "steps", "batch_size", "validation", "callbacks", "seed", "progress", "drop_last", "optimizer", "lr"]
    for name in options:
        known = [*ours, *theirs]
        near = ["lr"] if name == "learning_rate" else difflib.get_close_matches(name, known, n=1)
        near = near or [other for other in known if len(name) >= _SHORTENED and other.startswith(name)]
        if near and near != [name]:
            raise TypeError(f"{name} is no option of `fit` or `setup`, nor of the optimizer; did you mean {near[0]!r}?")


@dispatch
def validate(component: object, batch):
    return None

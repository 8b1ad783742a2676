"""`setup`: from a description to a state, with every check that can be made before the first step."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import jax
import numpy as np

from fulmen.compose.per_member import PerMember
from fulmen.compose.population import around, copies, population_in, seeded, stack
from fulmen.core.component import fold_name, is_part, unbind
from fulmen.core.leaves import PARAMETER, check_fields, components, leaves, require_dispatched
from fulmen.core.stacking import is_own
from fulmen.core.state import State
from fulmen.core.tree import get, remake
from fulmen.core.verbs import configure_optimizers, init, setup, validate
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.dispatching.lazy_libraries import hint
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.optimizers import Enclosing, groups, is_constructor, warn_of_unreached_ends
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.members import members
from fulmen.train.step import for_every_plan, start_optimizer, step_program

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
    source = Source.looked_at(data)
    reading = source.plan(usual=batch_size, epochs=epochs, steps=steps, seed=seed, drop_last=drop_last)
    raw = source.first(reading)
    # Another order is no other program.
    plan = remake(reading, {"batch_size": count(raw), "seed": None, "drop_last": False})
    optimizer = _given(component, optimizer, _rate(component, lr), options)
    component = seeded(component, seed)
    key = jax.random.key(seed)
    component = init(component, fold_name(key, "init"))
    _check_members(component, optimizer)
    _warn_of_copies(component, optimizer, raw)
    check_fields(component)
    source.validate(component, source.data if source.in_memory else raw)
    state = State(component, optimizer=optimizer, key=fold_name(key, "run"), plan=plan)
    component = state.system  # its numbers are arrays now
    warn_of_unreached_ends(groups(component, state.optimizer, plan), plan)
    state = start_optimizer(state)
    # Tracing a step finds missing methods, shapes that do not fit and a loss that is no number; the first step reuses it.
    for resting in update_schedule(state).sets():
        for_every_plan(step_program.trace, state, raw, resting)
    return state


def _rate(component: Any, lr: Any) -> Any:
    """A learning rate; a list of them, one for each member of a population, as an array."""
    if not isinstance(lr, list | tuple | np.ndarray) or np.ndim(lr) == 0:
        return lr
    if population_in(component) is None:
        raise TypeError(f"lr: one number was expected, and {lr!r} came; one for each member is for a fm.Population.")
    if any(callable(rate) for rate in lr):
        raise TypeError(
            "lr: a number for each member was expected, and a schedule came. One schedule for all is `lr=fm.cosine(1e-3)`; "
            "numbers may differ."
        )
    return stack([float(rate) for rate in lr])


def _check_members(component: Any, optimizer: Any) -> None:
    """Raise where an optimizer's arrays are not one number for each member."""
    population = population_in(component)
    if population is None:
        return
    outside = around(component, remake(population, {"members": None}))
    for leaf in leaves(outside):
        if leaf.role == PARAMETER:
            raise ValueError(
                f"{leaf.path} is a parameter outside of the population, and no member's own: let {type(component).__name__} stand "
                "inside, so that each member has one."
            )
    for path, leaf in jax.tree_util.tree_flatten_with_path(optimizer)[0]:
        if is_own(leaf) and leaf.shape[0] != population.n:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"{name}: one number, or one for each of the {population.n} members, was expected, and {leaf.shape[0]} came."
            )


def _warn_of_copies(component: Any, optimizer: Any, raw: Any) -> None:
    """Warn where nothing sets members apart but what they draw in training."""
    population = population_in(component)
    alike = population is not None and not isinstance(raw, PerMember) and not any(map(is_own, jax.tree.leaves(optimizer)))
    if population is not None and alike and copies(population):
        warn(
            f"Population: its {population.n} members begin as copies of one another, so that only what each draws in training (dropout, "
            "augmentations) will set them apart. A description without arrays is drawn for each by its own seed; a module of "
            "another library has its arrays, so give a list: fm.Population([fm.Classifier(make(seed)) for seed in range(n)]).",
        )


def check_component(component: Any) -> None:
    """All that can be said of a component without data."""
    if not is_part(component) and jax.tree_util.all_leaves([component]):
        made = f": make one, {component.__name__}(…)" if isinstance(component, type) else ""
        came = f"the class {component.__name__}" if made else type(component).__name__
        raise TypeError(f"a component was expected, and {came} came{made}. {hint(type(component))}".strip())
    for path, part in jax.tree_util.tree_flatten_with_path(component, is_leaf=lambda v: isinstance(v, State))[0]:
        if isinstance(part, State):
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise TypeError(f"{where}: a component was expected, and a state came: give `state.system`.")
    check_fields(component)
    population = population_in(component)
    if population is None:
        _check_parts(component)
        return
    validate(population)
    for i, member in enumerate(members(component)):
        try:
            _check_parts(member)
        except Exception as error:
            error.add_note(f"in member {i} of the population")
            raise


def _check_parts(component: Any) -> None:
    for _, part in components(component):
        require_dispatched(part)
        validate(part)


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

"""`train_step` and `eval_step`, compiled once for a state's structure and a batch's types, and `steps`, a generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from fulmen.core import Component, Mean, Mergeable, State, Structure, by_path, checked_batch, per_structure, without_plan
from fulmen.core.mode import Eval, Plan, PlanRead, Train, UnreadPlan
from fulmen.core.verbs import as_batch, eval_step, steps, train_step, update, validate
from fulmen.data.source import Source
from fulmen.devices.placement import on_devices, pinned, split_rows
from fulmen.dispatching.compiled_code import generation
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import evaluation_weights
from fulmen.optimizers.update_schedule import NOBODY, UpdateSchedule, update_schedule
from fulmen.train.gradients import learning_rates
from fulmen.train.run_options import first_batch, prepare, warn_past_plan
from fulmen.train.step_logs import observe


@per_structure(inline=True, static_argnums=4)
def step_program(
    structure: Structure, leaves: list[Any], raw_key: Any, step: Any, raw: Any, resting: frozenset[str]
) -> tuple[list[Any], dict[str, Any]]:
    """The leaves after a step, and its logs as mergeable values."""
    state = State.of(leaves, raw_key, step, structure)
    component, raw = state.system, split_rows(raw, state.devices)
    mode = Train(jax.random.fold_in(state.key, state.step), state.step, resting, state.plan.microbatches)
    new, logs = update(component, state, as_batch(component, raw), mode)
    _require_same_types(state, new)
    logs = {name: v if isinstance(v, Mergeable) else Mean(v) for name, v in logs.items()}
    return pinned(state, new), {**learning_rates(state, new), **logs}


def _require_same_types(old: State, new: State) -> None:
    """Raise if a step changed the structure or a type: the next step would compile again, or fail."""
    if new.structure is not old.structure:
        before, after = (jax.tree.structure((s.system, s.optimizer_state)) for s in (old, new))
        raise TypeError(f"the step changed the state's structure.\nbefore: {before}\nafter:  {after}")
    for (name, a), b in zip(by_path(old), jax.tree.leaves(new), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise TypeError(f"the step changed {name} from {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}.")


# Most steps do not read the plan (the length of the run), so one program serves the states of all plans.

_READS_PLAN = "steps read the plan"
_COMPILED = "train_step"  # the generation, the schedule and the program, which a call looks up once


def step_structure(structure: Structure) -> Structure:
    """The structure that steps are compiled for: without the plan, unless a step is known to read it."""
    return structure if _READS_PLAN in structure.programs else without_plan(structure)


def traced_step(state: State, raw: Any, resting: frozenset[str] = NOBODY) -> Any:
    """The step as jit traces it: its program and what it returns."""
    args = state.arrays, state.raw_key, state.step, raw, resting
    try:
        return step_program.of(step_structure(state.structure)).trace(*args)
    except PlanRead:
        state.structure.programs[_READS_PLAN] = True
    return step_program.of(state.structure).trace(*args)


@per_structure(static_argnums=4)
def _train_step(
    structure: Structure, leaves: list[Any], raw_key: Any, step: Any, raw: Any, resting: frozenset[str]
) -> tuple[list[Any], dict[str, Any]]:
    leaves, logs = step_program(structure, leaves, raw_key, step, raw, resting)
    return leaves, {key: value for name, figure in logs.items() for key, value in figure.logged(name).items()}


@dispatch
def train_step(state: State, batch):
    batch, programs = _checked_data(state, batch), state.structure.programs
    compiled = programs.get(_COMPILED)
    if compiled is None or compiled[0] != generation():
        program = _train_step.of(step_structure(state.structure))
        compiled = programs[_COMPILED] = generation(), update_schedule(state), program
    _, schedule, program = compiled
    try:
        if schedule.every:
            leaves, logs = _scheduled_step(state, batch, schedule, program)
        else:
            leaves, logs = program(state.arrays, state.raw_key, state.step, batch, NOBODY)
    except PlanRead:
        if isinstance(state.plan, UnreadPlan):
            raise  # in a program that is being traced for every plan
        programs[_READS_PLAN] = True
        del programs[_COMPILED]
        return train_step(state, batch)
    return state.next(leaves), logs


def _scheduled_step(state: State, batch: Any, schedule: UpdateSchedule, program: Any) -> Any:
    """A step that updates only the groups whose turn it is."""
    args = state.arrays, state.raw_key, state.step, batch
    if not isinstance(state.step, Tracer):
        return program(*args, schedule.at(int(state.step)))
    # In a user's loop or jit, which groups are updated is part of what is computed.
    branches = [lambda *args, resting=resting: program(*args, resting) for resting in schedule.sets()]
    return jax.lax.switch(schedule.index(state.step), branches, *args)


@dispatch
def steps(
    state: State, data, *, epochs=None, steps=None, batch_size=None, seed=0, drop_last=False, limit=None, devices=None
):
    reading = dict(batch_size=batch_size, seed=seed, drop_last=drop_last, limit=limit)
    state = on_devices(state, devices)
    source, plan = prepare("steps", state, data, epochs=epochs, steps=steps, **reading)
    warn_past_plan(state, plan.total_steps)
    return _steps(state, source, plan, epochs)


def _steps(state: State, source: Source, plan: Plan, epochs: int | None) -> Iterator[Any]:
    done, total = 0, plan.total_steps
    left = lambda: None if total is None else total - done
    at = source.find(plan, first_batch(state, epochs, plan))
    for number, (_, found) in enumerate(source.epochs(plan, at, left, state.system)):
        with contextlib.closing(found):
            for raw in found:
                state, logs = train_step(state, raw)
                done += 1
                yield state, logs
                if done == total:
                    return
        if total is None and number + 1 == epochs:
            return


def _refuse_components(verb: Any) -> None:
    @verb.dispatch
    def of_component(component: Component, data):
        raise TypeError(
            f"{verb.__name__} takes a state, got the component {type(component).__name__}: state = fm.setup(component, data, "
            "optimizer=optax.adam, lr=1e-3)."
        )


for _verb in (train_step, steps):
    _refuse_components(_verb)


@per_structure()
def _eval_step(structure: Structure, leaves: list[Any], raw_key: Any, step: Any, raw: Any) -> dict[str, Any]:
    state = State.of(leaves, raw_key, step, structure)
    raw = split_rows(raw, state.devices)
    return observe(evaluation_weights(state), as_batch(state.system, raw), Eval(state.key))


@dispatch
def eval_step(state: State, batch):
    batch = _checked_data(state, batch)
    return _eval_step(without_plan(state.structure), state.arrays, state.raw_key, state.step, batch)


# Data, checked on the host at little cost

# The largest number of axes that labels or weights on the host have, by type. Other types go through `checked_batch`.
_AXES = {np.dtype(name): 2 for name in ("int8", "int16", "int32", "int64")}
_AXES |= {np.dtype(name): 1 for name in ("float16", "float32")}
_AXES |= {np.dtype(name): -1 for name in ("bool", "uint8", "uint16", "uint32", "uint64")}  # never negative


def _checked_data(state: State, raw: Any) -> Any:
    """The data of a step, or an error as of `checked_batch` and `validate`: compiled code cannot refuse a negative label or weight."""
    for leaf in raw if type(raw) is tuple else jax.tree.leaves(raw):
        known = leaf.dtype in _AXES if type(leaf) is np.ndarray else isinstance(leaf, jax.Array)
        if not known or _has_negative(leaf):
            return _validated(state, raw)
    return raw


def _validated(state: State, raw: Any) -> Any:
    # `validate` traces the model, so it is called once for arrays that it accepts with negative numbers.
    raw, accepted = checked_batch(raw), state.structure.programs.setdefault("accepted with negative numbers", set())
    negative = {i for i, leaf in enumerate(jax.tree.leaves(raw)) if _has_negative(leaf)}
    if not negative <= accepted:
        validate(state.system, checked_batch(as_batch(state.system, raw)))
        accepted |= negative
    return raw


def _has_negative(leaf: Any) -> bool:
    """Whether an array on the host has a negative number or NaN, and as many axes as labels or weights may have."""
    if type(leaf) is not np.ndarray or leaf.ndim > _AXES.get(leaf.dtype, 1) or not leaf.size:
        return False
    return not leaf.flat[leaf.argmin()] >= 0  # a third of the time of `min`; finds NaN too

"""One step of training, from its pieces: `differentiate`, `apply_gradients`, `update`, `train_step`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from fulmen.compose.losses import as_figure, augmented, entry_means, named, total_loss
from fulmen.compose.supervised import with_outputs
from fulmen.compose.vectorized import members_of, over_members, over_states
from fulmen.core.border import checked_batch
from fulmen.core.component import Buffer, Component, Frozen, System, Wrapper, named_parts, part_name, still
from fulmen.core.leaves import BUFFER, PARAMETER, leaves
from fulmen.core.marks import standard_step, sums_losses
from fulmen.core.mergeable import Last, Mean, Mergeable
from fulmen.core.mode import Eval, Mode, PlanRead, Train
from fulmen.core.state import State, without_plan
from fulmen.core.structure import Structure, per_structure
from fulmen.core.tree import remake
from fulmen.core.verbs import (
    after_update,
    as_batch,
    bind,
    eval_step,
    forward,
    loss,
    losses,
    metrics,
    predictions,
    train_step,
    update,
    validate,
)
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers import groups
from fulmen.optimizers.update_schedule import NOBODY, update_schedule

__all__ = ["apply_gradients", "differentiate", "end_step", "learning_rates", "measure", "observe"]

T = TypeVar("T")


def differentiate(component: Any, batch: Any, mode: Mode) -> tuple[jax.Array, Any, Any, dict[str, Any]]:
    """The loss, its gradient, and the component with its buffers moved.

    Args:
        component: an unbound component that has a loss.
        batch: a `Batch`, augmented already.
        mode: what to bind: a `Train`. Nothing is differentiated or recorded for what is `mode.resting`.

    Returns:
        `(value, gradients, component, logs)`: a number; a tree like the component with the parameters' gradients and None
        for all else; the component after `record`; the loss, its entries and the metrics, as mergeable values.
    """
    flat, structure = jax.tree.flatten(component, is_leaf=lambda v: isinstance(v, Buffer))
    roles, known, resting = [], iter(leaves(component)), getattr(mode, "resting", NOBODY)
    for item in flat:
        mine = [next(known) for _ in jax.tree.leaves(item)]
        roles.append([leaf.role for leaf in mine if leaf.path not in resting])
    trained = {i: v for i, v in enumerate(flat) if roles[i] == [PARAMETER] and not isinstance(v, Buffer)}
    # In another library's module a buffer is a leaf like any other.
    moving = {i: v if isinstance(v, Buffer) else Buffer(v) for i, v in enumerate(flat) if BUFFER in roles[i]}
    slots = {i: jax.tree.map(_empty_slot, buffer.value) for i, buffer in moving.items()}

    def objective(trained: dict[int, Any], slots: dict[int, Any]) -> tuple[jax.Array, dict[str, Any]]:
        filled = [trained.get(i, item) for i, item in enumerate(flat)]
        for i, buffer in moving.items():
            filled[i] = remake(buffer, {"value": still(buffer.value), "slot": slots[i]})
        bound = bind(structure.unflatten(filled), mode)
        seen = with_outputs(bound, batch)
        value = total_loss(bound, seen)
        if value.shape != ():
            raise ValueError(f"the loss of {type(component).__name__} has shape {value.shape}; one number was expected.")
        return value, measure(bound, seen, value)

    (value, logs), (slopes, sums) = jax.value_and_grad(objective, (0, 1), has_aux=True)(trained, slots)
    # A buffer keeps its node, so that the gradients have the component's structure.
    gradients = structure.unflatten(
        [slopes[i] if i in slopes else jax.tree.map(lambda _: None, v) for i, v in enumerate(flat)]
    )
    for i, buffer in moving.items():
        value_now = jax.tree.map(_moved, buffer.value, sums[i])
        flat[i] = remake(buffer, {"value": value_now}) if isinstance(flat[i], Buffer) else value_now
    return value, gradients, structure.unflatten(flat), logs


def _empty_slot(value: Any) -> tuple[jax.Array, jax.Array]:
    dtype = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.result_type(float)
    # Counted for each number apart: some blocks of a stack may record, and others not.
    return jnp.zeros(value.shape, dtype), jnp.zeros(value.shape)


def _moved(old: jax.Array, slot: Any) -> jax.Array:
    total, count = slot
    mean = total / jnp.maximum(count, 1).astype(total.dtype)
    return jnp.where(count > 0, mean.astype(old.dtype), old)


def measure(bound: Any, batch: Any, value: Any) -> dict[str, Any]:
    """The logs of a batch: the loss, its entries where there are several, and the metrics, as mergeable values."""
    weight = getattr(batch, "weight", None)
    count = len(batch) if weight is None else weight.sum()
    logs: dict[str, Any] = {"loss": Mean(value, count)}
    if isinstance(bound, System) and sums_losses.on(loss.method(bound, batch)) and losses.has(bound, batch):
        entries = entry_means(bound, named(bound, losses(bound, batch)), batch)
        if len(entries) > 1:
            logs |= {f"loss/{name}": Mean(entry, count) for name, entry in entries.items()}
    for name, figure in metrics(bound, batch).items():
        if name in logs:
            raise ValueError(
                f"`metrics` of {type(bound).__name__} has {name!r}, which is the name of a part of its loss: give it another one."
            )
        logs[name] = as_figure(name, figure, batch)
    return logs


def observe(component: Any, batch: Any, mode: Mode) -> dict[str, Any]:
    """The logs of a batch in a mode."""
    return over_members(component, component, _observe, batch, mode)


def _observe(component: Any, batch: Any, mode: Mode) -> dict[str, Any]:
    bound = bind(component, mode)
    batch = with_outputs(bound, batch)
    return measure(bound, batch, total_loss(bound, batch))


def apply_gradients(state: State, gradients: Any, *, value: Any = None) -> State:
    """The state with its parameters and optimizer state moved by each group's transformation.

    Args:
        state: a `State`.
        gradients: as `differentiate` gives them. A group that has none rests, and its optimizer state with it.
        value: the loss, for transformations that look at it.
    """
    system, updated = state.system, []
    if members_of(system, system):
        raise ValueError(
            f"a step of {type(system).__name__}'s own takes one system at a time; what has one stands inside a population: "
            "fm.Population(fm.defences.SAM(system), n)."
        )
    for group, before in zip(groups(system, state.optimizer, state.plan), state.optimizer_state, strict=True):
        slopes, parameters = group.select(gradients, system), group.select(system, system)
        if not jax.tree.leaves(slopes):
            updated.append(before)
            continue
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers and raises numbers to that power
            changes, after = group.built.transformation.update(slopes, before, parameters, value=value)
            moved = optax.apply_updates(parameters, changes)
        system = _merge(system, moved)
        updated.append(after)
    return state.replace(system=system, optimizer_state=tuple(updated))


def start_optimizer(state: State) -> State:
    """The state with the optimizer's state as it is at first."""
    return over_states(state.system, state, _start_optimizer)[0]


def _start_optimizer(state: State) -> tuple[State, None]:
    system = state.system
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        found = groups(system, state.optimizer, state.plan)
        started = tuple(g.built.transformation.init(g.select(system, system)) for g in found)
    return state.replace(optimizer_state=started), None


def _merge(system: Any, some: Any) -> Any:
    structure = jax.tree.structure(system)
    new = structure.flatten_up_to(some)
    return structure.unflatten([o if n is None else n for o, n in zip(jax.tree.leaves(system), new, strict=True)])


@dispatch
@standard_step
def update(component: object, state, batch, mode):
    require_usual_steps(component, state, batch, mode)
    batch = augmented(component, batch, mode.at("augment"))
    state, logs = over_states(component, state, _descend, batch, mode)
    return end_step(state, batch, mode), logs


def _descend(state: State, batch: Any, mode: Mode) -> tuple[State, dict[str, Any]]:
    value, gradients, moved, logs = differentiate(state.system, batch, mode)
    return apply_gradients(state.replace(system=moved), gradients, value=value), logs


def end_step(state: State, batch: Any, mode: Train) -> State:
    """The state after `after_update`, which does nothing to what rests.

    Args:
        state: a `State` whose parameters have moved.
        batch: a `Batch`, augmented already.
        mode: the step's.
    """
    new = after_update(state.system, batch, mode.at("after_update"))
    if mode.resting and jax.tree.structure(new) == jax.tree.structure(state.system):
        found = zip(leaves(state.system), jax.tree.leaves(new), strict=True)
        new = jax.tree.structure(new).unflatten([old.value if old.path in mode.resting else v for old, v in found])
    return state.replace(system=new)


@standard_step
def _update_as_part(wrapper: Wrapper, state, batch, mode):
    """The step of its part, which then works on the wrapper: what it differentiates is what the wrapper makes of it."""
    part: Any = wrapper
    while update.method(part, state, batch, mode).function is _update_as_part:
        part = getattr(part, part_name(type(part)))
    return update.method(part, state, batch, mode).function(wrapper, state, batch, mode)


update.dispatch(_update_as_part)


def require_usual_steps(component: Any, state: State, batch: Any, mode: Mode) -> None:
    """Raise if something inside has a step of its own, which the component's would leave out."""
    for part in named_parts(component).values() if isinstance(component, Component) else ():
        if isinstance(part, Frozen):
            continue
        if not standard_step.on(update.method(part, state, batch, mode)):
            raise ValueError(
                f"{type(part).__name__} defines its own training step (`update`) and must be the outermost component; inside "
                f"{type(component).__name__} its step would be ignored."
            )
        require_usual_steps(part, state, batch, mode)


@dispatch
def after_update(component: object, batch, mode):
    return component


def learning_rates(before: State, after: State) -> dict[str, Any]:
    """The learning rate of each group in the first update between two states, where it is known."""
    both = before.replace(optimizer_state=(before.optimizer_state, after.optimizer_state))
    return over_states(before.system, both, _learning_rates)[1]


def _learning_rates(state: State) -> tuple[State, dict[str, Any]]:
    found = groups(state.system, state.optimizer, state.plan)
    rates = {}
    for group, before, after in zip(found, *state.optimizer_state, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            rate = group.built.rate(before, after)
        if rate is not None:
            rates["lr" if len(found) == 1 else f"lr/{group.path or 'rest'}"] = Last(jnp.asarray(rate, jnp.float32))
    return state, rates


def _step(
    structure: Structure, leaves: list[Any], raw_key: Any, step: Any, raw: Any, resting: frozenset[str]
) -> tuple[list[Any], dict[str, Any]]:
    """The leaves after a step, and its logs as mergeable values."""
    state = State.of(leaves, raw_key, step, structure)
    component = state.system
    mode = Train(jax.random.fold_in(state.key, state.step), state.step, resting)
    new, logs = update(component, state, as_batch(component, raw), mode)
    _require_same(state, new)
    logs = {name: v if isinstance(v, Mergeable) else Mean(v) for name, v in logs.items()}
    return new.arrays, {**learning_rates(state, new), **logs}


def _require_same(old: State, new: State) -> None:
    """A step that changed the structure or a type would compile again, or fail, at the next one."""
    if new.structure is not old.structure:
        before, after = (jax.tree.structure((s.system, s.optimizer_state)) for s in (old, new))
        raise TypeError(f"the step changed the state's structure.\nbefore: {before}\nafter:  {after}")
    paths = jax.tree_util.tree_flatten_with_path(old)[0]
    for (path, a), b in zip(paths, jax.tree.leaves(new), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            name = jax.tree_util.keystr(path).lstrip(".")
            raise TypeError(f"the step changed {name} from {a.dtype}{list(a.shape)} to {b.dtype}{list(b.shape)}.")


step_program = per_structure(inline=True, static_argnums=4)(_step)


def step_structure(structure: Structure) -> Structure:
    """What a step is compiled for: the structure without the plan, unless the step is known to read that."""
    return structure if "reads the plan" in structure.programs else without_plan(structure)


def for_every_plan(program: Callable[..., T], structure: Structure, *args: Any) -> T:
    """`program(structure, *args)`, which is one for all plans if it does not read the plan."""
    try:
        return program(step_structure(structure), *args)
    except PlanRead:
        structure.programs["reads the plan"] = True
    return program(structure, *args)


def traced_step(state: State, raw: Any, resting: frozenset[str] = NOBODY) -> Any:
    """The step as jit traces it, with its program and what it returns."""
    arrays = state.arrays, state.raw_key, state.step
    return for_every_plan(lambda structure: step_program.of(structure).trace(*arrays, raw, resting), state.structure)


@per_structure(static_argnums=4)
def _train_step(
    structure: Structure, leaves: list[Any], raw_key: Any, step: Any, raw: Any, resting: frozenset[str]
) -> tuple[list[Any], dict[str, Any]]:
    leaves, logs = step_program(structure, leaves, raw_key, step, raw, resting)
    return leaves, {key: value for name, figure in logs.items() for key, value in figure.logged(name).items()}


@dispatch
def train_step(state: State, batch):
    batch = _at_border(state, batch)
    schedule, arrays = update_schedule(state), (state.arrays, state.raw_key, state.step, batch)
    step = functools.partial(for_every_plan, _train_step, state.structure)
    if schedule.every and isinstance(state.step, Tracer):
        # In a loop or a jit of somebody else's, who moves is part of what is computed.
        programs = [lambda *arrays, resting=resting: step(*arrays, resting) for resting in schedule.sets()]
        leaves, logs = jax.lax.switch(schedule.index(state.step), programs, *arrays)
    else:
        leaves, logs = step(*arrays, schedule.at(int(state.step)) if schedule.every else NOBODY)
    return state.next(leaves), logs


@dispatch
def train_step(component: Component, batch):
    raise TypeError(
        f"train_step takes a state, and a {type(component).__name__} came: state = fm.setup(component, data, optimizer=optax.adam, "
        "lr=1e-3)."
    )


def _measure_step(component: Any, raw: Any, key: Any) -> dict[str, Any]:
    return observe(component, as_batch(component, raw), Eval(key))


@per_structure()
def _eval_step(structure: Structure, leaves: list[Any], raw_key: Any, step: Any, raw: Any) -> dict[str, Any]:
    state = State.of(leaves, raw_key, step, structure)
    return _measure_step(state.system, raw, state.key)


@dispatch
def eval_step(state: State, batch):
    return _eval_step(without_plan(state.structure), state.arrays, state.raw_key, state.step, _at_border(state, batch))


# Up to how many axes host arrays may be labels or weights, by their type; other types need a closer look.
_AXES = {np.dtype(name): 2 for name in ("int8", "int16", "int32", "int64")}
_AXES |= {np.dtype(name): 1 for name in ("float16", "float32")}
_AXES |= {np.dtype(name): -1 for name in ("bool", "uint8", "uint16", "uint32", "uint64")}
_least = np.minimum.reduce


def _at_border(state: State, raw: Any) -> Any:
    """The data of a step, checked. Compiled code cannot refuse a label or a weight below 0, so the host looks at them."""
    for leaf in raw if type(raw) is tuple else jax.tree.leaves(raw):
        if type(leaf) is np.ndarray:
            axes = _AXES.get(leaf.dtype)
            if axes is None or (leaf.ndim <= axes and leaf.size and not _least(leaf, axis=None) >= 0):
                return _validated(state, raw)
        elif not isinstance(leaf, jax.Array):
            return _validated(state, raw)
    return raw


def _validated(state: State, raw: Any) -> Any:
    # Which arrays of a batch `validate` has accepted with negative numbers: it traces the model, so it is asked once.
    raw, known = checked_batch(raw), state.structure.programs.setdefault("signed", set())
    signed = {i for i, leaf in enumerate(jax.tree.leaves(raw)) if _may_be_wrong(leaf)}
    if not signed <= known:
        validate(state.system, checked_batch(as_batch(state.system, raw)))
        known |= signed
    return raw


def _may_be_wrong(leaf: Any) -> bool:
    """Whether a host array has negative numbers or NaN, and the size of labels or weights."""
    if not isinstance(leaf, np.ndarray) or not leaf.size or leaf.ndim > _AXES.get(leaf.dtype, 1):
        return False
    return not _least(leaf, axis=None) >= 0


# A state stands for its system where something is to be looked at; raw data becomes the system's batch.


def _look(state: State, mode: Mode) -> Any:
    """The system in a mode; an evaluation without a key draws by the state's."""
    return bind(state.system, Eval(state.key) if isinstance(mode, Eval) and mode.root is None else mode)


@dispatch
def losses(state: State, batch, mode: Mode):
    return losses(_look(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def loss(state: State, batch, mode: Mode):
    return loss(_look(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def metrics(state: State, batch, mode: Mode):
    return metrics(_look(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def predictions(state: State, batch, mode: Mode):
    return predictions(_look(state, mode), checked_batch(as_batch(state.system, batch)))


@dispatch
def forward(state: State, *inputs, mode: Mode):
    return forward(_look(state, mode), *inputs)

"""`NaNGuard`: finds the first value of a run that is not finite, and undoes its step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.compose.example_means import total_loss
from fulmen.compose.part_defaults import augmented
from fulmen.core import Component, State, Train, bound_mode, by_path, named_arrays
from fulmen.core.immutable import Immutable
from fulmen.core.leaves import components, is_array, leaves
from fulmen.core.verbs import as_batch, bind, on, owns, restore_run_state, run_state
from fulmen.data.arrays import check_positive
from fulmen.dispatching.compiled_code import recorded
from fulmen.dispatching.location import place
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.events import FitEnd, FitStart, StepEnd
from fulmen.train.gradients import differentiate

_POLICIES = {
    "stop": "the run ends with the state before this step",
    "skip": "the step was undone",
    "rollback": "the run continues with the arrays of step {step}",
}
_SHOWN = 5  # names in a list


class NonFinite(Immutable):
    """A step with values that are not finite, NaN or infinite.

    Attributes:
        step: the number of the step, from 1.
        epoch: the number of the epoch, from 0.
        batch: the index of the batch in its epoch.
        data: for each array of the batch that is not finite, the rows, by name.
        component: the path of the component with the first output that is not finite; None if every output is finite, `""` for the
            system itself.
        method: that component's method, with its file and line.
        leaves: the paths of the parameters with a gradient that is not finite; if there are none, of the arrays of the state that
            are not finite after the step.
    """

    step: int
    epoch: int
    batch: int
    data: dict[str, list[int]]
    component: str | None
    method: str
    leaves: list[str]

    def __str__(self) -> str:
        found = [f"{name} is not finite in the rows {_listed(rows)}" for name, rows in self.data.items()]
        if self.component is not None:
            found.append(
                f"the first output that is not finite is that of {self.method} at {self.component or 'the system'!r}"
            )
        if self.leaves:
            found.append(f"not finite at {_listed(self.leaves)}")
        what = "; ".join(found) or "the loss is not finite"
        return f"step {self.step} (batch {self.batch} of epoch {self.epoch + 1}): {what}"


class NaNGuard:
    """A callback that undoes a step after which the loss or the state is not finite, and reports where that began.

    It checks every step, so the steps wait for the device, and it keeps a copy of the state. The report names the arrays of the
    batch, the first component whose output is not finite, with its method, and the parameters; it is a warning, and is kept in
    `found`. The logs of an undone step do not count.

    Args:
        policy: `"stop"` ends the run with the state before the step; `"skip"` undoes the step and continues with the next
            batch; `"rollback"` continues with the next batch and an older state.
        every: for "rollback", the number of steps between the states that are kept; the newest of them is used.
        limit: the number of undone steps after which the run ends.

    Attributes:
        found: a `NonFinite` for each undone step.

    Raises:
        ValueError: for an unknown policy.

    >>> guard = fm.NaNGuard("skip")
    >>> guard.found
    []
    """

    def __init__(self, policy: str = "stop", every: int = 100, limit: int = 10) -> None:
        if policy not in _POLICIES:
            raise ValueError(f"NaNGuard.policy must be 'stop', 'skip' or 'rollback', got {policy!r}.")
        check_positive("NaNGuard.every", every)
        check_positive("NaNGuard.limit", limit)
        self.policy, self.every, self.limit = policy, every, limit
        self.found: list[NonFinite] = []
        self.good: Any = None
        self.kept: Any = None

    def keep(self, run: Any) -> list[str]:
        """Copy the state if it is finite. Returns the paths of the arrays that are not."""
        state = run.arrays()
        finite, copies = _checked_copy(state.arrays)
        finite = np.asarray(finite)
        if not finite.all():
            return [path for (path, _), is_finite in zip(by_path(state), finite) if not is_finite]
        self.good = State.of(copies, state.raw_key, state.step, state.structure)
        if self.kept is None or run.step % self.every == 0:
            self.kept = self.good
        return []

    def undo(self, run: Any, broken: list[str]) -> None:
        """Report a step that is not finite, and replace the state."""
        where = NonFinite(run.step, run.epoch, run.position["batch"] - 1, *_locate(self.good, run.batch, broken))
        self.found.append(where)
        policy = self.policy if len(self.found) < self.limit else "stop"
        state = self.kept if policy == "rollback" else self.good
        action = _POLICIES[policy].format(step=int(state.step))
        warn(f"NaNGuard: {where}. {action[0].upper()}{action[1:]}.")
        run.discard_logs()
        if policy == "stop":
            run.stop()
        else:  # the number of steps does not go back: it counts batches, and determines the random keys
            state = self.good = State.of(state.arrays, state.raw_key, np.int32(run.step), state.structure)
        run.state = state


@jax.jit
def _checked_copy(arrays: list[Any]) -> tuple[Any, list[Any]]:
    """Whether each array is finite, and copies of all."""
    floats = [jnp.issubdtype(v.dtype, jnp.inexact) for v in arrays]
    finite = [jnp.isfinite(v).all() if f else jnp.asarray(True) for v, f in zip(arrays, floats, strict=True)]
    return jnp.stack(finite), [jnp.copy(v) for v in arrays]


@dispatch
def owns(callback: NaNGuard):
    return ("state",)


@dispatch
def run_state(callback: NaNGuard):
    return {"found": [dataclasses.asdict(each) for each in callback.found]}


@dispatch
def restore_run_state(callback: NaNGuard, saved):
    callback.found = [NonFinite(**each) for each in saved["found"]]


@dispatch
def on(event: FitStart, callback: NaNGuard, run):
    if not run.done:  # the run is not resumed
        callback.found = []
    broken = callback.keep(run)
    if broken:
        raise ValueError(
            f"NaNGuard: the state must be finite before the first step, got NaN or infinity at {', '.join(broken)}."
        )


@dispatch
def on(event: StepEnd, callback: NaNGuard, run):
    broken = callback.keep(run) if np.isfinite(run.logs["loss"]) else ["loss"]
    if broken:
        callback.undo(run, broken)


@dispatch
def on(event: FitEnd, callback: NaNGuard, run):
    callback.good = callback.kept = None


# Where it began


def _locate(state: State, raw: Any, broken: list[str]) -> tuple[dict[str, list[int]], str | None, str, list[str]]:
    """The fields `data`, `component`, `method` and `leaves` of a `NonFinite`, from the state before the step, and its batch.

    `broken` are the paths of the arrays of the state that are not finite after the step.
    """
    data = {name: rows for name, value in named_arrays(raw) if (rows := _rows(value))}
    mode = Train(jax.random.fold_in(state.key, state.step), state.step)
    batch = augmented(state.system, as_batch(state.system, raw), mode.at("augment"))
    component, method = _first_output(state.system, batch, mode)
    slopes = jax.jit(_finite_gradients)(state.system, batch, mode)
    paths = [leaf.path for leaf, finite in zip(leaves(state.system), slopes, strict=True) if not finite]
    return data, component, method, paths or broken


def _first_output(system: Any, batch: Any, mode: Train) -> tuple[str | None, str]:
    """The component whose method is the first to return a value that is not finite, and the method."""
    bound = bind(system, mode)
    # A bound component is recognised by the salt of its mode, which its path determines.
    paths: dict[int | None, str] = {salt: path for path, part in components(bound) if (salt := _salt(part)) is not None}
    found: list[tuple[str, str]] = []

    def returned(verb: Any, method: Any, args: tuple[Any, ...], result: Any) -> None:
        if found or method is None or not args or not isinstance(args[0], Component) or _finite(result):
            return
        path = paths.get(_salt(args[0]), type(args[0]).__name__)
        found.append((path, f"{method} ({place(method.location, method.module)})"))

    recorded(lambda: total_loss(bound, batch), returned)
    return found[0] if found else (None, "")


def _salt(component: Any) -> int | None:
    salt: Any = getattr(bound_mode(component), "salt", None)
    return None if salt is None or isinstance(salt, Tracer) else int(salt)


def _finite_gradients(system: Any, batch: Any, mode: Train) -> list[Any]:
    """For each leaf, whether its gradient is finite."""
    _, gradients, _, _ = differentiate(system, batch, mode)
    slopes = jax.tree.structure(system).flatten_up_to(gradients)
    return [jnp.asarray(True) if g is None else jnp.isfinite(g).all() for g in slopes]


def _finite(tree: Any) -> bool:
    values = [v for v in jax.tree.leaves(tree) if is_array(v) and not isinstance(v, Tracer)]
    return all(bool(jnp.isfinite(v).all()) for v in values if jnp.issubdtype(v.dtype, jnp.inexact))


def _rows(value: Any) -> list[int]:
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return []
    wrong = ~np.isfinite(np.asarray(value, np.float32))
    return np.flatnonzero(wrong.reshape(len(wrong), -1).any(1)).tolist() if wrong.ndim else [0] * bool(wrong)


def _listed(names: Any) -> str:
    """The first names, and the number of the others."""
    shown = ", ".join(map(str, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"

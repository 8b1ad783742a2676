"""`NaNGuard`: finds the first value of a run that is not finite, and undoes its step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.state import State
from fulmen.core.verbs import on, owns, restore_run_state, run_state
from fulmen.data.arrays import check_positive
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.callbacks.nan_location import NonFinite, locate
from fulmen.train.events import FitEnd, FitStart, StepEnd

_POLICIES = {
    "stop": "the run ends with the state before this step",
    "skip": "the step was undone",
    "rollback": "the run continues with the arrays of step {step}",
}


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
            named = [jax.tree_util.keystr(path).lstrip(".") for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
            return [named[i] for i in np.flatnonzero(~finite)]
        self.good = State.of(copies, state.raw_key, state.step, state.structure)
        if self.kept is None or run.step % self.every == 0:
            self.kept = self.good
        return []

    def undo(self, run: Any, broken: list[str]) -> None:
        """Report a step that is not finite, and replace the state."""
        where = NonFinite(run.step, run.epoch, run.position["batch"] - 1, *locate(self.good, run.batch, broken))
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

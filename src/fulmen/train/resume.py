"""What a checkpoint keeps of a run beside the state, and how a run continues with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import Plan, State
from fulmen.core.verbs import restore_run_state, run_state
from fulmen.data.source import Source
from fulmen.dispatching.warning import warn
from fulmen.optimizers import schedule_is_replaced
from fulmen.train.events import Run
from fulmen.train.step_loop import StepLoop

_LENGTH = ("epochs", "steps")


def run_data(run: Run) -> dict[str, Any]:
    """All that a run needs to continue, except the state's arrays, as a dict that JSON can hold."""
    optimizer = run.arrays().optimizer
    return {
        "position": run.position,
        "options": run.options,
        "optimizer": _described(optimizer),  # a callback may have changed its learning rate
        "schedule_replaced": schedule_is_replaced(optimizer),
        "plan": dataclasses.asdict(run.plan),
        "history": {name: values.tolist() for name, values in run.history.items()},
        "callbacks": {name: saved for name, callback in _named(run.callbacks) if (saved := run_state(callback)) is not None},
    }


def resume_run(saved: dict[str, Any], loop: StepLoop, source: Source, plan: Plan) -> tuple[int, int]:
    """Continue a run by what `run_data` returned, unless it reads other batches; the loop has the saved state already.

    Returns the epoch and the index of the batch in it to continue with.
    """
    run, position = loop.run, saved["position"]
    differ = {name: value for name, value in saved["options"].items() if run.options.get(name, value) != value}
    read = [name for name in differ if name not in _LENGTH]
    if read:
        raise ValueError(
            "the run must be resumed with the options that it had, got "
            + ", ".join(f"{name}={run.options[name]!r} instead of {differ[name]!r}" for name in read)
            + "."
        )
    run.history.update({name: np.asarray(values) for name, values in saved["history"].items()})
    for name, callback in _named(run.callbacks):
        if name in saved["callbacks"]:
            restore_run_state(callback, saved["callbacks"][name])
    at = position["epoch"], position["batch"]
    source.move(at, position["data"])
    loop.restore(position, source.first(plan) if position["logs"] is not None else None)
    _warn_of_length(loop, differ)
    return at


def is_complete(loop: StepLoop) -> bool:
    """Whether a run has done all of its steps, and validated its last epoch."""
    left = _left(loop)
    return left is not None and (left < 0 or (left == 0 and not loop.batches))


def _left(loop: StepLoop) -> int | None:
    """The number of remaining steps, or of remaining epochs; negative if a resumed run was longer. None if it is unknown."""
    run, epochs = loop.run, loop.run.options["epochs"]
    if epochs is None:
        return run.left()
    return epochs - (loop.epoch - loop.first) - bool(loop.batches)  # a phase may leave out steps, and data have no length


def _warn_of_length(loop: StepLoop, differ: dict[str, Any]) -> None:
    """Warn of another length than that of the run that is resumed."""
    run, left = loop.run, _left(loop)
    name = "steps" if run.options["epochs"] is None else "epochs"
    if left is not None and left < 0:
        enough = f"{name}={differ[name]} or more" if differ.get(name) else f"a larger {name}=…"
        warn(
            f"the run has done {run.done} steps, more than {name}={run.options[name]} needs, so nothing is trained, and the state of its "
            f"newest checkpoint is returned. Write {enough} to continue it, fm.restore(directory, like=state, step=…) for an earlier "
            "state, or another directory to start again."
        )
    elif differ:
        warn(
            "the resumed run has another length than before: "
            + ", ".join(f"{each}={run.options[each]!r} instead of {value!r}" for each, value in differ.items())
            + ". A schedule that depends on the length of the run changes."
        )


def same_optimizer(state: State, saved: dict[str, Any] | None) -> str:
    """The optimizer of a run in words, to be compared when the run is resumed.

    Args:
        state: that of `fit`, before the checkpoint's arrays are loaded.
        saved: what `run_data` returned for the run that is resumed, or None; another optimizer than its raises a ValueError.
    """
    given = _described(state.optimizer)
    before = given if saved is None else saved["options"].get("optimizer", given)
    if saved is not None and given not in (before, saved.get("optimizer", before)):
        raise ValueError(
            f"the run must be resumed with the optimizer that it had, got {given} instead of {before}. To train on with another "
            "learning rate, write\n\n    state = fm.restore(directory, like=fm.setup(…))  # with the arguments that the run had\n"
            '    state = fm.replace(state, {"optimizer.lr": 1e-3})\n\nand fit that state without `resume`, saving into another directory. '
            "For another optimizer, fit its system: fm.fit(state.system, …, optimizer=…)."
        )
    return before


def _described(optimizer: Any) -> str:
    """An optimizer as text that is the same in each process: functions have no addresses."""
    if type(optimizer) in (optax.GradientTransformation, optax.GradientTransformationExtraArgs):
        return "an optax transformation"
    if isinstance(optimizer, Mapping):
        return f"{{{', '.join(f'{path!r}: {_described(each)}' for path, each in optimizer.items())}}}"
    return re.sub(" at 0x[0-9a-fA-F]+", "", repr(jax.tree.map(_number, optimizer)))


def _number(leaf: Any) -> Any:
    """A number or an array of numbers as Python has them, since the text of an array in a tree is its shape."""
    if not jnp.issubdtype(getattr(leaf, "dtype", object), jnp.floating):
        return leaf
    values = [float(f"{float(value):.6g}") for value in np.ravel(leaf)]
    return values if np.ndim(leaf) else values[0]


def _named(callbacks: list[Any]) -> Iterator[tuple[str, Any]]:
    """The callbacks by the name of their type and a number."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        yield f"{kind}#{seen.setdefault(kind, 0)}", callback
        seen[kind] += 1

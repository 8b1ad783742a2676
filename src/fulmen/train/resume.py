"""What a checkpoint keeps of a run beside the state, and how a run continues with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from fulmen.core.mode import Plan
from fulmen.core.verbs import restore_run_state, run_state
from fulmen.data.source import Source
from fulmen.dispatching.warning import warn
from fulmen.train.events import Run
from fulmen.train.step_loop import StepLoop

_LENGTH = ("epochs", "steps")


def run_data(run: Run) -> dict[str, Any]:
    """All that a run needs to continue, except the state's arrays, as a dict that JSON can hold."""
    return {
        "position": run.position,
        "options": run.options,
        "plan": dataclasses.asdict(run.plan),
        "history": {name: values.tolist() for name, values in run.history.items()},
        "callbacks": {name: saved for name, callback in _named(run.callbacks) if (saved := run_state(callback)) is not None},
    }


def resume_run(saved: dict[str, Any], loop: StepLoop, source: Source, plan: Plan) -> tuple[int, int]:
    """Continue a run.

    Args:
        saved: what `run_data` returned.
        loop: the loop, which has the saved state.
        source: the data.
        plan: the plan of the run.

    Returns:
        The epoch and the index of the batch in it to continue with.

    Raises:
        ValueError: if the run reads other batches than the saved one.
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
    if differ:
        warn(
            "the resumed run has another length than before: "
            + ", ".join(f"{name}={run.options[name]!r} instead of {value!r}" for name, value in differ.items())
            + ". A schedule that depends on the length of the run changes."
        )
    run.history.update({name: np.asarray(values) for name, values in saved["history"].items()})
    for name, callback in _named(run.callbacks):
        if name in saved["callbacks"]:
            restore_run_state(callback, saved["callbacks"][name])
    at = position["epoch"], position["batch"]
    source.move(at, position["data"])
    loop.restore(position, source.first(plan) if position["logs"] is not None else None)
    return at


def _named(callbacks: list[Any]) -> Iterator[tuple[str, Any]]:
    """The callbacks by the name of their type and a number."""
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        yield f"{kind}#{seen.setdefault(kind, 0)}", callback
        seen[kind] += 1

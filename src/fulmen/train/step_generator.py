"""`steps`: training as a generator, for loops written by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fulmen.core.component import Component
from fulmen.core.mode import Plan
from fulmen.core.state import State
from fulmen.core.verbs import steps, train_step
from fulmen.data.source import Source
from fulmen.devices.placement import on_devices
from fulmen.dispatching.registry import dispatch
from fulmen.train.run_options import first_batch, prepare, warn_past_plan


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


@dispatch
def steps(component: Component, data):
    raise TypeError(
        f"steps takes a state, got the component {type(component).__name__}: state = fm.setup(component, data, optimizer=optax.adam, "
        "lr=1e-3)."
    )

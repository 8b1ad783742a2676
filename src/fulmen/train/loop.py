"""`fit` and `steps`: the loop around the step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fulmen.core.component import Component, Game
from fulmen.core.leaves import components, require_concrete
from fulmen.core.mode import Plan
from fulmen.core.state import State
from fulmen.core.verbs import fit, setup, steps, train_step
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.optimizers import groups
from fulmen.train.evaluation import checked_source, evaluate_source, evaluation_size
from fulmen.train.events import (
    EpochEnd,
    EpochStart,
    FitEnd,
    FitStart,
    Interrupted,
    Run,
    ValidationEnd,
    require_listeners,
)
from fulmen.train.history import History
from fulmen.train.interruption import Interruption, interruptible
from fulmen.train.progress import progress_callbacks
from fulmen.train.setup import require_known
from fulmen.train.step_loop import StepLoop

_LENGTH = ("epochs", "steps", "batch_size", "seed", "drop_last")  # options of a run over the data


@dispatch
def fit(state: State, data, *, validation=None, callbacks=(), progress=True, **options):
    unknown = {name: value for name, value in options.items() if name not in _LENGTH}
    if unknown:
        require_known(None, unknown)
        raise TypeError(
            f"{', '.join(unknown)}: a state keeps its optimizer and plan. To start again with its arrays, give the component: "
            "fm.fit(state.system, data, optimizer=…, …)."
        )
    with interruptible(starting=True) as interrupted:
        source, plan = prepare("fit", state, data, **options)
        epochs = options.get("epochs")
        validated = None if validation is None else _validation(state, validation, epochs)
        shown = progress_callbacks(progress)
        loop = _step_loop(state, plan, [*_listed(callbacks), *shown])
        run = loop.run
        ahead = source.epochs(plan, _first_batch(state, epochs, plan), run.left, state.system)
        loop.tell(FitStart())
        try:
            _run_epochs(loop, ahead, epochs, validated, interrupted)
            if interrupted.is_set():
                loop.tell(Interrupted())
        finally:
            run.seconds = loop.elapsed()
            loop.tell(FitEnd())
        if interrupted.is_set() and shown:
            of = "" if run.steps is None else f" of {run.steps}"
            print(f"Interrupted: the state after {run.done}{of} steps is returned.")
        return loop.state(), run.history


@dispatch
def fit(component: object, data, *, validation=None, callbacks=(), progress=True, **options):
    require_concrete("fit", "train_step(state, batch)", component, data)
    data = Source.of(data)
    require_known(options.get("optimizer"), options)
    length = {name: value for name, value in options.items() if name in _LENGTH}
    _require_length(**length)
    data.plan(**length)
    with interruptible(starting=True) as interrupted:
        state = setup(component, data, **options)
        interrupted.stop_if_starting()
        return fit(state, data, validation=validation, callbacks=callbacks, progress=progress, **length)


def _step_loop(state: State, plan: Plan, callbacks: list[Any]) -> StepLoop:
    _warn_past_plan(state, plan.total_steps)
    history = History()
    history.opposed = any(isinstance(part, Game) for _, part in components(state.system))
    run = Run(state.plan, history, steps=plan.total_steps, step=int(state.step))
    require_listeners(callbacks, run)
    return StepLoop(state, run, callbacks)


def _run_epochs(loop: StepLoop, ahead: Iterator[Any], epochs: int | None, validated: Any, interrupted: Interruption) -> None:
    """Train and validate epoch by epoch, until the run is complete or stopped.

    Args:
        ahead: the batches of each epoch.
        epochs: how many, for data without a length.
        validated: the source and plan of the validation data, or None.
    """
    run, diverged = loop.run, False
    for epoch, batches in enumerate(ahead):
        if run.stopping:
            break
        run.epoch = epoch
        begun = time.perf_counter()
        loop.tell(EpochStart())
        with contextlib.closing(batches):
            loop.run_epoch(batches, interrupted)
        training_logs = run.logs = loop.epoch_logs()
        run.seconds = loop.elapsed()
        diverged = diverged or _warn_if_diverged(training_logs, epoch)
        loop.tell(EpochEnd())
        if validated is not None and not interrupted.is_set():
            now = loop.state()
            measured = evaluate_source(now.system, now.key, *validated, owner=now.structure)
            run.logs = {**training_logs, **{f"validation/{k}": v for k, v in measured.items()}}
            loop.tell(ValidationEnd())
        if interrupted.is_set():
            run.stop()
        run.history.append({**run.logs, "seconds": time.perf_counter() - begun})
        if run.left() == 0 or (run.steps is None and epoch + 1 == epochs):
            break


def prepare(
    verb: str, state: State, data: Any, *, epochs: Any = None, steps: Any = None, seed: Any = 0, **options: Any
) -> tuple[Source, Plan]:
    """The checked data of a run, and the run's plan. `options` are those of `Source.plan`."""
    require_concrete(verb, "train_step(state, batch)", state, data)
    source = Source.of(data)
    if source.in_memory:
        source.validate(state.system, source.data)
    _require_length(epochs, steps)
    return source, source.plan(usual=state.plan.batch_size, epochs=epochs, steps=steps, seed=seed, **options)


def _validation(state: State, data: Any, epochs: int | None) -> tuple[Source, Plan]:
    source = checked_source(state.system, data, "validation")
    return source, source.plan(usual=evaluation_size(state), epochs=epochs)


def _listed(callbacks: Any) -> list[Any]:
    if not isinstance(callbacks, Iterable):
        name = type(callbacks).__name__
        raise TypeError(f"callbacks must be a list, got {name}; write callbacks=[…].")
    return list(callbacks)


def _require_length(epochs: int | None = None, steps: int | None = None, **options: Any) -> None:
    if (epochs is None) == (steps is None):
        got = "neither" if epochs is None else "both"
        raise ValueError(f"either `epochs` or `steps` must be given, got {got}; write epochs=10 or steps=1000.")


def _first_batch(state: State, epochs: int | None, plan: Plan) -> int:
    """How many batches of the data a run skips: `epochs` start with a whole epoch, `steps` where the state stopped."""
    done, each = int(state.step), plan.steps_per_epoch
    if epochs is None:
        return done
    return -(-done // each) * each if each else 0


def _warn_past_plan(state: State, total: int | None) -> None:
    planned = state.plan.total_steps
    if planned is None or total is None or int(state.step) + total <= planned:
        return
    last = int(state.step) + total
    if any(
        g.built.end is not None and last > g.built.end * g.every for g in groups(state.system, state.optimizer, state.plan)
    ):
        warn(
            f"this run ends at step {last}, but the state's plan ends at {planned}: the learning rate's schedule is past its end. "
            "`fm.fit(state.system, …, optimizer=…)` starts a new schedule with the same arrays.",
        )


def _warn_if_diverged(logs: dict[str, Any], epoch: int) -> bool:
    """Whether an epoch's loss, or that of any member of a population, is not finite; then it warns."""
    finite = np.isfinite(logs.get("loss/members", logs.get("loss", 0.0)))
    if finite.all():
        return False
    who = f" (members {', '.join(map(str, np.flatnonzero(~finite)))})" if finite.ndim else ""
    warn(
        f"the loss{who} is not finite in epoch {epoch + 1}. A smaller learning rate may help; if the first step is not "
        "finite, `fm.check(component, data, optimizer=…)` finds the cause."
    )
    return True


@dispatch
def steps(state: State, data, *, epochs=None, steps=None, batch_size=None, seed=0, drop_last=False):
    reading = dict(batch_size=batch_size, seed=seed, drop_last=drop_last)
    source, plan = prepare("steps", state, data, epochs=epochs, steps=steps, **reading)
    _warn_past_plan(state, plan.total_steps)
    return _steps(state, source, plan, epochs)


def _steps(state: State, source: Source, plan: Plan, epochs: int | None) -> Iterator[Any]:
    done, total = 0, plan.total_steps
    left = lambda: None if total is None else total - done
    for number, found in enumerate(source.epochs(plan, _first_batch(state, epochs, plan), left, state.system)):
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

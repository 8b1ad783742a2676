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


@dispatch
def fit(
    state: State,
    data,
    *,
    epochs=None,
    steps=None,
    batch_size=None,
    validation=None,
    callbacks=(),
    seed=0,
    progress=True,
    drop_last=False,
    **options,
):
    if options:
        require_known(None, options)
        raise TypeError(
            f"{', '.join(options)}: a state keeps its optimizer and plan. To start anew with its arrays, give the component: "
            "fm.fit(state.system, data, optimizer=…, …)."
        )
    with interruptible(starting=True) as interrupted:
        source, plan = prepare("fit", state, data, batch_size, epochs, steps, seed, drop_last)
        validated = None if validation is None else _validation(state, validation, epochs)
        return _run(state, source, plan, validated, epochs, callbacks, progress_callbacks(progress), interrupted)


@dispatch
def fit(
    component: object,
    data,
    *,
    epochs=None,
    steps=None,
    batch_size=None,
    validation=None,
    callbacks=(),
    seed=0,
    progress=True,
    drop_last=False,
    **options,
):
    require_concrete("fit", "train_step(state, batch)", component, data)
    data = Source.of(data)
    require_known(options.get("optimizer"), options)
    _require_length(epochs, steps)
    data.plan(batch_size, epochs=epochs, steps=steps, drop_last=drop_last)
    length = dict(epochs=epochs, steps=steps, batch_size=batch_size, drop_last=drop_last)
    rest = dict(validation=validation, callbacks=callbacks, seed=seed, progress=progress)
    with interruptible(starting=True) as interrupted:
        state = setup(component, data, seed=seed, **length, **options)
        interrupted.stop_if_starting()
        return fit(state, data, **length, **rest)


def _run(
    state: State,
    source: Source,
    plan: Plan,
    validated: tuple[Source, Plan] | None,
    epochs: int | None,
    callbacks: Any,
    shown: list[Any],
    interrupted: Interruption,
) -> tuple[State, History]:
    """`fit` on data that was checked.

    Args:
        shown: the callbacks that show progress; without any, nothing is printed.
    """
    total = plan.total_steps
    _warn_past_plan(state, total)
    history = History()
    history.opposed = any(isinstance(part, Game) for _, part in components(state.system))
    run = Run(state.plan, history, steps=total, step=int(state.step))
    listening = [*_listed(callbacks), *shown]
    require_listeners(listening, run)
    loop = StepLoop(state, run, listening)
    begun, diverged = time.perf_counter(), False
    epochs_ahead = source.epochs(plan, _place(state, epochs, plan), run.left, state.system)
    loop.tell(FitStart())
    try:
        for epoch, found in enumerate(epochs_ahead):
            if run.stopping:
                break
            run.epoch = epoch
            begun_epoch = time.perf_counter()
            loop.tell(EpochStart())
            with contextlib.closing(found):
                loop.run_epoch(found, interrupted, begun)
            run.logs, run.seconds = loop.epoch_figures(), time.perf_counter() - begun
            figures = run.logs
            diverged = diverged or _warn_if_diverged(figures, run.epoch)
            loop.tell(EpochEnd())
            if validated is not None and not interrupted.is_set():
                now = loop.state()
                measured = evaluate_source(now.system, now.key, *validated, owner=now.structure)
                run.logs = {**figures, **{f"validation/{k}": v for k, v in measured.items()}}
                loop.tell(ValidationEnd())
            if interrupted.is_set():
                run.stop()
            run.history.append({**run.logs, "seconds": time.perf_counter() - begun_epoch})
            if run.left() == 0 or (total is None and run.epoch + 1 == epochs):
                break
        if interrupted.is_set():
            loop.tell(Interrupted())
    finally:
        run.seconds = time.perf_counter() - begun
        loop.tell(FitEnd())
    if interrupted.is_set() and shown:
        print(f"Interrupted: the state after {run.done}{f' of {total}' * (total is not None)} steps is returned.")
    return loop.state(), run.history


def prepare(
    verb: str,
    state: State,
    data: Any,
    batch_size: int | None,
    epochs: int | None,
    steps: int | None,
    seed: int | None,
    drop_last: bool,
) -> tuple[Source, Plan]:
    """The data of a run, checked, and what is known of the run."""
    require_concrete(verb, "train_step(state, batch)", state, data)
    source = Source.of(data)
    if source.in_memory:
        source.validate(state.system, source.data)
    _require_length(epochs, steps)
    usual = state.plan.batch_size
    return source, source.plan(batch_size, usual=usual, epochs=epochs, steps=steps, seed=seed, drop_last=drop_last)


def _validation(state: State, data: Any, epochs: int | None) -> tuple[Source, Plan]:
    source = checked_source(state.system, data, "validation")
    return source, source.plan(usual=evaluation_size(state), epochs=epochs)


def _listed(callbacks: Any) -> list[Any]:
    if not isinstance(callbacks, Iterable):
        name = type(callbacks).__name__
        raise TypeError(f"callbacks: a list of objects was expected, and one {name} came: callbacks=[…].")
    return list(callbacks)


def _require_length(epochs: int | None, steps: int | None) -> None:
    if (epochs is None) == (steps is None):
        came = "neither came" if epochs is None else "both came"
        raise ValueError(f"how long to train: either epochs= or steps= was expected, and {came}.")


def _place(state: State, epochs: int | None, plan: Plan) -> int:
    """After how many batches a run begins: whole epochs with the next one, steps in the midst of where the state stopped."""
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
            f"this run goes to step {last}, and the state's plan ends at {planned}: the learning rate's schedule is past its "
            "end. `fm.fit(state.system, …, optimizer=…)` starts anew with the same arrays.",
        )


def _warn_if_diverged(figures: dict[str, Any], epoch: int) -> bool:
    """Whether an epoch's loss is not finite, of which is warned; of a population, whether any member's is not."""
    finite = np.isfinite(figures.get("loss/members", figures.get("loss", 0.0)))
    if finite.all():
        return False
    who = f" (members {', '.join(map(str, np.flatnonzero(~finite)))})" if finite.ndim else ""
    warn(
        f"the loss{who} is not finite in epoch {epoch + 1}. A smaller learning rate may help; where the first step is not finite "
        "already, `fm.check(component, data, optimizer=…)` says where."
    )
    return True


@dispatch
def steps(state: State, data, *, epochs=None, steps=None, batch_size=None, seed=0, drop_last=False):
    source, plan = prepare("steps", state, data, batch_size, epochs, steps, seed, drop_last)
    _warn_past_plan(state, plan.total_steps)
    return _steps(state, source, plan, epochs)


def _steps(state: State, source: Source, plan: Plan, epochs: int | None) -> Iterator[Any]:
    done, total = 0, plan.total_steps
    left = lambda: None if total is None else total - done
    for number, found in enumerate(source.epochs(plan, _place(state, epochs, plan), left, state.system)):
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
    raise TypeError("steps takes a state: state = fm.setup(component, data, optimizer=optax.adam, lr=1e-3).")

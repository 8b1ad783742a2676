"""`fit`: the loop over epochs."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fulmen.core import Game, State, components, require_concrete
from fulmen.core.verbs import fit, run_epoch, setup
from fulmen.data.source import Source
from fulmen.devices.placement import on_devices
from fulmen.devices.processes import is_first, require_equal
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.checkpoints import find_resumable, warn_unless_saved
from fulmen.train.events import (
    EpochEnd,
    EpochStart,
    FitEnd,
    FitStart,
    Interrupted,
    Run,
    Stopped,
    check_callbacks,
    in_order,
)
from fulmen.train.every_interval import Every, require_every
from fulmen.train.history import History
from fulmen.train.interruption import Interruption, interactive, interruptible
from fulmen.train.phases import Phase, Training, ValidationSets, trains_in_place
from fulmen.train.progress import progress_callbacks
from fulmen.train.resume import is_complete, resume_run, same_optimizer
from fulmen.train.run_options import READING, first_batch, overfitted, prepare, require_length, warn_of_rate, warn_past_plan
from fulmen.train.setup import require_known
from fulmen.train.step_groups import require_fuse
from fulmen.train.step_loop import StepLoop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dispatch
def fit(
    state: State,
    data,
    *,
    epochs=None,
    steps=None,
    batch_size=None,
    seed=0,
    drop_last=False,
    limit=None,
    validation=None,
    validate_every=None,
    callbacks=(),
    progress=True,
    phase=None,
    overfit=None,
    resume=None,
    devices=None,
    fuse=None,
    **unknown,
):
    if unknown:
        require_known(None, unknown)
        raise TypeError(
            f"{', '.join(unknown)}: a state keeps its optimizer and plan. To start again with its arrays, give the component: "
            "fm.fit(state.system, data, optimizer=…, …)."
        )
    reading = dict(epochs=epochs, steps=steps, batch_size=batch_size, seed=seed, drop_last=drop_last, limit=limit)
    phase = Training() if phase is None else phase
    validate_every = Every(epochs=1) if validate_every is None else require_every("validate_every", validate_every)
    with interruptible(starting=True, signals=_SIGNALS) as interrupted:
        state = on_devices(state, devices)
        data, reading = overfitted(data, overfit, reading, state.plan.batch_size)
        validation = data if overfit is not None and validation is None else validation
        source, plan = prepare("fit", state, data, **reading)
        found = None if resume is None else find_resumable(resume)
        require_equal("the checkpoint that `resume` finds", found and found.step)
        saved = None if found is None else found.run
        optimizer = same_optimizer(state, saved)
        state = state if found is None else found.load(like=state)
        sets = None
        if validation is not None:
            sets = ValidationSets(validation, validate_every, state, source.data, reading["epochs"])
        shown = progress_callbacks(progress) if is_first() else []
        listed = in_order([*_listed(callbacks), *shown, *([] if sets is None else [sets])])
        if found is None:
            warn_past_plan(state, plan.total_steps)
        history = History()
        history.opposed = any(isinstance(part, Game) for _, part in components(state.system))
        # As a checkpoint keeps them, to be compared when the run is resumed.
        options = {
            **reading,
            "batch_size": plan.batch_size,
            "overfit": overfit,
            "microbatches": state.plan.microbatches,
            "examples": source.examples,
            "optimizer": optimizer,
        }
        run = Run(state.plan, history, plan.total_steps, options, listed)
        check_callbacks(listed, run)
        loop = StepLoop(state, run, interrupted, source, fuse)
        if saved is None:
            at = source.find(plan, first_batch(state, epochs, plan))
            loop.first = at[0]
        else:
            at = resume_run(saved, loop, source, plan)
            run.resumed = resume
            if shown:
                print(f"Resumed after step {run.step}, from {resume}.", flush=True)
        if resume is not None and not is_complete(loop):
            warn_unless_saved(resume, listed, found is not None)
        ahead = source.epochs(plan, at, run.left, state.system, lambda: interrupted.is_set() or run.stopping)
        try:
            loop.tell(FitStart())
            _run_epochs(loop, ahead, epochs, phase, sets, interrupted)
        except BaseException as error:
            _keep_state(error, loop)
            raise
        finally:
            run.seconds = loop.elapsed()
            loop.tell(FitEnd())
        return _end(loop, interrupted, shown)


@dispatch
def fit(component: object, data, *, overfit=None, **options):
    require_concrete("fit", "train_step(state, batch)", component, data)
    reading = {name: value for name, value in options.items() if name in READING}
    of_run = {name: options.pop(name) for name in _OF_RUN if name in options}
    data = Source.of(data)
    require_known(options.get("optimizer"), options)
    require_length(**reading)
    require_fuse(of_run.get("fuse"))
    data.plan(**reading)
    warn_of_rate(options.get("lr"))
    with interruptible(starting=True, signals=_SIGNALS) as interrupted:
        first, read = overfitted(data, overfit, reading)
        state = setup(component, first, **{**options, **{k: v for k, v in read.items() if k != "seed"}})
        interrupted.stop_if_starting()
        # Of an iterator the first batches are read now, and only once.
        return fit(state, first, overfit=overfit, **of_run, **reading)


_OF_RUN = ("validation", "validate_every", "callbacks", "progress", "phase", "resume", "fuse")


def _run_epochs(
    loop: StepLoop, ahead: Iterator[Any], epochs: int | None, phase: Phase, sets: Any, interrupted: Interruption
) -> None:
    """Train and validate epoch by epoch, until the run is complete or stopped; `ahead` has the number and the batches of each."""
    run, diverged = loop.run, False
    if run.stopping or is_complete(loop):
        return  # a complete run was resumed
    for epoch, batches in ahead:
        if run.stopping:
            break
        begun = time.perf_counter()
        if loop.start_epoch(epoch):
            loop.tell(EpochStart())
        with contextlib.closing(batches):
            before = loop.hand_out() if trains_in_place(phase, run) else run.state
            after, training_logs = run_epoch(phase, before, batches, run)
        if after is not loop.handed:
            loop.take(after)
        # A validation after the epoch's last step is that of the epoch, whose row has both.
        found = sets.newest if sets is not None and sets.is_done(run) else None
        run.logs, run.seconds = {**training_logs, **(found or {})}, loop.elapsed()
        if loop.cut:
            loop.tell(Interrupted() if interrupted.is_set() else Stopped())
        diverged = diverged or _warn_if_diverged(training_logs, epoch)
        loop.tell(EpochEnd())
        # If the signal arrived after its last step, the epoch is complete, and a resumed run would not validate it.
        cut_by_signal = loop.cut and interrupted.is_set()
        if sets is not None and found is None and sets.every.at_epoch(epoch + 1) and not cut_by_signal:
            sets.validate(run)
        at = {} if found is None else {"step": float(run.step)}
        run.history.append({**at, **run.logs, "seconds": time.perf_counter() - begun}, instead=found is not None)
        if loop.cut:
            break
        loop.end_epoch()
        loop.call_due_by_epochs()
        if interrupted.is_set():
            loop.tell(Interrupted())
        if interrupted.is_set() or run.left() == 0 or epoch + 1 - loop.first == epochs:
            break


def _end(loop: StepLoop, interrupted: Interruption, shown: list[Any]) -> tuple[State, History]:
    """The result of a run. After a signal a script ends, if the state is saved or the signal would have ended it."""
    run = loop.run
    if interrupted.is_set():
        saved = f"saved in {run.saved}" if run.saved else "returned"
        leaves = not interactive() and (run.saved or interrupted.number != signal.SIGINT)
        if shown:
            of = "" if run.steps is None else f" of {run.steps}"
            print(f"Interrupted: the state after {run.done}{of} steps is {saved}.", flush=True)
        if leaves:
            error = SystemExit(128 + interrupted.number)  # type: ignore[operator]
            _keep_state(error, loop)
            raise error
    return _result(loop), run.history


def _result(loop: StepLoop) -> State:
    return loop.state() if loop.run.result is None else loop.run.result


def _keep_state(error: BaseException, loop: StepLoop) -> None:
    """Let an error carry the state and the history of the run that it ends."""
    if not loop.run.done or any(leaf.is_deleted() for leaf in loop.leaves):
        return  # nothing is lost, or the error came from the midst of a step
    with contextlib.suppress(AttributeError):  # an exception with `__slots__`
        error.state, error.history = _result(loop), loop.run.history  # type: ignore[attr-defined]
        error.add_note(
            f"The state after {loop.run.done} steps is the attribute `state` of this exception; `history` is the history."
        )


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    if not isinstance(callbacks, Iterable):
        name = type(callbacks).__name__
        raise TypeError(f"callbacks must be a list, got {name}; write callbacks=[…].")
    return list(callbacks)


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

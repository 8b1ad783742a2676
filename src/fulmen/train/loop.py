"""`fit` and `steps`: the loop around the step."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.component import Component, Game
from fulmen.core.leaves import components
from fulmen.core.mode import Plan
from fulmen.core.state import State
from fulmen.core.verbs import fit, on, setup, steps, train_step
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch, generation
from fulmen.dispatching.warning import warn
from fulmen.optimizers import groups
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.accumulate import Ledger
from fulmen.train.evaluation import evaluate_source, evaluation_size, looked_at
from fulmen.train.events import (
    EpochEnd,
    EpochStart,
    Event,
    FitEnd,
    FitStart,
    Interrupted,
    LogsRead,
    Run,
    StepEnd,
    ValidationEnd,
    listeners,
    require_listeners,
)
from fulmen.train.history import History
from fulmen.train.progress import progress_callbacks
from fulmen.train.setup import require_known
from fulmen.train.step import step_program, step_structure, traced_step

_REFRESH = 0.1  # seconds between two looks at the logs


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
    source, plan = prepare(state, data, batch_size, epochs, steps, seed, drop_last)
    validated = None if validation is None else _validation(state, validation, epochs)
    total = plan.total_steps
    _warn_past_plan(state, total)
    history = History()
    history.opposed = any(isinstance(part, Game) for _, part in components(state.system))
    run = Run(state.plan, history, steps=total, step=int(state.step))
    listening = [*_listed(callbacks), *progress_callbacks(progress)]
    require_listeners(listening, run)
    loop = _Loop(state, run, listening)
    begun, diverged = time.perf_counter(), False
    epochs_ahead = source.epochs(plan, _place(state, epochs, plan), run.left, state.system)
    with interruptible() as interrupted:
        loop.tell(FitStart())
        try:
            for run.epoch, found in enumerate(epochs_ahead):
                if run.stopping:
                    break
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
        if interrupted.is_set():
            print(f"Interrupted: the state after {run.done}{f' of {total}' * (total is not None)} steps is returned.")
    return loop.state(), run.history


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
    data = Source.of(data)
    require_known(options.get("optimizer"), options)
    _require_length(epochs, steps)
    data.plan(batch_size, epochs=epochs, steps=steps, drop_last=drop_last)
    length = dict(epochs=epochs, steps=steps, batch_size=batch_size, drop_last=drop_last)
    state = setup(component, data, seed=seed, **length, **options)
    rest = dict(validation=validation, callbacks=callbacks, seed=seed, progress=progress)
    return fit(state, data, **length, **rest)


def prepare(
    state: State,
    data: Any,
    batch_size: int | None,
    epochs: int | None,
    steps: int | None,
    seed: int | None,
    drop_last: bool,
) -> tuple[Source, Plan]:
    """The data of a run, looked at, and what is known of the run."""
    source = Source.of(data)
    if source.in_memory:
        source.validate(state.system, source.data)
    _require_length(epochs, steps)
    usual = state.plan.batch_size
    return source, source.plan(batch_size, usual=usual, epochs=epochs, steps=steps, seed=seed, drop_last=drop_last)


def _validation(state: State, data: Any, epochs: int | None) -> tuple[Source, Plan]:
    source = looked_at(state.system, data, "validation")
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


class _Loop:
    """The steps of a run: leaves that the compiled step takes over and gives back, and a ledger of the logs."""

    def __init__(self, state: State, run: Run, callbacks: list[Any]) -> None:
        self.structure, self.raw_key = state.structure, state.raw_key
        self.run, self.callbacks = run, callbacks
        self.each_step = bool(listeners(StepEnd(), callbacks, run))
        self.often = bool(listeners(LogsRead(), callbacks, run))
        self.ledger: Ledger | None = None
        self.generation: int | None = None
        # What the step takes over is deleted by it, and the caller may hold the state still: copied once.
        self.leaves: list[Any] = [jnp.copy(v) for v in state.arrays]
        self.moving: list[int] = []
        self.programs: dict[frozenset[str], Any] = {}
        run._state = self.state

    def tell(self, event: Event) -> None:
        for callback in listeners(event, self.callbacks, self.run):
            on(event, callback, self.run)

    def state(self) -> State:
        return State.of(list(self.leaves), self.raw_key, np.int32(self.run.step), self.structure)

    def _begin(self, raw: Any) -> None:
        """Learn from the traced step which leaves it moves and what it logs."""
        self.generation = generation()
        state, n = self.state(), len(self.leaves)
        self.update_schedule = update_schedule(state)
        traced = {resting: traced_step(state, raw, resting) for resting in self.update_schedule.sets()}
        every = [one.jaxpr.jaxpr for one in traced.values()]
        self.moving = [i for i in range(n) if any(each.outvars[i] is not each.invars[i] for each in every)]
        self.ledger = Ledger(next(iter(traced.values())).out_info[1])
        # An argument from the host costs microseconds: key and step are passed only where something is drawn or timed.
        self.timed = not all(_used(each).isdisjoint(each.invars[n : n + 2]) for each in every)
        of = step_structure(self.structure), tuple(self.moving), self.ledger, self.raw_key.shape
        self.programs = {resting: _fast_program(*of, resting) for resting in traced}

    def run_epoch(self, source: Iterator[Any], interrupted: threading.Event, begun: float) -> None:
        """The steps of an epoch. Nothing here waits for the device but a callback that wants every step's values."""
        run, now = self.run, time.perf_counter
        raw = next(source, None)
        if self.generation != generation():  # nothing was traced yet, or a method was registered since
            self._begin(raw)
        ledger, key, each_step = self.ledger, self.raw_key, self.each_step
        assert ledger is not None
        timed, rates = self.timed, bool(self.update_schedule.every)
        program = self.programs[self.update_schedule.at(run.step)]
        ledger.clear()
        chosen = set(self.moving)
        fixed = [v for i, v in enumerate(self.leaves) if i not in chosen]
        moving, sums = [self.leaves[i] for i in self.moving], ledger.zeros()
        step, one = np.int32(run.step), np.int32(1)
        due, unread, watched, done_before = now() + _REFRESH, 0, None, run.done
        while raw is not None:
            if rates:
                program = self.programs[self.update_schedule.at(int(step))]
            moving, sums = program(moving, fixed, sums, (key, step) if timed else None, raw)
            step += one
            unread += 1
            if watched is None:
                watched = now()  # the first step may have been compiled
            raw = next(source, None)
            if each_step or interrupted.is_set() or now() >= due:
                ledger.hand_over(sums)
                sums = ledger.zeros()
                self._store(moving, int(step), unread)
                unread = 0
                if each_step:
                    run.logs = ledger.read_newest()
                    self.tell(StepEnd())
                if now() >= due:
                    run.speed = (run.done - done_before - 1) / max(now() - watched, 1e-9)
                    if self.often and len(ledger.waiting) > 1:
                        run.logs, run.seconds = ledger.read(keep=1), now() - begun
                        self.tell(LogsRead())
                    due = now() + _REFRESH
                if interrupted.is_set() or run.stopping:
                    break
        if unread:
            ledger.hand_over(sums)
            self._store(moving, int(step), unread)
        if run.done - done_before > 1 and watched is not None:
            jax.block_until_ready(moving)  # the epoch's figures are read next
            run.speed = (run.done - done_before - 1) / max(now() - watched, 1e-9)

    def _store(self, moving: list[Any], step: int, done: int) -> None:
        for i, leaf in zip(self.moving, moving, strict=True):
            self.leaves[i] = leaf
        self.run.step, self.run.done = step, self.run.done + done

    def epoch_figures(self) -> dict[str, Any]:
        return {} if self.ledger is None else self.ledger.read()


def _used(jaxpr: Any) -> set[Any]:
    """The variables of a program that its results depend on."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not used.isdisjoint(equation.outvars):
            used.update(v for v in equation.invars if not hasattr(v, "val"))
    return used


def _fast_program(
    structure: Any, moving: tuple[int, ...], ledger: Ledger, key_shape: tuple[int, ...], resting: frozenset[str]
) -> Any:
    """The step on flat leaves, which it takes over (donates), with the logs added to one vector."""
    key = (moving, tuple(ledger.order), ledger.structure, tuple(ledger.shapes), ledger.dtype, resting)
    if key not in structure.programs:
        reference = weakref.ref(structure)

        def program(moved: list[Any], fixed: list[Any], sums: Any, time: Any, raw: Any) -> Any:
            raw_key, step = time if time is not None else unused
            some, rest, chosen = iter(moved), iter(fixed), set(moving)
            leaves = [next(some) if i in chosen else next(rest) for i in range(len(moved) + len(fixed))]
            new, logs = step_program(reference(), leaves, raw_key, step, raw, resting)
            return [new[i] for i in moving], ledger.add(sums, logs)

        unused = np.zeros(key_shape, np.uint32), np.int32(0)
        structure.programs[key] = jax.jit(program, donate_argnums=(0, 2))
    return structure.programs[key]


@contextlib.contextmanager
def interruptible(answer: str = "") -> Iterator[threading.Event]:
    """Ctrl-C sets a flag that is read between steps: in the midst of one, the state would be lost. Twice raises.

    Args:
        answer: what is said to the first Ctrl-C, where steps are long.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def stop(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        if answer:
            print(answer, file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


@dispatch
def steps(state: State, data, *, epochs=None, steps=None, batch_size=None, seed=0, drop_last=False):
    source, plan = prepare(state, data, batch_size, epochs, steps, seed, drop_last)
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

"""The steps of a run: compiled programs that donate the state's arrays, and logs that are read later."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.state import State
from fulmen.core.verbs import on
from fulmen.dispatching.compiled_code import generation
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.accumulate import Ledger
from fulmen.train.compiled_step import step_program, step_structure, traced_step
from fulmen.train.events import Event, LogsRead, Run, StepEnd, listeners
from fulmen.train.interruption import Interruption

_REFRESH = 0.1  # seconds between two readings of the logs


class StepLoop:
    """The steps of a run: the state's leaves, which each compiled step takes and returns, and a ledger of the logs."""

    def __init__(self, state: State, run: Run, callbacks: list[Any]) -> None:
        self.structure, self.raw_key = state.structure, state.raw_key
        self.run, self.callbacks = run, callbacks
        self.each_step = bool(listeners(StepEnd(), callbacks, run))
        self.often = bool(listeners(LogsRead(), callbacks, run))
        self.ledger: Ledger | None = None
        self.generation: int | None = None
        # Steps donate their arrays, and the caller may still hold the state: copied once.
        self.leaves: list[Any] = [jnp.copy(v) for v in state.arrays]
        self.updated: list[int] = []  # the leaves that steps change
        self.programs: dict[frozenset[str], Any] = {}
        self.begun = time.perf_counter()
        run._state = self.state

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.begun

    def tell(self, event: Event) -> None:
        for callback in listeners(event, self.callbacks, self.run):
            on(event, callback, self.run)

    def state(self) -> State:
        return State.of(list(self.leaves), self.raw_key, np.int32(self.run.step), self.structure)

    def _begin(self, raw: Any) -> None:
        """Find out from the traced step which leaves it changes and what it logs."""
        self.generation = generation()
        state, n = self.state(), len(self.leaves)
        self.update_schedule = update_schedule(state)
        traced = {resting: traced_step(state, raw, resting) for resting in self.update_schedule.sets()}
        every = [one.jaxpr for one in traced.values()]
        self.updated = [i for i in range(n) if any(each.outvars[i] is not each.invars[i] for each in every)]
        self.ledger = Ledger(next(iter(traced.values())).out_info[1])
        # An argument from the host costs microseconds: key and step are passed only to programs that use them.
        self.timed = not all(_used(each).isdisjoint(each.invars[n : n + 2]) for each in every)
        of = step_structure(self.structure), tuple(self.updated), self.ledger, self.raw_key.shape
        self.programs = {resting: _fast_program(*of, resting) for resting in traced}

    def run_epoch(self, source: Iterator[Any], interrupted: Interruption) -> None:
        """The steps of an epoch. Nothing here waits for the device, except callbacks for `StepEnd`."""
        run, now = self.run, time.perf_counter
        raw = next(source, None)
        if self.generation != generation():  # nothing is traced yet, or a method was registered since
            self._begin(raw)
        interrupted.stop_if_starting()
        ledger, key, each_step = self.ledger, self.raw_key, self.each_step
        assert ledger is not None
        timed, scheduled = self.timed, bool(self.update_schedule.every)
        program = self.programs[self.update_schedule.at(run.step)]
        ledger.clear()
        changing = set(self.updated)
        fixed = [v for i, v in enumerate(self.leaves) if i not in changing]
        updated, sums = [self.leaves[i] for i in self.updated], ledger.zeros()
        step, one = np.int32(run.step), np.int32(1)
        due, unread, timed_from, done_before = now() + _REFRESH, 0, None, run.done
        while raw is not None:
            if scheduled:
                program = self.programs[self.update_schedule.at(int(step))]
            updated, sums = program(updated, fixed, sums, (key, step) if timed else None, raw)
            step += one
            unread += 1
            if timed_from is None:
                timed_from, interrupted.starting = now(), False  # the first step may have been compiled
            raw = next(source, None)
            if each_step or interrupted.is_set() or now() >= due:
                ledger.append(sums)
                sums = ledger.zeros()
                self._store(updated, int(step), unread)
                unread = 0
                if each_step:
                    run.logs = ledger.read_newest()
                    self.tell(StepEnd())
                if now() >= due:
                    run.speed = (run.done - done_before - 1) / max(now() - timed_from, 1e-9)
                    if self.often and len(ledger.unread) > 1:
                        run.logs, run.seconds = ledger.read(keep=1), self.elapsed()
                        self.tell(LogsRead())
                    due = now() + _REFRESH
                if interrupted.is_set() or run.stopping:
                    break
        if unread:
            ledger.append(sums)
            self._store(updated, int(step), unread)
        if run.done - done_before > 1 and timed_from is not None:
            jax.block_until_ready(updated)  # the epoch's logs are read next
            run.speed = (run.done - done_before - 1) / max(now() - timed_from, 1e-9)

    def _store(self, updated: list[Any], step: int, done: int) -> None:
        for i, leaf in zip(self.updated, updated, strict=True):
            self.leaves[i] = leaf
        self.run.step, self.run.done = step, self.run.done + done

    def epoch_logs(self) -> dict[str, Any]:
        return {} if self.ledger is None else self.ledger.read()


def _used(jaxpr: Any) -> set[Any]:
    """The variables of a program that its results depend on."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not used.isdisjoint(equation.outvars):
            used.update(v for v in equation.invars if not hasattr(v, "val"))
    return used


def _fast_program(
    structure: Any, updated: tuple[int, ...], ledger: Ledger, key_shape: tuple[int, ...], resting: frozenset[str]
) -> Any:
    """The step on flat leaves, those that it changes donated, with its logs added to one vector."""
    key = (updated, tuple(ledger.order), ledger.structure, tuple(ledger.shapes), ledger.dtype, resting)
    if key not in structure.programs:
        reference: Any = weakref.ref(structure)

        def program(changing: list[Any], fixed: list[Any], sums: Any, time: Any, raw: Any) -> Any:
            raw_key, step = time if time is not None else unused
            some, rest, chosen = iter(changing), iter(fixed), set(updated)
            leaves = [next(some) if i in chosen else next(rest) for i in range(len(changing) + len(fixed))]
            new, logs = step_program(reference(), leaves, raw_key, step, raw, resting)
            return [new[i] for i in updated], ledger.add(sums, logs)

        unused = np.zeros(key_shape, np.uint32), np.int32(0)
        structure.programs[key] = jax.jit(program, donate_argnums=(0, 2))
    return structure.programs[key]

"""The steps of a run: compiled programs that donate the state's arrays, and logs that are read later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fulmen.core.state import State
from fulmen.core.verbs import due, on
from fulmen.data.source import Source
from fulmen.devices.placement import copied, placed
from fulmen.devices.processes import several
from fulmen.dispatching.compiled_code import generation
from fulmen.train.events import Due, Event, LogsRead, Run, StepEnd, listeners, send
from fulmen.train.every_interval import Every
from fulmen.train.interruption import Interruption
from fulmen.train.step_groups import StepGroups, alike, warn_of_single_steps
from fulmen.train.step_programs import StepPrograms

_REFRESH = 0.1  # seconds between two readings of the logs
_ONE = np.int32(1)
_SUMMED = 1024  # steps of an epoch whose logs are added on the device; a constant, so that sums do not depend on time


class StepLoop:
    """The steps of a run: the state's leaves, which each compiled step takes and returns, and a ledger of the logs.

    Attributes:
        epoch, batches: where the run is: the epoch, and the number of its batches that are done.
        first: the epoch in which the run began.
        cut: whether the newest epoch was ended before its last batch.
    """

    def __init__(self, state: State, run: Run, interrupted: Interruption, source: Source, fuse: Any = None) -> None:
        self.run, self.interrupted, self.source = run, interrupted, source
        self.groups = StepGroups(fuse, run.left)
        self.called = listeners(StepEnd(), run.callbacks, run)
        self.due = [(callback, every) for callback in run.callbacks if (every := due(callback)) is not None]
        require_no_minutes(self.due)
        self.watched = bool(listeners(LogsRead(), run.callbacks, run) or self.due)
        self.reminded = [time.perf_counter()] * len(self.due)  # when each was called by the minutes
        self.ledger: Any = None  # a `Ledger`, from the first step on
        self.sums: Any = None  # of the logs of an incomplete number of steps
        self.epoch = self.batches = self.first = 0
        self.timed_from: float | None = None
        self.cut = False
        self.handed: Any = None  # the state that was returned last, whose arrays the next step may donate
        self.begun = time.perf_counter()
        run.loop = self
        self.take(state)

    def take(self, state: State) -> None:
        """Continue with another state."""
        # Steps donate their arrays, and the caller may still hold the state: copied once.
        self.devices = state.devices
        state = state if self.devices is None else placed(state)
        self.leaves: list[Any] = copied(state.arrays)
        if getattr(self, "structure", None) is not state.structure:
            self.generation: int | None = None
        self.structure, self.raw_key, self.run.step = state.structure, state.raw_key, int(state.step)
        self.taken = True

    def elapsed(self) -> float:
        """The duration of the run in seconds, with that of the run that it continues."""
        return time.perf_counter() - self.begun

    def tell(self, event: Event) -> None:
        send(event, self.run.callbacks, self.run)

    def hand_out(self) -> State:
        """The current state; its arrays are valid until the next step."""
        self.handed = self.state()
        return self.handed

    def state(self) -> State:
        return State.of(list(self.leaves), self.raw_key, np.int32(self.run.step), self.structure)

    # Positions

    def position(self) -> dict[str, Any]:
        """Where the run is."""
        logs = None
        if self.ledger is not None and self.batches:
            self.ledger.read()
            sums = None if self.sums is None else np.asarray(self.sums).tolist()  # None if the total has all
            logs = {"layout": self.ledger.layout, "total": self.ledger.total.tolist(), "sums": sums}
        run = self.run
        return {
            "epoch": self.epoch,
            "first": self.first,
            "batch": self.batches,
            "step": run.step,
            "done": run.done,
            "seconds": self.elapsed(),
            "logs": logs,
            "data": self.source.position if self.batches else None,
        }

    def restore(self, position: dict[str, Any], raw: Any) -> None:
        """Continue at what `position` returned; the layout of the logs is found from a batch."""
        self.run.epoch = self.epoch = position["epoch"]
        self.first, self.batches, self.run.done = position["first"], position["batch"], position["done"]
        self.begun -= position["seconds"]
        logs = position["logs"]
        if logs is not None:
            self._begin(raw)
            ledger = self.ledger
            if logs["layout"] != ledger.layout:
                raise ValueError(
                    f"the run that is resumed logged {', '.join(logs['layout'])} in the middle of an epoch, and this one "
                    f"logs {', '.join(ledger.layout)}; resume it with the same losses and metrics."
                )
            ledger.total = ledger.shown = np.asarray(logs["total"], np.float64)
            if logs["sums"] is not None:
                self.sums = np.asarray(logs["sums"], ledger.dtype)
                ledger.append(self.sums.copy(), complete=False)  # the epoch may have been complete

    # Steps

    def _begin(self, raw: Any) -> None:
        """Find out from the traced step which leaves it changes and what it logs."""
        self.generation = generation()
        self.programs = StepPrograms(self.state(), raw)
        warn_of_single_steps(self.groups.size, self.called, self.programs.in_turns)
        before, self.ledger = self.ledger, self.programs.ledger
        if before is not None and before.layout == self.ledger.layout:
            self.ledger = before
        else:
            self.sums = None

    def start_epoch(self, epoch: int) -> bool:
        """Prepare for an epoch. Returns whether it begins with its first batch; else it is continued."""
        self.run.epoch = epoch
        if epoch == self.epoch and self.batches:
            return False
        self.epoch, self.batches, self.sums = epoch, 0, None
        if self.ledger is not None:
            self.ledger.clear()
        return True

    def end_epoch(self) -> None:
        """What follows is part of the next epoch."""
        self.epoch, self.batches, self.sums = self.epoch + 1, 0, None

    def run_epoch(self, batches: Iterator[Any]) -> None:
        """The steps of an epoch. Nothing here waits for the device, except callbacks at their events."""
        run, now = self.run, time.perf_counter
        done_before, self.timed_from, self.cut = run.done, None, False
        raw = next(batches, None)
        while raw is not None:
            if self.generation != generation():  # nothing is traced yet, or a method was registered since
                self._begin(raw)
            self.interrupted.stop_if_starting()
            raw = self._steps(raw, batches, done_before)
        if run.done - done_before > 1 and self.timed_from is not None:
            jax.block_until_ready(self.leaves)  # the epoch's logs are read next
            run.speed = (run.done - done_before - 1) / max(now() - self.timed_from, 1e-9)
        self.cut = self.cut or self.interrupted.is_set()  # also if the data was not waited for

    def _steps(self, raw: Any, batches: Iterator[Any], done_before: int) -> Any:
        """Steps until the epoch ends, or until a callback replaces the state: then the next batch is returned."""
        run, now, interrupted, ledger = self.run, time.perf_counter, self.interrupted, self.ledger
        programs, groups = self.programs, self.groups
        key, timed, in_turns = self.raw_key, programs.timed, programs.in_turns
        program = programs.at(run.step)
        changing, fixed = ([self.leaves[i] for i in some] for some in (programs.changing, programs.fixed))
        step, sums = np.int32(run.step), self._placed(ledger.zeros() if self.sums is None else self.sums)
        # All processes must compute the same, so with several of them nothing depends on the time.
        by_time = not several()
        refresh, unread, quiet = now() + _REFRESH, 0, self._quiet_steps()
        self.taken, newest = False, raw
        groups.ran(0, None)
        try:
            while raw is not None:
                group = [raw] if in_turns else groups.take(raw, batches, quiet - unread)
                if len(group) == groups.size > 1 and alike(group):
                    changing, sums = programs.of_group()(changing, fixed, sums, (key, step) if timed else None, group)
                    step, unread = step + np.int32(len(group)), unread + len(group)
                else:
                    for raw in group:
                        if in_turns:
                            program = programs.at(int(step))
                        changing, sums = program(changing, fixed, sums, (key, step) if timed else None, raw)
                        step, unread = step + _ONE, unread + 1
                newest = group[-1]
                groups.ran(len(group), changing)
                if self.timed_from is None:
                    self.timed_from, interrupted.starting = now(), False  # the first step may have been compiled
                ends = interrupted.after_step(step)  # called after each step, also by other processes
                if unread == quiet or ends or (by_time and now() >= refresh):
                    self._store(changing, int(step), unread)
                    sums, unread, run.batch = self._add(sums, self.watched), 0, newest
                    self._call_due()
                    if now() >= refresh:
                        run.speed = (run.done - done_before - 1) / max(now() - self.timed_from, 1e-9)
                        if len(ledger.unread) > 1:
                            run.logs, run.seconds = ledger.read(keep=1), self.elapsed()
                            self.tell(LogsRead())
                        refresh = now() + _REFRESH
                    quiet = self._quiet_steps()
                    self.cut = interrupted.is_set() or run.stopping
                    if self.cut or self.taken:  # or a callback replaced the state
                        return None if self.cut else next(batches, None)
                raw = next(batches, None)
        finally:  # also after an error of the data or of a callback, so that the state is not lost
            if unread:
                run.batch = newest
                self._store(changing, int(step), unread)
                self._add(sums)
            elif self.sums is not None and not self.taken:
                ledger.append(copied(sums), complete=False)
        return None

    def _placed(self, sums: Any) -> Any:
        return sums if self.devices is None else jax.device_put(sums, self.devices.layout())

    def _quiet_steps(self) -> int:
        """The number of steps after which there is something to do."""
        if self.called:
            return 1
        found = [every.next_step(self.run.step) for _, every in self.due]
        return min([_SUMMED - self.batches % _SUMMED, *(step - self.run.step for step in found if step is not None)])

    def _store(self, changing: list[Any], step: int, done: int) -> None:
        for i, leaf in zip(self.programs.changing, changing, strict=True):
            self.leaves[i] = leaf
        self.run.step, self.run.done, self.batches = step, self.run.done + done, self.batches + done

    def _add(self, sums: Any, incomplete: bool = True) -> Any:
        """Hand over the sums of the logs; those that are not complete only by option. Returns those to continue with."""
        complete = bool(self.called) or self.batches % _SUMMED == 0
        if complete or incomplete:  # sums that are not complete are donated to the next step: the ledger gets a copy
            self.ledger.append(sums if complete else copied(sums), complete)
        self.sums = None if complete else sums
        return self._placed(self.ledger.zeros()) if complete else sums

    def _call_due(self) -> None:
        """Call the callbacks for `StepEnd`, and those whose time has come."""
        run, ledger = self.run, self.ledger
        if self.called:
            run.logs = ledger.read_newest()
            self.tell(StepEnd())
        first = True
        for callback, event in self._due_now("steps", lambda every: every.at_step(run.step)):
            run.seconds = self.elapsed()
            if first:  # a callback may add to them, also one for `StepEnd`
                run.logs, first = {**run.logs, **ledger.read()} if self.called else ledger.read, False
            on(event, callback, run)

    def call_due_by_epochs(self) -> None:
        """Call the callbacks that are due after the epoch that has ended, or whose time has come in a short one."""
        for callback, event in self._due_now("epochs", lambda every: every.at_epoch(self.run.epoch + 1)):
            on(event, callback, self.run)

    def _due_now(self, unit: str, counted: Callable[[Every], bool]) -> Iterator[tuple[Any, Due]]:
        """The callbacks that are due by the number of steps or of epochs, or by the time, each with its event."""
        for i, (callback, every) in enumerate(self.due):
            by_count = counted(every)
            if by_count or every.after(time.perf_counter() - self.reminded[i]):
                self.reminded[i] = time.perf_counter()
                yield callback, Due(unit if by_count else "minutes")

    def epoch_logs(self) -> dict[str, Any]:
        return {} if self.ledger is None else self.ledger.read()


def require_no_minutes(due: list[tuple[Any, Any]]) -> None:
    """Raise for several processes if a callback is called by the time, which they do not measure equally."""
    for callback, every in due if several() else ():
        if every.after(math.inf):
            name = type(callback).__name__
            raise ValueError(
                f"callbacks: {name} is due {every!r}, but with several processes it must be due at the same step in each; write "
                "fm.Every(steps=…) or fm.Every(epochs=…)."
            )

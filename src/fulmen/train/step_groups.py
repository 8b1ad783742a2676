"""Groups of steps in one program, for small models, whose steps take less time than to start them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from fulmen.devices.processes import several
from fulmen.dispatching.warning import warn

_SIZE, _GAIN = 8, 1.15  # for "auto": the steps of a group, and how much faster they must be
_STRETCH, _STRETCHES, _TRIES = 16, 5, 20  # the steps that are timed together, how often, and in how many tries at most


class StepGroups:
    """How many steps the next program takes.

    Args:
        fuse: the steps of a group; None for single steps; "auto" to time both, and to keep the faster.
        left, clock: return the number of steps that are left, or None for a run without an end, and the time in seconds.

    Attributes:
        size: the number of steps of a group now.
    """

    def __init__(self, fuse: Any, left: Callable[[], int | None], clock: Callable[[], float] = time.perf_counter) -> None:
        require_fuse(fuse)
        self.left, self.clock = left, clock
        self.size = 1 if fuse in (None, "auto") else int(fuse)
        self.measurement: Generator[None, tuple[int, Any], None] | None = None
        if fuse == "auto" and not several():  # all processes must run the same programs
            self.measurement = self._measure()
            next(self.measurement)

    def take(self, raw: Any, batches: Iterator[Any], room: int) -> list[Any]:
        """A batch and those that follow it, as many as a group takes; or it alone if there is no room for so many."""
        return [raw, *itertools.islice(batches, self.size - 1)] if 1 < self.size <= room else [raw]

    def ran(self, steps: int, result: Any) -> None:
        """Take the time of a program by the number of its steps and its result; 0 steps if something else has taken time."""
        if self.measurement is not None:
            try:
                self.measurement.send((steps, result))
            except StopIteration:
                self.measurement = None

    def _measure(self) -> Generator[None, tuple[int, Any], None]:
        yield from self._wait(0)
        begun = self.clock()
        yield from self._wait(1)
        compiling = self.clock() - begun
        single = yield from self._seconds(1)
        left = self.left()
        if single == math.inf or (left is not None and left * single < 4 * compiling):
            return  # to compile another program would take longer than it saves
        self.size = _SIZE
        yield from self._wait(_SIZE)
        grouped = yield from self._seconds(_SIZE, 2 * single)
        self.size = _SIZE if grouped * _GAIN < single else 1

    def _wait(self, size: int) -> Generator[None, tuple[int, Any], None]:
        """Wait until a program with so many steps has run."""
        steps, result = yield
        while steps != size:
            steps, result = yield
        jax.block_until_ready(result)

    def _seconds(self, size: int, most: float = math.inf) -> Generator[None, tuple[int, Any], float]:
        """The seconds of a step in programs of some size: the median of stretches, or the first one's if it is above `most`.

        Infinity if other programs, or the end of an epoch, come into every stretch.
        """
        found: list[float] = []
        for _ in range(_TRIES):
            if len(found) == _STRETCHES or (found and found[0] > most):
                break
            begun, done, steps, result = self.clock(), 0, size, None
            while done < _STRETCH and steps == size:
                steps, result = yield
                done += steps
            jax.block_until_ready(result)
            if steps == size:
                found.append((self.clock() - begun) / done)
        return float(np.median(found or [math.inf]))


def alike(group: list[Any]) -> bool:
    """Whether batches have the same structure, shapes and types."""
    flat, structures = zip(*map(jax.tree.flatten, group), strict=True)
    types = [[(leaf.shape, leaf.dtype) for leaf in leaves] for leaves in flat]
    return types.count(types[0]) == len(types) and structures.count(structures[0]) == len(types)


def warn_of_single_steps(size: int, called: list[Any], in_turns: bool) -> None:
    """Warn if steps cannot be grouped: callbacks are called after each, or groups of the optimizer are updated in turns."""
    if size > 1 and (called or in_turns):
        names = ", ".join(dict.fromkeys(type(callback).__name__ for callback in called))
        why = f"{names} is called after each step" if called else "groups of the optimizer are updated in turns"
        warn(f"fuse={size} has no effect, since {why}: each step is a program of its own.")


def require_fuse(fuse: Any) -> None:
    """Raise unless it is a number of steps, None or "auto"."""
    if fuse is None or fuse == "auto":
        return
    if not isinstance(fuse, int | np.integer) or isinstance(fuse, bool) or fuse < 1:
        raise ValueError(
            f'fuse must be a number of steps, "auto" or None, got {fuse!r}; write fuse=8 for eight steps in one program.'
        )

"""`Profiler`: records a trace of some steps."""

from __future__ import annotations

import math
import os

import jax

from fulmen.core.verbs import due, on
from fulmen.data.arrays import check_positive
from fulmen.dispatching.registry import dispatch
from fulmen.dispatching.warning import warn
from fulmen.train.events import Due, FitEnd
from fulmen.train.every_interval import Every


class Profiler:
    """A callback that records a trace of some steps with JAX's profiler.

    TensorBoard opens it with the plugin `tensorboard-plugin-profile`, and https://ui.perfetto.dev opens the file
    `plugins/profile/…/*.trace.json.gz` in the directory.

    Args:
        directory: where to write the trace.
        start: the trace begins after this step, a positive integer. The first step of a run is compiled, and would fill it.
        stop: the trace ends after this step.

    Raises:
        ValueError: if `stop` is not greater than `start`.

    >>> fm.Profiler("trace", start=10, stop=20)
    Profiler('trace', start=10, stop=20)
    """

    def __init__(self, directory: str | os.PathLike[str], start: int = 10, stop: int = 20) -> None:
        check_positive("Profiler.start", start)
        if stop <= start:
            raise ValueError(f"Profiler.stop must be greater than start={start}, got {stop!r}.")
        self.directory, self.start, self.stop = directory, start, stop
        self.running = self.done = False

    def __repr__(self) -> str:
        return f"Profiler({os.fspath(self.directory)!r}, start={self.start}, stop={self.stop})"

    def end(self) -> None:
        """Write the trace."""
        jax.profiler.stop_trace()
        self.running, self.done = False, True


@dispatch
def due(callback: Profiler):
    return Every(steps=math.gcd(callback.start, callback.stop))


@dispatch
def on(event: Due, callback: Profiler, run):
    if not (callback.running or callback.done) and callback.start <= run.step < callback.stop:
        jax.block_until_ready(run.arrays().arrays)  # of the steps before
        jax.profiler.start_trace(os.fspath(callback.directory))
        callback.running = True
    elif callback.running and run.step >= callback.stop:
        jax.block_until_ready(run.arrays().arrays)
        callback.end()


@dispatch
def on(event: FitEnd, callback: Profiler, run):
    if callback.running:
        callback.end()
    elif not callback.done:
        warn(f"Profiler: the run ended after step {run.step}, and {callback!r} has recorded nothing.")

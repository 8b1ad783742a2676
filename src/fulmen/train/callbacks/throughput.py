"""`Throughput`: logs the speed of a run."""

from __future__ import annotations

from typing import Any

from fulmen.core.state import State
from fulmen.core.verbs import due, on
from fulmen.data.arrays import count
from fulmen.dispatching.registry import dispatch
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.compiled_step import traced_step
from fulmen.train.events import Due, EpochEnd
from fulmen.train.every_interval import Every

# Floating-point operations per second of one device, for dense 16-bit products, from the manufacturers' data sheets.
_PEAKS = {
    "A100": 312e12,
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class Throughput:
    """A callback that logs the speed: `steps_per_second`, `examples_per_second`, and where they are known, `flops_per_second` and
    `share_of_peak`.

    The floating-point operations of a step are those of XLA's analysis; they are unknown for systems whose parts are updated in
    different steps. The time of validations and of the first step of an epoch, which may be compiled, does not count.

    Args:
        every: when to log within epochs, such as `fm.Every(steps=100)`; None is only after each epoch.
        peak: the operations per second of one device at its best; None takes the known ones of NVIDIA's and Google's devices for
            dense 16-bit products.

    >>> fm.Throughput(peak=100e12).peak
    100000000000000.0
    """

    def __init__(self, every: Every | None = None, peak: float | None = None) -> None:
        self.every, self.peak = every, peak

    def measured(self, run: Any) -> dict[str, float]:
        """The logs of the current speed; nothing after a single step."""
        if run.batch is None or not run.speed:
            return {}
        examples = run.options.get("batch_size") or count(run.batch)
        logs = {"steps_per_second": run.speed, "examples_per_second": run.speed * examples}
        state = run.arrays()
        flops = _step_flops(state, run.batch)
        if flops:
            logs["flops_per_second"] = flops * run.speed
            devices = state.arrays[0].devices()
            kind = next(iter(devices)).device_kind
            peak = self.peak or next((known for name, known in _PEAKS.items() if name in kind), None)
            if peak:
                logs["share_of_peak"] = logs["flops_per_second"] / (peak * len(devices))
        return logs


def _step_flops(state: State, raw: Any) -> float | None:
    """The floating-point operations of a step, or None if steps differ."""
    programs, key = state.structure.programs, ("flops of a step", count(raw))
    if key not in programs:
        programs[key] = None
        if len(update_schedule(state).sets()) == 1:
            from fulmen.train.flop_count import count_flops  # imports much of jax

            traced = traced_step(state, raw)
            programs[key] = count_flops(traced, traced.lower())
    return programs[key]


@dispatch
def due(callback: Throughput):
    return callback.every


@dispatch
def on(event: Due | EpochEnd, callback: Throughput, run):
    if getattr(event, "by", None) != "epochs":  # those of the epoch are logged already
        run.logs.update(callback.measured(run))

"""The schedules: cosine, linear, one cycle, steps, and a warm-up before any of them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from fulmen.core import Plan, Schedule, static
from fulmen.core.suggestions import suggesting
from fulmen.schedules.schedule_lengths import after, as_schedule, length, run_length, steps_of


class Cosine(Schedule):
    """See `cosine`."""

    peak: float
    warmup: int | float = static(default=0)
    end: float = 0.0

    def __call__(self, plan: Plan) -> Any:
        total = length(plan, "cosine")
        warmup = steps_of(self.warmup, plan, "cosine")
        if warmup >= total:
            raise ValueError(f"cosine: a warm-up of {warmup} steps must be shorter than the run, {total} steps.")
        # Scaled below rather than by optax, whose warm-up needs a concrete peak: here it is data and may be a tracer.
        decay = optax.cosine_decay_schedule(1.0, total - warmup)

        def rate(step: Any) -> Any:
            rising = self.peak * jnp.minimum(step / max(warmup, 1), 1.0)
            falling = self.end + (self.peak - self.end) * decay(jnp.maximum(step - warmup, 0))
            return jnp.where(step < warmup, rising, falling)

        return rate


@suggesting
def cosine(peak: float, *, warmup: float = 0, end: float = 0.0) -> Schedule:
    """From `peak` down to `end` along half a cosine over the whole run (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        peak: the highest learning rate.
        warmup: length of a linear warm-up from 0: an int in steps, a float as a fraction of the run.
        end: the last learning rate.

    >>> round(float(fm.cosine(1.0)(fm.Plan(total_steps=100))(50)), 3)
    0.5
    """
    return Cosine(peak=peak, warmup=run_length(warmup, "warmup"), end=end)


class Linear(Schedule):
    """See `linear`."""

    peak: float
    end: float = 0.0

    def __call__(self, plan: Plan) -> Any:
        total = length(plan, "linear")
        # `optax.linear_schedule` may end just below 0, which would ascend.
        return lambda step: self.end + (self.peak - self.end) * (1.0 - jnp.minimum(step / total, 1.0))


@suggesting
def linear(peak: float, *, warmup: float = 0, end: float = 0.0) -> Schedule:
    """From `peak` down to `end` in a straight line over the whole run.

    Args:
        peak: the highest learning rate.
        warmup: length of a linear warm-up from 0: an int in steps, a float as a fraction of the run.
        end: the last learning rate.

    >>> float(fm.schedules.linear(1.0)(fm.Plan(total_steps=100))(25))
    0.75
    """
    falling = Linear(peak=peak, end=end)
    return Warmup(falling, run_length(warmup, "warmup")) if warmup else falling


class OneCycle(Schedule):
    """See `one_cycle`."""

    peak: float
    rise: int | float = static(default=0.3)
    start: float = 1 / 25
    end: float = 4e-6

    def __call__(self, plan: Plan) -> Any:
        total = length(plan, "one_cycle")
        rise = steps_of(self.rise, plan, "one_cycle, rise")
        if not 0 < rise < total:
            raise ValueError(
                f"one_cycle: a rise of {rise} steps must be at least 1 and shorter than the run, {total} steps."
            )

        def rate(step: Any) -> Any:
            up = jnp.minimum(step / rise, 1.0)
            down = jnp.clip((step - rise) / (total - rise), 0.0, 1.0)
            rising = self.start + (1 - self.start) * (1 - jnp.cos(jnp.pi * up)) / 2
            falling = self.end + (1 - self.end) * (1 + jnp.cos(jnp.pi * down)) / 2
            return self.peak * jnp.where(step < rise, rising, falling)

        return rate


@suggesting
def one_cycle(peak: float, *, rise: float = 0.3, start: float = 1 / 25, end: float = 4e-6) -> Schedule:
    """Up to `peak` and down again over the whole run, both along half a cosine (Smith and Topin 2018, arXiv:1708.07120).

    Args:
        peak: the highest learning rate.
        rise: length of the rise: an int in steps, a float as a fraction of the run.
        start: the first learning rate, as a share of the peak.
        end: the last learning rate, as a share of the peak.

    >>> rate = fm.one_cycle(1.0)(fm.Plan(total_steps=100))
    >>> [round(float(rate(step)), 3) for step in (0, 30, 100)]
    [0.04, 1.0, 0.0]
    """
    return OneCycle(peak=peak, rise=run_length(rise, "rise"), start=start, end=end)


class StepDecay(Schedule):
    """See `step_decay`."""

    peak: float
    factor: float = 0.1
    at: tuple[int | float, ...] = static(default=(0.5, 0.75))

    def span(self, plan: Plan) -> int | None:
        # A decay at the end of the run has no effect, which is an error only if it was given in steps.
        steps = [steps_of(time, plan, "step_decay, at") + (not isinstance(time, float)) for time in self.at]
        return max(steps, default=None)

    def __call__(self, plan: Plan) -> Any:
        times = [steps_of(time, plan, "step_decay, at") for time in self.at]

        def rate(step: Any) -> Any:
            passed = sum((jnp.asarray(step >= time, jnp.int32) for time in times), jnp.int32(0))
            return self.peak * jnp.asarray(self.factor, jnp.float32) ** passed

        return rate


@suggesting
def step_decay(peak: float, *, factor: float = 0.1, at: Sequence[float] = (0.5, 0.75)) -> Schedule:
    """`peak`, multiplied by `factor` at each of some times in the run.

    Args:
        peak: the first learning rate.
        factor: the factor of each decay.
        at: the times: an int is a step, a float a fraction of the run.

    >>> rate = fm.schedules.step_decay(1.0, at=(0.5, 90))(fm.Plan(total_steps=100))
    >>> [round(float(rate(step)), 3) for step in (49, 50, 90)]
    [1.0, 0.1, 0.01]
    """
    return StepDecay(peak=peak, factor=factor, at=tuple(run_length(time, "at") for time in at))


class Warmup(Schedule):
    """See `warmup`."""

    schedule: Schedule
    steps: int | float = static()

    def span(self, plan: Plan) -> int | None:
        steps, rest = after(self.steps, plan, "warmup", "steps")
        end = self.schedule.span(rest)
        return None if end is None else steps + end

    def __call__(self, plan: Plan) -> Any:
        steps, rest = after(self.steps, plan, "warmup", "steps")
        follow = self.schedule(rest)

        def rate(step: Any) -> Any:
            rising = follow(jnp.zeros((), jnp.int32)) * jnp.minimum(step / max(steps, 1), 1.0)
            return jnp.where(step < steps, rising, follow(jnp.maximum(step - steps, 0)))

        return rate


@suggesting
def warmup(schedule: Any, steps: float) -> Schedule:
    """A linear warm-up from 0 to the first value of a schedule, and then the schedule over the rest of the run.

    Args:
        schedule: a number, a function of the step such as an optax schedule, or a schedule such as `fm.cosine(1e-3)`.
        steps: length of the warm-up: an int in steps, a float as a fraction of the run.

    >>> rate = fm.warmup(fm.schedules.linear(1.0), 0.2)(fm.Plan(total_steps=100))
    >>> [round(float(rate(step)), 3) for step in (0, 10, 20, 60, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return Warmup(as_schedule(schedule), run_length(steps, "steps"))

"""Schedules from learning rates of any form, and lengths in steps or as fractions of the run."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Plan, Schedule, remake


class StepFunction(Schedule):
    """A function of the step, such as an optax schedule."""

    function: Callable[[Any], Any]

    def __call__(self, plan: Plan) -> Any:
        def rate(step: Any) -> Any:
            try:
                return self.function(step)
            except AttributeError as error:
                error.add_note(
                    f"lr={self!r} is called with the step. Annotate a function of the plan: `def lr(plan: fm.Plan)`."
                )
                raise

        return rate

    def span(self, plan: Plan) -> int | None:
        return None

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class PlanFunction(Schedule):
    """A function of the plan that returns a number or a function of the step."""

    function: Callable[[Plan], Any]

    def __call__(self, plan: Plan) -> Any:
        return as_schedule(self.function(plan))(plan)

    def span(self, plan: Plan) -> int | None:
        return plan.total_steps if callable(self.function(plan)) else None

    __repr__ = StepFunction.__repr__


class Constant(Schedule):
    """The same number in every step."""

    rate: float

    def __call__(self, plan: Plan) -> Any:
        return lambda step: jnp.asarray(self.rate)

    span = StepFunction.span


class EachMember(Schedule):
    """A schedule for each member of a population: `member`, `(n,)`, is the index of each one's schedule."""

    schedules: tuple[Schedule, ...]
    member: jax.Array

    def __call__(self, plan: Plan) -> Any:
        real = lambda rate: lambda step: jnp.asarray(rate(step), jnp.result_type(float))
        rates = [real(schedule(plan)) for schedule in self.schedules]
        return lambda step: jax.lax.switch(self.member, rates, step)

    def span(self, plan: Plan) -> int | None:
        ends = [schedule.span(plan) for schedule in self.schedules]
        return max((end for end in ends if end is not None), default=None)


def each_member(rates: Sequence[Any]) -> Schedule:
    """The schedule of a population's members from a learning rate of any form for each."""
    return EachMember(tuple(map(as_schedule, rates)), jnp.arange(len(rates)))


def as_schedule(value: Any) -> Schedule:
    """A schedule from a learning rate: a number, a function of the step or of the plan, or a schedule."""
    if isinstance(value, Schedule):
        return value
    if is_plan_function(value):
        return PlanFunction(value)
    return StepFunction(value) if callable(value) else Constant(value)


def is_plan_function(value: Any) -> bool:
    """Whether a value is a function of the plan: its first parameter is annotated `fm.Plan`."""
    try:
        parameters = inspect.signature(value, eval_str=True).parameters.values()
    except (TypeError, ValueError, NameError, AttributeError):  # not callable, or annotations that cannot be evaluated
        return False
    return next((p.annotation for p in parameters), None) is Plan


def run_length(value: Any, what: str) -> int | float:
    """A length or a time in the run: an int is a number of steps, a float a fraction of the run."""
    if isinstance(value, int | np.integer) and value >= 0:
        return int(value)
    if isinstance(value, float | np.floating) and 0 <= value <= 1:
        return float(value)
    raise ValueError(
        f"`{what}` must be a number of steps (an int) or a fraction of the run (a float from 0.0 to 1.0), got {value!r}."
    )


def length(plan: Plan, what: str) -> int:
    """The number of steps in the run."""
    if plan.total_steps is None:
        raise ValueError(
            f"{what} needs the length of the run: give `steps=` to `setup` or `fit`, or `epochs=` if the data has a length."
        )
    return plan.total_steps


def steps_of(value: int | float, plan: Plan, what: str) -> int:
    """A length as a number of steps."""
    return round(value * length(plan, what)) if isinstance(value, float) else value


def after(value: int | float, plan: Plan, what: str, name: str) -> tuple[int, Plan]:
    """A length at the start of the run in steps, and the plan of the rest of the run."""
    steps, total = steps_of(value, plan, what), plan.total_steps
    if total is None:
        return steps, plan
    if steps >= total:
        raise ValueError(
            f"{what}: `{name}` must be below the length of the run, {total} steps (1.0 is the whole run, so nothing after it would "
            f"train), got {value!r}."
        )
    return steps, remake(plan, {"total_steps": total - steps})

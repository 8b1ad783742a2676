"""`Schedule`, and how lengths are said: in steps, or as a fraction of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fulmen.core.mode import Plan
from fulmen.core.tree import Tree, remake
from fulmen.schedules.span import span

__all__ = ["Schedule"]


class Schedule(Tree):
    """A function of the plan that gives an optax schedule. Its numbers are data, its lengths come from the plan.

    Subclass it with fields and `__call__(self, plan)`, and with `span(self, plan)` where it does not end with the run.
    """

    def __call__(self, plan: Plan) -> Any:
        raise NotImplementedError

    def span(self, plan: Plan) -> int | None:
        """After how many steps it has come to its end; None where it has none."""
        return plan.total_steps


class OfStep(Schedule):
    """A function of the step, whatever the plan."""

    function: Callable[[Any], Any]

    def __call__(self, plan: Plan) -> Any:
        return self.function

    def span(self, plan: Plan) -> int | None:
        return span(self.function)


class Constant(Schedule):
    """One number."""

    rate: float

    def __call__(self, plan: Plan) -> Any:
        return lambda step: jnp.asarray(self.rate)

    def span(self, plan: Plan) -> int | None:
        return None


def as_schedule(value: Any) -> Schedule:
    """A schedule from what may be given as a learning rate: a number, an optax schedule, or a schedule of the plan."""
    if isinstance(value, Schedule):
        return value
    return OfStep(value) if callable(value) else Constant(value)


def length(plan: Plan, what: str) -> int:
    """The plan's total of steps; raises where it is not known."""
    if plan.total_steps is None:
        raise ValueError(
            f"{what} spans the run, whose length is not known: give `epochs=` or `steps=` to `setup` or `fit`, and of data without "
            "a length `steps=`."
        )
    return plan.total_steps


def steps_of(value: float, plan: Plan, what: str) -> int:
    """A length as steps: below 1 it is a fraction of the run."""
    if value < 0:
        raise ValueError(f"{what}: steps, or below 1 their fraction of the run, were expected, and {value} came.")
    return round(value * length(plan, what)) if value < 1 else int(value)


def after(value: float, plan: Plan, what: str) -> tuple[int, Plan]:
    """A length at the beginning of the run as steps, and the plan of what is left of the run."""
    steps, total = steps_of(value, plan, what), plan.total_steps
    if total is None:
        return steps, plan
    if steps >= total:
        raise ValueError(f"{what}: {steps} steps do not fit into a run of {total}.")
    return steps, remake(plan, {"total_steps": total - steps})

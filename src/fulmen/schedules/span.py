"""How many steps a schedule of optax's was made for, and a warning where a run is shorter."""

from __future__ import annotations

import inspect
from typing import Any

import jax

from fulmen.core.mode import Plan
from fulmen.dispatching.warning import warn

__all__: list[str] = []


def span(schedule: Any) -> int | None:
    """After how many steps an optax schedule has come to its end; None where it has none, or it cannot be known.

    It is read off what the schedule's function closes over: optax's schedules do not say.

    Args:
        schedule: an optax schedule, or a number.

    >>> from fulmen.schedules.span import span
    >>> span(optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=100, decay_steps=1000))
    1000
    """
    if not inspect.isfunction(schedule) or not schedule.__module__.startswith("optax"):
        return None
    kind, inside = schedule.__qualname__.partition(".")[0], closed_over(schedule)
    if kind == "join_schedules":
        begin, last = inside["boundaries"][-1] if len(inside["boundaries"]) else 0, span(inside["schedules"][-1])
        return None if last is None else int(begin) + last
    ends = {
        "cosine_decay_schedule": lambda: inside["decay_steps"],
        "polynomial_schedule": lambda: inside["transition_begin"] + inside["transition_steps"],
        "piecewise_interpolate_schedule": lambda: max(inside["boundaries"]),
        "piecewise_constant_schedule": lambda: max(inside["boundaries_and_scales"]),
    }
    try:
        return int(ends[kind]())
    except (KeyError, TypeError, ValueError):  # another schedule, or another version of optax
        return None


def closed_over(function: Any) -> dict[str, Any]:
    """The names and values that a function closes over."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not filled
            continue
    return found


def warn_if_longer(rate: Any, end: int | None, plan: Plan, path: str = "") -> None:
    """Warn if a schedule was made for a longer run than the plan's, which then would not see the end of it.

    Args:
        rate: the schedule, a function of the step, or a number.
        end: after how many steps it comes to its end; None where it has none.
        plan: the run ahead.
        path: the group of parameters that it is for.
    """
    total = plan.total_steps
    if end is None or total is None or end <= total:
        return
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        there, last = float(rate(total)), float(rate(end))
    warn(
        f"the learning rate's schedule{f' for {path!r}' if path else ''} is made for {end} steps, and the run has {total}: it "
        f"ends at {there:.3g} and not at {last:.3g}. `lr=fm.cosine(…)` and its like take their length from the run.",
    )

"""`plot` of schedules and of functions of the step."""

from types import FunctionType
from typing import Any

import jax
import numpy as np

from fulmen.core import Plan, Schedule
from fulmen.core.verbs import plot
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.plot_style import COLOURS, TEXT, grid


@dispatch
def plot(schedule: Schedule, *, plan=None):
    name = type(schedule).__name__
    if plan is None:
        return _curve(schedule(Plan(total_steps=1000)), 1000, name, "step of a run of 1000")
    return _curve(schedule(plan), plan.total_steps or 1000, name, "step", plan.steps_per_epoch)


@dispatch
def plot(schedule: FunctionType, *, steps=1000):
    return _curve(schedule, steps, schedule.__qualname__.partition(".")[0], "step")


def _curve(rate: Any, total: int, name: str, label: str, per_epoch: int | None = None) -> Any:
    steps = np.unique(np.linspace(0, total, min(total, 1000) + 1).round().astype(np.int32))
    with jax.numpy_dtype_promotion("standard"):  # optax computes with integer steps
        rates = [float(rate(step)) for step in steps]
    figure, (axes,) = grid(1)
    axes.plot(steps, rates, color=COLOURS[0], linewidth=1.8)
    if per_epoch and total // per_epoch <= 40:  # more lines could not be distinguished
        label = f"{label} (a line per epoch)"
        for epoch in range(per_epoch, total, per_epoch):
            axes.axvline(epoch, color=TEXT, alpha=0.25, linewidth=0.6, zorder=0)
    axes.set(xlabel=label, ylabel="learning rate", title=name, xlim=(0, total))
    axes.set_ylim(min(0, 1.05 * min(rates)), 1.05 * max(*rates, 1e-30))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    return figure

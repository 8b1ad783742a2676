"""The learning rate of a finished transformation, which optax's do not say."""

from __future__ import annotations

import inspect
from typing import Any

import jax

from fulmen.schedules.span import closed_over

__all__: list[str] = []


def rate_in(transformation: Any) -> Any:
    """The learning rate of a transformation made by hand, a number or a schedule, or None where it cannot be known.

    It is read off what the transformation's functions close over.

    >>> from fulmen.optimizers.rates import rate_in
    >>> rate_in(optax.chain(optax.clip(1.0), optax.adam(1e-3)))
    0.001
    """
    seen, queue = set(), [getattr(transformation, "update", None)]
    while queue:
        function = queue.pop()
        if id(function) in seen or not inspect.isfunction(function):
            continue
        seen.add(id(function))
        cells = closed_over(function)
        if function.__qualname__.startswith("scale.<locals>") and isinstance(cells.get("step_size"), float):
            return -cells["step_size"]
        if function.__qualname__.startswith("scale_by_schedule.<locals>") and callable(cells.get("step_size_fn")):
            return _without_sign(cells["step_size_fn"])
        injected = cells.get("sched_hps")  # of `optax.inject_hyperparams`
        if isinstance(injected, dict) and "learning_rate" in injected:
            return injected["learning_rate"].schedule_fn
        for value in cells.values():
            queue += value if isinstance(value, list | tuple) else [value]
    return None


def _without_sign(step_size: Any) -> Any:
    """The schedule of which a step's size is the negative."""
    if inspect.isfunction(step_size) and step_size.__qualname__.startswith("scale_by_learning_rate.<locals>"):
        return closed_over(step_size)["learning_rate"]
    return lambda step: -step_size(step)


def rate_in_state(state: Any) -> Any:
    """The learning rate that `optax.inject_hyperparams` keeps in its state, or None."""
    for node in jax.tree.leaves(state, is_leaf=lambda v: hasattr(v, "hyperparams")):
        if hasattr(node, "hyperparams"):
            return node.hyperparams.get("learning_rate")
    return None


def scale_in_state(state: Any) -> Any:
    """By what `optax.contrib.reduce_on_plateau` has scaled the steps down; 1 where there is none."""
    scale: Any = 1.0
    for node in jax.tree.leaves(state, is_leaf=lambda v: hasattr(v, "plateau_count")):
        if hasattr(node, "plateau_count"):
            scale = scale * node.scale
    return scale

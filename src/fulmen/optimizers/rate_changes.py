"""The learning rate of an optimizer that keeps it as data, and the optimizer with another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fulmen.core.tree import remake
from fulmen.optimizers.optimizer import Enclosing, Optimizer


def learning_rate(optimizer: Any) -> Any:
    """The learning rate of an optimizer: a number, None under a schedule, or a dict for a dict of optimizers.

    Raises:
        ValueError: for a finished transformation.
    """
    if isinstance(optimizer, Mapping):
        return {path: learning_rate(inner) for path, inner in optimizer.items()}
    if isinstance(optimizer, Enclosing):
        return learning_rate(optimizer.optimizer)
    if not isinstance(optimizer, Optimizer):
        raise _no_rate(optimizer)
    return None if optimizer.lr is None else np.asarray(optimizer.lr)[()]


def with_learning_rate(optimizer: Any, value: Any) -> Any:
    """The optimizer with another learning rate, a number, for all its groups; it replaces a schedule.

    Raises:
        ValueError: for a finished transformation.
    """

    def changed(inner: Optimizer) -> Any:
        rate = jnp.asarray(float(value))  # weakly typed, as the number that `setup` was given
        return rate if inner.lr is None else jnp.broadcast_to(rate, np.shape(inner.lr))

    return _with_rates(optimizer, changed)


def with_schedule(optimizer: Any) -> Any:
    """The optimizer with its schedules again, where numbers replace them.

    Raises:
        ValueError: for a finished transformation.
    """
    return _with_rates(optimizer, lambda inner: inner.lr if inner.schedule is None else None)


def _with_rates(optimizer: Any, changed: Callable[[Optimizer], Any]) -> Any:
    if isinstance(optimizer, Mapping):
        inside = {path: _with_rates(inner, changed) for path, inner in optimizer.items()}
        return type(optimizer)(inside)  # type: ignore[call-arg] - in the same order, if it has one
    if isinstance(optimizer, Enclosing):
        return remake(optimizer, {"optimizer": _with_rates(optimizer.optimizer, changed)})
    if not isinstance(optimizer, Optimizer):
        raise _no_rate(optimizer)
    return remake(optimizer, {"lr": changed(optimizer)})


def schedule_is_replaced(optimizer: Any) -> bool:
    """Whether an optimizer of any form has a schedule that a number replaces, as by `with_learning_rate`."""
    if isinstance(optimizer, Mapping):
        return any(map(schedule_is_replaced, optimizer.values()))
    if isinstance(optimizer, Enclosing):
        return schedule_is_replaced(optimizer.optimizer)
    return isinstance(optimizer, Optimizer) and optimizer.schedule is not None and optimizer.lr is not None


def _no_rate(optimizer: Any) -> ValueError:
    kind = "an optimizer given by a method" if optimizer is None else f"a {type(optimizer).__name__}"
    return ValueError(
        f"run.learning_rate must belong to an optimizer that keeps it as data, got {kind}; write fm.fit(…, optimizer=optax.adam, lr=1e-3)."
    )

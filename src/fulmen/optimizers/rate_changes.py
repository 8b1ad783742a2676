"""The learning rate of an optimizer that keeps it as data, and the optimizer with another one."""

from __future__ import annotations

from collections.abc import Mapping
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
    if isinstance(optimizer, Mapping):
        changed = {path: with_learning_rate(inner, value) for path, inner in optimizer.items()}
        return type(optimizer)(changed)  # type: ignore[call-arg] - in the same order, if it has one
    if isinstance(optimizer, Enclosing):
        return remake(optimizer, {"optimizer": with_learning_rate(optimizer.optimizer, value)})
    if not isinstance(optimizer, Optimizer):
        raise _no_rate(optimizer)
    rate = jnp.asarray(float(value))  # weakly typed, as the number that `setup` was given
    if optimizer.lr is not None:
        rate = jnp.broadcast_to(rate, np.shape(optimizer.lr))
    return remake(optimizer, {"lr": rate})


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

"""What a step or an evaluation logs for a batch, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from fulmen.compose.example_means import as_metric, total_loss, total_weight
from fulmen.compose.loss_entries import entries_of, logged_losses, reduces_losses
from fulmen.compose.supervised import with_outputs
from fulmen.compose.vectorized import over_members
from fulmen.core import Mean, Mode, short
from fulmen.core.verbs import bind, metrics


def measured(component: Any, batch: Any, mode: Mode) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of an unbound component in a mode, `()`, and the logs of the batch as mergeable values.

    These are `loss`, `loss/<entry>` if the loss has several entries, and the metrics.
    """
    bound = bind(component, mode)
    batch = with_outputs(bound, batch)
    value = total_loss(bound, batch)
    count = total_weight(batch)
    logs: dict[str, Any] = {"loss": Mean(value, count)}
    logs |= {name: Mean(entry, count) for name, entry in _loss_entries(bound, batch).items()}
    found = metrics(bound, batch)
    if not isinstance(found, Mapping):
        raise TypeError(
            f"`metrics` of {type(bound).__name__} must return a dict from names to values, such as dict(error=…), got {short(found)}."
        )
    for name, metric in found.items():
        if name in logs:
            raise ValueError(
                f"{name!r} in `metrics` of {type(bound).__name__} is already the name of a part of its loss; rename the metric."
            )
        logs[name] = as_metric(name, metric, batch)
    return value, logs


def _loss_entries(bound: Any, batch: Any) -> dict[str, Any]:
    """The entries that a system's loss adds up, by their names in the logs; none if there is only one."""
    entries = entries_of(bound, batch) if reduces_losses(bound, batch) else {}
    if len(entries) == 1 and not isinstance(next(iter(entries.values())), Mapping):
        return {}  # the mean of a single entry is the loss
    found = logged_losses(bound, entries, batch)
    return found if len(found) > 1 else {}


def observe(component: Any, batch: Any, mode: Mode) -> dict[str, Any]:
    """The logs of a batch for an unbound component in a mode; of a population, for each member."""
    return over_members(component, component, _observe, batch, mode)


def _observe(component: Any, batch: Any, mode: Mode) -> dict[str, Any]:
    return measured(component, batch, mode)[1]

"""`members` of a population as single states, and the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fulmen.compose.vectorized import members_of
from fulmen.core import Component, State
from fulmen.train.history import History, highest_is_best


def members(of: State | Component) -> Sequence[Any]:
    """The members of a population: of a state, single states that can be trained further; of a component, components.

    Args:
        of: a state or a component with a `Population` in it; wrappers around the population are then around each member.

    Raises:
        TypeError: if there is no population.

    >>> population = fm.Population(fm.models.Dense(4, 3), 5)
    >>> len(fm.members(population)), fm.members(population)[0]
    (5, Dense(in_features=4, out_features=3, use_bias=True, weight=None, bias=None))
    """
    system = of.system if isinstance(of, State) else of
    found = members_of(system, of)
    if not found:
        raise TypeError(
            f"members: a population or its state must be given, got {type(system).__name__}; write fm.Population(system, n)."
        )
    return found


def best_member(state: State, figures: Any = None, *, by: Any, highest: bool | None = None) -> State:
    """The state of a population's best member.

    Args:
        state: the population's.
        figures: a history, of which the last epoch is used, or the dict that `evaluate` returned.
        by: the name of a metric in it, such as `"validation/accuracy"`; or a number for each member, `(n,)`.
        highest: whether the highest value is the best. None decides by the name: lower losses and errors, and higher
            accuracies and similar metrics, are better.

    Raises:
        KeyError: if there is no metric of that name for each member.
        ValueError: if neither the name nor `highest` tells whether higher is better; if there is not one number for each
            member, or no finite one.

    >>> population = fm.Population(fm.Classifier(fm.models.Dense(4, 3)), 2)
    >>> state = fm.setup(population, (jnp.ones((6, 4)), jnp.zeros(6, int)), optimizer=optax.sgd, lr=[0.0, 1.0])
    >>> fm.best_member(state, {"loss/members": jnp.array([0.3, 0.2])}, by="loss").optimizer.lr
    Array(1., dtype=float32, weak_type=True)
    """
    found, values = members(state), by
    if isinstance(by, str):
        values = _of_members(figures, by)
        highest = highest_is_best(by) if highest is None else highest
    values = np.asarray(values)
    if highest is None:
        name = by if isinstance(by, str) else "value"
        raise ValueError(f"best_member: whether a higher {name} is better is unknown; write highest=True or highest=False.")
    if values.shape != (len(found),):
        raise ValueError(
            f"best_member: `by` must be one number for each of the {len(found)} members, got shape {values.shape}."
        )
    values = np.where(np.isfinite(values), values if highest else -values, -np.inf)
    if not np.isfinite(values).any():
        raise ValueError("best_member: no member has a finite value.")
    return found[int(values.argmax())]


def _of_members(metrics: Any, name: str) -> Any:
    """A metric's value for each member, `(n,)`."""
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"best_member: `figures` must be a history or a dict from `evaluate`, got {type(metrics).__name__}; write "
            f"fm.best_member(state, history, by={name!r}), or give one number for each member: by=[…]."
        )
    if f"{name}/members" not in metrics:
        known = ", ".join(k.removesuffix("/members") for k in metrics if k.endswith("/members"))
        raise KeyError(f"best_member: no metric {name!r} for each member; there are: {known or 'none'}")
    values = metrics[f"{name}/members"]
    return values[-1] if isinstance(metrics, History) else values  # a history has one row per epoch

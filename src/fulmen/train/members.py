"""The members of a population: each one's state, and the best one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fulmen.compose.vectorized import members_of
from fulmen.core.component import Component
from fulmen.core.state import State
from fulmen.train.history import History, highest_is_best

__all__ = ["best", "members"]


def members(of: State | Component) -> Sequence[Any]:
    """A population's members, each as what it is by itself: of a state, states that go on training; of a component, components.

    Args:
        of: a state or a component with a `Population` in it; a wrapper that it stands in is around each member then.

    Raises:
        TypeError: if there is no population.

    >>> population = fm.Population(fm.models.Dense(4, 3), 5)
    >>> len(fm.members(population)), fm.members(population)[0]
    (5, Dense(in_features=4, out_features=3, use_bias=True, weight=None, bias=None))
    """
    system = of.system if isinstance(of, State) else of
    found = members_of(system, of)
    if not found:
        name = type(system).__name__
        raise TypeError(f"a population, or a state of one, was expected, and {name} came: fm.Population(system, n).")
    return found


def best(state: State, figures: Any = None, *, by: Any, highest: bool | None = None) -> State:
    """The state of a population's best member.

    Args:
        state: the population's.
        figures: what `by` is a name in: a history, whose last epoch counts, or what `evaluate` gave.
        by: the name of a figure, such as `"validation/accuracy"`; or a number for each member, `(n,)`.
        highest: whether the highest figure is the best. None goes by the name: losses and errors are better if they are
            lower, accuracies and their like if they are higher.

    Raises:
        KeyError: if there is no figure of that name for each member.
        ValueError: if the name does not say whether higher is better and `highest` does not either; if there is not one number
            for each member, or none that is finite.

    >>> population = fm.Population(fm.Classifier(fm.models.Dense(4, 3)), 2)
    >>> state = fm.setup(population, (jnp.ones((6, 4)), jnp.zeros(6, int)), optimizer=optax.sgd, lr=[0.0, 1.0])
    >>> fm.best(state, {"loss/members": jnp.array([0.3, 0.2])}, by="loss").optimizer.lr
    Array(1., dtype=float32, weak_type=True)
    """
    found = members(state)
    if isinstance(by, str):
        if not isinstance(figures, Mapping):
            raise TypeError(
                f"best: figures with {by!r} in them were expected, the history or what `evaluate` gave: fm.best(state, history, "
                f"by={by!r}). By numbers of your own: by=[…], one for each member."
            )
        name = f"{by}/members"
        if name not in figures:
            known = ", ".join(k.removesuffix("/members") for k in figures if k.endswith("/members"))
            raise KeyError(f"best: no figure {by!r} of each member; there are: {known or 'none'}")
        values = np.asarray(figures[name])
        # An epoch's figures lie behind each other in a history.
        values = values[-1] if isinstance(figures, History) else values
        highest = highest_is_best(by) if highest is None else highest
    else:
        values = np.asarray(by)
    if highest is None:
        raise ValueError(
            f"best: it is not known whether a higher {by if isinstance(by, str) else 'figure'} is better; say it: highest=True or "
            "highest=False."
        )
    if values.shape != (len(found),):
        raise ValueError(f"best: one number for each of the {len(found)} members was expected, and {values.shape} came.")
    values = np.where(np.isfinite(values), values if highest else -values, -np.inf)
    if not np.isfinite(values).any():
        raise ValueError("best: no member has a finite figure.")
    return found[int(values.argmax())]

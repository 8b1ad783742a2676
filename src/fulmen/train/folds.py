"""`cross_validate`: a population in which each member is trained without another part of the data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fulmen.compose.per_member import PerMember
from fulmen.compose.population import Population
from fulmen.compose.vectorized import members_of
from fulmen.core import Component, State
from fulmen.core.verbs import evaluate, fit
from fulmen.data.arrays import check_arrays, check_seed, count
from fulmen.train.accumulate import plain
from fulmen.train.history import History
from fulmen.train.members import members


class CrossValidation(NamedTuple):
    """The result of `cross_validate`.

    Attributes:
        state: the population's; `fm.members(state)[i]` was trained on all folds except i.
        history: as `fit` returns it; `validation/…` are the metrics of each member on the fold that it was not trained on.
        figures: the mean over the folds of the metrics that `evaluate` returns, with `…/std` and `…/members`, `(folds,)`.
        folds: `folds[i]`, the rows that member i was not trained on.
    """

    state: State
    history: History
    figures: dict[str, Any]
    folds: list[np.ndarray]


def cross_validate(system: Component, data: Any, *, folds: int = 5, seed: int | None = 0, **options: Any) -> CrossValidation:
    """k-fold cross-validation: one member for each fold, trained on the other folds and evaluated on it, in one program.

    If the examples cannot be divided equally, folds differ by one example. Members with one example less to train on get an
    example of weight 0, which no mean over examples counts; only statistics over a batch, as of a `BatchNorm`, count one of
    their examples twice in an epoch. The metrics of each fold are exact.

    Args:
        system: a single system, not a population.
        data: arrays, or a tuple, dict or `Batch` of arrays with the same first axis.
        folds: the number of folds, from 2 to the number of examples.
        seed: of the folds, the members (member i has `seed + i`) and the order of the data; None keeps the order of the data
            for the folds, and is 0 for the rest.
        **options: those of `fit` except `validation`: `optimizer`, `lr` (a number, or a list with one for each member),
            `epochs`, `batch_size`, …

    Returns:
        A `CrossValidation`: `state, history, figures, folds = fm.cross_validate(…)`.

    Raises:
        ValueError: for fewer than two folds, or more than there are examples.

    >>> x, y = jax.random.normal(jax.random.key(0), (23, 4)), jnp.arange(23) % 3
    >>> found = fm.cross_validate(
    ...     fm.Classifier(fm.models.Dense(4, 3)), (x, y), folds=3, optimizer=optax.adam, lr=1e-2, epochs=1, batch_size=8, progress=False)
    >>> found.figures["accuracy/members"].shape, [len(fold) for fold in found.folds]
    ((3,), [8, 8, 7])
    """
    if members_of(system, system):
        raise TypeError(
            "system must be a single system, got a population; write fm.cross_validate(system, data, folds=5, …)."
        )
    if "validation" in options:
        raise TypeError("cross_validate has no option `validation`: each member is validated on its own fold.")
    data = check_arrays(data)
    n = count(data)
    if not isinstance(folds, int) or isinstance(folds, bool):
        raise TypeError(f"folds must be an integer, got {folds!r}.")
    if not 2 <= folds <= n:
        raise ValueError(f"folds must be from 2 to the number of examples, {n}, got {folds}.")
    check_seed(seed)
    order = np.arange(n) if seed is None else np.random.default_rng([seed, folds]).permutation(n)
    left_out = np.array_split(order, folds)
    rows = lambda some: jax.tree.map(lambda v: v[some], data)
    training = PerMember([rows(np.concatenate([*left_out[:i], *left_out[i + 1 :]])) for i in range(folds)])
    unseen = PerMember([rows(fold) for fold in left_out])
    state, history = fit(Population(system, folds), training, validation=unseen, seed=seed or 0, **options)
    each = [evaluate(member, rows(fold)) for member, fold in zip(members(state), left_out, strict=True)]
    figures: dict[str, Any] = {}
    for name in each[0]:
        values = np.array([one[name] for one in each])
        figures |= {name: plain(values.mean(0)), f"{name}/std": plain(values.std(0)), f"{name}/members": values}
    return CrossValidation(state, history, figures, left_out)

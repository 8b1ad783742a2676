"""`cross_validate`: a population whose members each leave out another part of the data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fulmen.compose.per_member import PerMember
from fulmen.compose.population import Population
from fulmen.compose.vectorized import members_of
from fulmen.core.component import Component
from fulmen.core.state import State
from fulmen.core.verbs import evaluate, fit
from fulmen.data.arrays import check_arrays, count
from fulmen.data.source import check_seed
from fulmen.train.history import History
from fulmen.train.members import members

__all__ = ["CrossValidation", "cross_validate"]


class CrossValidation(NamedTuple):
    """What `cross_validate` gives.

    Attributes:
        state: the population's; `fm.members(state)[i]` was trained on all but fold i.
        history: as `fit` gives it; its `validation/…` are each member's on the fold that it has not seen.
        figures: as `evaluate` gives them: the mean over the folds, `…/std` and `…/members`, `(folds,)`.
        folds: `folds[i]`, the rows that member i has not seen.
    """

    state: State
    history: History
    figures: dict[str, Any]
    folds: list[np.ndarray]


def cross_validate(system: Component, data: Any, *, folds: int = 5, seed: int | None = 0, **options: Any) -> CrossValidation:
    """Train a member on all folds of the data but one, for each of them, in one program; measure it on the one left out.

    Where the folds cannot be equal, they differ by one example: those members that have one more to train on see it, and for
    the others an example of weight 0 stands in its place, which no mean over examples counts. Only what couples examples, such
    as the statistics of a `BatchNorm`, sees one of the member's own examples twice an epoch. The figures are of each fold
    alone, and exact.

    Args:
        system: what is trained; not yet a population.
        data: arrays, or a tuple, dict or `Batch` of arrays that share their first axis.
        folds: how many, from 2 to the number of examples.
        seed: of the folds, the members (member i has `seed + i`) and the order of the data; None keeps the data's order for the
            folds, and is 0 for the rest.
        **options: those of `fit`, but `validation`: `optimizer`, `lr` (one number for each member, if it is a list), `epochs`,
            `batch_size`, …

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
            "cross_validate makes a population itself, of one system: fm.cross_validate(system, data, folds=5, …)."
        )
    if "validation" in options:
        raise TypeError("cross_validate: `validation` is each member's own fold, and none was expected.")
    data = check_arrays(data)
    n = count(data)
    if not isinstance(folds, int) or isinstance(folds, bool):
        raise TypeError(f"cross_validate, folds: a whole number was expected, and {folds!r} came.")
    if folds < 2:
        raise ValueError(f"cross_validate, folds: at least 2 were expected, and {folds} came.")
    if folds > n:
        raise ValueError(f"cross_validate, folds: no more than the {n} examples were expected, and {folds} came.")
    check_seed(seed)
    order = np.arange(n) if seed is None else np.random.default_rng([seed, folds]).permutation(n)
    left_out = np.array_split(order, folds)
    rows = lambda some: jax.tree.map(lambda v: v[some], data)
    own = PerMember([rows(np.concatenate([*left_out[:i], *left_out[i + 1 :]])) for i in range(folds)])
    unseen = PerMember([rows(fold) for fold in left_out])
    state, history = fit(Population(system, folds), own, validation=unseen, seed=seed or 0, **options)
    each = [evaluate(member, rows(fold)) for member, fold in zip(members(state), left_out, strict=True)]
    figures: dict[str, Any] = {}
    for name in each[0]:
        values = np.array([one[name] for one in each])
        figures |= {name: _plain(values.mean(0)), f"{name}/std": _plain(values.std(0)), f"{name}/members": values}
    return CrossValidation(state, history, figures, left_out)


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value

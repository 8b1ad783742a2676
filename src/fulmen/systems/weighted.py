"""`Weighted`: how much the entries of a system's loss count, by hand or learned."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fulmen.core.component import Model, System, Wrapper
from fulmen.core.fields import static
from fulmen.core.marks import sums_losses
from fulmen.core.naming import briefly, concrete, number
from fulmen.core.tree import remake, short
from fulmen.core.verbs import init, loss, losses, reduce_losses, validate, weigh
from fulmen.dispatching.registry import dispatch

__all__ = ["Uncertainty", "Weighted"]


class Weighted(Wrapper):
    """A system whose loss weighs its entries: Σ w_i L_i, where L_i is what the system's own `reduce_losses` makes of the entry.

    All else is the system's; its entries are logged as they are, unweighed.

    Args:
        system: a system.
        weights: from the entries' names to numbers, which are hyperparameters; what it leaves out counts 1. Or a model of
            weights, such as `Uncertainty("digit", "size")`.

    **Extending.** `weigh(weights: Mine, losses)` is for a model of weights of one's own.

    >>> data = dict(x=jnp.ones((6, 4)), digit=jnp.arange(6) % 3, size=jnp.ones((6, 1)))
    >>> heads = dict(digit=fm.Classifier(fm.models.Dense(8, 3)), size=fm.Regressor(fm.models.Dense(8, 1)))
    >>> tasks = fm.MultiTask(fm.models.Dense(4, 8), heads)
    >>> for weights in ({"size": 0.1}, fm.systems.Uncertainty("digit", "size")):
    ...     state = fm.setup(fm.Weighted(tasks, weights), data, optimizer=optax.adam, lr=1e-3)
    """

    per_example: ClassVar[bool] = False  # its entries are unweighed, and so do not add up to the loss

    system: System
    weights: dict[str, ArrayLike] | Model

    def __repr__(self) -> str:
        return briefly(self)


class Uncertainty(Model):
    """Weights by the uncertainty that is learned of each task: Σ exp(−s_i) L_i + s_i / 2, with s_i the logarithm of a variance.

    L_i are negative log likelihoods at variance 1: cross-entropies, and half of squared errors. Kendall, Gal and Cipolla 2018,
    arXiv:1705.07115.

    Args:
        *tasks: the names of the entries of `losses`, all of them.

    >>> weights = fm.init(fm.systems.Uncertainty("digit", "size"), jax.random.key(0))
    >>> float(fm.systems.weigh(weights, dict(digit=jnp.float32(2.0), size=jnp.float32(3.0))))
    5.0
    """

    tasks: tuple[str, ...] = static()
    log_variances: jax.Array | None = None

    def __init__(self, *tasks: str, log_variances: Any = None) -> None:
        self.__dict__.update(tasks=tasks, log_variances=log_variances, mode=None)


@dispatch
def weigh(weights: dict, losses):
    _require_known("Weighted, weights", weights, losses)
    terms = [jnp.asarray(weights.get(name, 1.0)).astype(value.dtype) * value for name, value in losses.items()]
    return _sum(terms)


@dispatch
def weigh(weights: Uncertainty, losses):
    _require_known("Uncertainty", weights.tasks, losses)
    if weights.log_variances is None:
        raise ValueError("this Uncertainty has no log_variances yet: it is a description. Draw it, fm.init(weights, key).")
    missing = [name for name in losses if name not in weights.tasks]
    if missing:
        raise ValueError(f"Uncertainty: the loss has an entry {missing[0]!r} too; name all of them, {', '.join(losses)}.")
    terms = []
    for name, s in zip(weights.tasks, weights.log_variances, strict=True):
        terms += [jnp.exp(-s).astype(losses[name].dtype) * losses[name], s / 2]
    return _sum(terms)


def _sum(terms: list[jax.Array]) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):  # parts may compute in different precisions
        return sum(terms[1:], terms[0])


def _require_known(who: str, names: Any, losses: dict[str, Any]) -> None:
    for name in names:
        if name not in losses:
            near = difflib.get_close_matches(name, losses, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its entries are: {', '.join(losses)}."
            raise ValueError(f"{who}: the loss has no entry {name!r}; {hint}")


@dispatch
def init(weights: Uncertainty, key):
    return remake(weights, {"log_variances": jnp.zeros(len(weights.tasks))})


@dispatch
@sums_losses
def loss(weighted: Weighted, batch):
    return reduce_losses(weighted, losses(weighted, batch), batch)


@dispatch
def reduce_losses(weighted: Weighted, losses, batch):
    means = {name: reduce_losses(weighted.system, {name: value}, batch) for name, value in losses.items()}
    return weigh(weighted.weights, means)


@dispatch
def validate(weighted: Weighted):
    if not isinstance(weighted.weights, dict):
        return
    for name, weight in weighted.weights.items():
        seen = concrete(weight)
        if seen is None and not hasattr(weight, "dtype"):
            raise TypeError(f"Weighted, weights: a number was expected for {name!r}, and {short(weight)} came.")
        if seen is not None and not np.isfinite(seen).all():
            raise ValueError(f"Weighted, weights: a finite number was expected for {name!r}, and {number(weight)} came.")

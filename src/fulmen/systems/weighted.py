"""`Weighted`: fixed or learned weights for the entries of a system's loss."""

import difflib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fulmen.compose.loss_entries import added, entries_of, reduces_losses
from fulmen.core import Model, System, Wrapper, briefly, concrete, number, remake, short, static, sums_losses
from fulmen.core.verbs import init, loss, reduce_losses, validate, weigh
from fulmen.dispatching.registry import dispatch


class Weighted(Wrapper):
    """A system whose loss is the weighted sum of its entries: Σ w_i L_i, where `reduce_losses` of the system reduces w_i L_i.

    The logged entries are not weighted.

    Args:
        system: a system.
        weights: from entry names to numbers, which are hyperparameters; the weight of other entries is 1. Or a model of
            weights, such as `Uncertainty("digit", "size")`.

    **Extending.** Write `weigh(weights: Mine, losses)` for a custom model of weights.

    >>> data = dict(x=jnp.ones((6, 4)), digit=jnp.arange(6) % 3, size=jnp.ones((6, 1)))
    >>> heads = dict(digit=fm.Classifier(fm.models.Dense(8, 3)), size=fm.Regressor(fm.models.Dense(8, 1)))
    >>> tasks = fm.MultiTask(fm.models.Dense(4, 8), heads)
    >>> for weights in ({"size": 0.1}, fm.systems.Uncertainty("digit", "size")):
    ...     state = fm.setup(fm.Weighted(tasks, weights), data, optimizer=optax.adam, lr=1e-3)
    """

    per_example: ClassVar[bool] = False  # the entries are not weighted, so they do not add up to the loss

    system: System
    weights: dict[str, ArrayLike] | Model

    def __repr__(self) -> str:
        return briefly(self)


class Uncertainty(Model):
    """Weights from the learned uncertainty of each task: Σ exp(−s_i) L_i + s_i / 2, where s_i is the logarithm of a variance.

    L_i are negative log likelihoods at variance 1: cross-entropies, or half of squared errors. Kendall, Gal and Cipolla 2018,
    arXiv:1705.07115.

    Args:
        *tasks: the names of all entries of `losses`.
        log_variances: `(tasks,)`, s; made by `init`.

    >>> weights = fm.init(fm.systems.Uncertainty("digit", "size"), jax.random.key(0))
    >>> float(fm.systems.weigh(weights, dict(digit=jnp.float32(2.0), size=jnp.float32(3.0))))
    5.0
    """

    tasks: tuple[str, ...] = static()
    log_variances: jax.Array | None = None

    def __init__(self, *tasks: str, log_variances: Any = None) -> None:
        self.tasks, self.log_variances = tasks, log_variances


@dispatch
def weigh(weights: Uncertainty, losses):
    _require_known("Uncertainty.tasks", weights.tasks, losses)
    if weights.log_variances is None:
        raise ValueError("Uncertainty.log_variances is not initialised; write fm.init(weights, key).")
    missing = [name for name in losses if name not in weights.tasks]
    if missing:
        raise ValueError(
            f"Uncertainty.tasks must name every entry of the loss, {', '.join(losses)}; {missing[0]!r} is missing."
        )
    terms = []
    for name, s in zip(weights.tasks, weights.log_variances, strict=True):
        terms += [jnp.exp(-s).astype(losses[name].dtype) * losses[name], s / 2]
    return added(terms)


def _require_known(who: str, names: Any, losses: dict[str, Any]) -> None:
    for name in names:
        if name not in losses:
            near = difflib.get_close_matches(name, losses, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its entries are: {', '.join(losses)}."
            raise ValueError(f"{who} has {name!r}, but the loss has no entry {name!r}; {hint}")


@dispatch
def init(weights: Uncertainty, key):
    return remake(weights, {"log_variances": jnp.zeros(len(weights.tasks))})


@dispatch
@sums_losses
def loss(weighted: Weighted, batch):
    if not reduces_losses(weighted.system, batch):
        name = type(weighted.system).__name__
        raise TypeError(
            f"Weighted.system must have a loss that is made of its `losses`, and {name} has a method of `loss` of its own; write "
            f"{name}(fm.Weighted(…)), or mark the method with fm.marks.sums_losses if it reduces `losses`."
        )
    return reduce_losses(weighted, entries_of(weighted, batch), batch)


@dispatch
def reduce_losses(weighted: Weighted, losses, batch):
    if isinstance(weighted.weights, dict):
        _require_known("Weighted.weights", weighted.weights, losses)
        return reduce_losses(
            weighted.system, {name: _times(weighted.weights.get(name), v) for name, v in losses.items()}, batch
        )
    try:
        return weigh(
            weighted.weights, {name: reduce_losses(weighted.system, {name: v}, batch) for name, v in losses.items()}
        )
    except KeyError as error:
        error.add_note("Weighted with a model of weights calls `reduce_losses` of the system with one entry at a time.")
        raise


def _times(weight: Any, entry: Any) -> Any:
    """An entry, or each of several in a dict, times a weight; None is 1."""
    scaled = lambda value: jnp.asarray(weight).astype(jnp.result_type(value)) * value
    return entry if weight is None else jax.tree.map(scaled, entry)


@dispatch
def validate(weighted: Weighted):
    if not isinstance(weighted.weights, dict):
        return
    for name, weight in weighted.weights.items():
        value = concrete(weight)
        if value is None and not hasattr(weight, "dtype"):
            raise TypeError(f"Weighted.weights[{name!r}] must be a number, got {short(weight)}.")
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"Weighted.weights[{name!r}] must be a finite number, got {number(weight)}.")

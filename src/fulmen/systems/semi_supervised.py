"""`SemiSupervised`: labelled and unlabelled examples in one step."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.batch import Attacked, Batch
from fulmen.component import Component, Wrapper
from fulmen.data.arrays import count, cuts, order
from fulmen.dispatch import dispatch
from fulmen.naming import briefly
from fulmen.systems.adversarial import AttackTrained
from fulmen.systems.checks import require_number, require_part
from fulmen.systems.composition import total_loss
from fulmen.tree import remake, short
from fulmen.verbs import (
    as_batch,
    augment,
    batches,
    loss,
    losses,
    metrics,
    predictions,
    reduce_losses,
    steps_per_epoch,
    validate,
)

__all__ = ["Mixed", "SemiSupervised"]


class Mixed(Batch):
    """Labelled and unlabelled examples: for one step, where there may be more of the one kind than of the other, or as data.

    As data, an epoch goes once through the larger of the two, and through the smaller as often as that takes, with
    `batch_size` of both in every step. It is for training: evaluate on pairs `(x, y)`, each of which counts once.

    >>> x, y = jnp.ones((8, 4)), jnp.arange(8) % 3
    >>> for batch in fm.batches(fm.Mixed((x, y), jnp.zeros((12, 4))), batch_size=5):
    ...     print(len(batch.labeled[0]), len(batch.unlabeled))
    5 5
    5 5
    2 2

    Args:
        labeled: a pair `(x, y)`, or a batch.
        unlabeled: an array, or a batch.
    """

    attackable: ClassVar[tuple[str, ...]] = ()  # its parts are attacked each by itself

    labeled: Any
    unlabeled: Any

    def __len__(self) -> int:
        return count(self.labeled)


@dispatch
def batches(data: Mixed, plan, epoch, start=0):
    _require_arrays(data)
    total = max(map(count, (data.labeled, data.unlabeled)))
    rows = {name: _rows(count(getattr(data, name)), total, plan, epoch) for name in ("labeled", "unlabeled")}
    for begin in range(start * plan.batch_size, cuts(total, plan) * plan.batch_size, plan.batch_size):
        chosen = {name: some[begin : begin + plan.batch_size] for name, some in rows.items()}
        yield _each(data, lambda part, name, chosen=chosen: jax.tree.map(lambda v: v[chosen[name]], part))


@dispatch
def steps_per_epoch(data: Mixed, plan):
    return cuts(max(map(count, (data.labeled, data.unlabeled))), plan)


def _rows(n: int, total: int, plan: Any, epoch: int) -> np.ndarray:
    """The examples of an epoch of `total`, in their order: what is smaller is gone through again and again."""
    times = -(-total // n)
    return np.concatenate([order(n, plan, epoch * times + i) for i in range(times)])[:total]


def _require_arrays(data: Mixed) -> None:
    for name in ("labeled", "unlabeled"):
        lengths = {np.shape(v)[:1] for v in jax.tree.leaves(getattr(data, name))}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            raise ValueError(
                f"Mixed, {name}: arrays of equal length, with an example in each row, were expected, and "
                f"{short(getattr(data, name))} came."
            )


class SemiSupervised(Wrapper):
    """A system that learns from both kinds at once: loss(labelled) + w · loss(unlabelled), by its methods for the batches' types.

    On `Mixed` batches, that is; on all others it is the system. `MeanTeacher` and `VAT` have a loss for `Unlabeled` batches, and
    so may a system of one's own: `def loss(system: Mine, batch: fm.Unlabeled)`.

    Args:
        system: something that has a loss for both.
        weight: w: a hyperparameter.

    >>> system = fm.SemiSupervised(fm.VAT(fm.Classifier(fm.models.MLP(4, 8, 3)), eps=0.5))
    >>> data = fm.Mixed((jnp.ones((6, 4)), jnp.arange(6) % 3), jnp.zeros((20, 4)))
    >>> state, history = fm.fit(system, data, optimizer=optax.adam, lr=0.1, epochs=1, batch_size=10, progress=False)
    >>> sorted(history)
    ['accuracy', 'loss', 'loss/labeled', 'loss/unlabeled', 'lr', 'seconds']
    """

    system: Component
    weight: float = 1.0

    def __repr__(self) -> str:
        return briefly(self)


@dispatch
def as_batch(semi: SemiSupervised, raw):
    if isinstance(raw, Mixed):
        return remake(raw, {name: as_batch(semi.system, getattr(raw, name)) for name in ("labeled", "unlabeled")})
    return as_batch(semi.system, raw)


@dispatch
def augment(semi: SemiSupervised, batch, mode):
    if not isinstance(batch, Mixed):
        return augment(semi.system, batch, mode)
    return _each(batch, lambda part, name: augment(semi.system, part, mode.at(name)))


def _each(batch: Mixed, function: Any) -> Mixed:
    return remake(batch, {name: function(getattr(batch, name), name) for name in ("labeled", "unlabeled")})


@dispatch
def loss(semi: SemiSupervised, batch):
    if not isinstance(batch, Mixed):
        return loss(semi.system, batch)
    return reduce_losses(semi, losses(semi, batch), batch)


@dispatch
def losses(semi: SemiSupervised, batch):
    if not isinstance(batch, Mixed):
        return losses(semi.system, batch)
    labeled, unlabeled = (total_loss(semi.system, part) for part in (batch.labeled, batch.unlabeled))
    return {"labeled": labeled, "unlabeled": jnp.asarray(semi.weight).astype(unlabeled.dtype) * unlabeled}


@dispatch
def reduce_losses(semi: SemiSupervised, losses, batch):
    if not isinstance(batch, Mixed):
        return reduce_losses(semi.system, losses, batch)
    return losses["labeled"] + losses["unlabeled"]


@dispatch
def metrics(semi: SemiSupervised, batch):
    return metrics(semi.system, batch.labeled if isinstance(batch, Mixed) else batch)


@dispatch
def predictions(semi: SemiSupervised, batch):
    if not isinstance(batch, Mixed):
        return predictions(semi.system, batch)
    found = {name: predictions(semi.system, getattr(batch, name)) for name in ("labeled", "unlabeled")}
    return {f"{name}/{path}" if path else name: p for name, some in found.items() for path, p in some.items()}


@augment.around(AttackTrained)
def _attacks_are_on_each_kind(call, defence, batch, mode):
    if not isinstance(batch, Mixed):
        return call(defence, batch, mode)
    found = _each(batch, lambda part, name: call(defence, part, mode.at(name)))
    return Attacked(_each(found, lambda part, _: part.batch), _each(found, lambda part, _: part.clean))


@dispatch
def validate(semi: SemiSupervised):
    require_part(semi, "system", "one that has a loss for both, such as fm.VAT(…),")
    require_number(semi, "weight")


@dispatch
def validate(semi: SemiSupervised, batch):
    for part in (batch.labeled, batch.unlabeled) if isinstance(batch, Mixed) else (batch,):
        validate(semi.system, part)

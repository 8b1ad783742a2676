"""`SemiSupervised`: labelled and unlabelled examples in one step."""

from __future__ import annotations

import jax.numpy as jnp

from fulmen.compose.losses import total_loss
from fulmen.core.batch import Attacked
from fulmen.core.component import Component, Wrapper
from fulmen.core.fields import hyper
from fulmen.core.marks import keeps_rows, sums_losses
from fulmen.core.naming import briefly
from fulmen.core.verbs import as_batch, augment, loss, losses, metrics, predictions, reduce_losses, validate
from fulmen.data.mixed import Mixed
from fulmen.dispatching.registry import dispatch
from fulmen.robust.defences.adversarial import AttackTrained

__all__ = ["SemiSupervised"]


class SemiSupervised(Wrapper):
    """A system that learns from both kinds at once: loss(labelled) + w · loss(unlabelled), by its methods for the batches' types.

    On `Mixed` batches, that is; on all others it is the system. `MeanTeacher` and `VAT` have a loss for `Unlabeled` batches, and
    so may a system of one's own: `def loss(system: Mine, batch: fm.Unlabeled)`.

    Args:
        system: something that has a loss for both.
        weight: w: a hyperparameter.

    >>> system = fm.systems.SemiSupervised(fm.defences.VAT(fm.Classifier(fm.models.MLP(4, 8, 3)), eps=0.5))
    >>> data = fm.data.Mixed((jnp.ones((6, 4)), jnp.arange(6) % 3), jnp.zeros((20, 4)))
    >>> state, history = fm.fit(system, data, optimizer=optax.adam, lr=0.1, epochs=1, batch_size=10, progress=False)
    >>> sorted(history)
    ['accuracy', 'loss', 'loss/labeled', 'loss/unlabeled', 'lr', 'seconds']
    """

    system: Component
    weight: float = hyper(minimum=0, default=1.0)

    def __repr__(self) -> str:
        return briefly(self)


@dispatch
@keeps_rows
def as_batch(semi: SemiSupervised, raw):
    if isinstance(raw, Mixed):
        return raw.each(lambda part, _: as_batch(semi.system, part))
    return as_batch(semi.system, raw)


@dispatch
def augment(semi: SemiSupervised, batch, mode):
    if not isinstance(batch, Mixed):
        return augment(semi.system, batch, mode)
    return batch.each(lambda part, name: augment(semi.system, part, mode.at(name)))


@dispatch
@sums_losses
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
    found = batch.each(lambda part, name: call(defence, part, mode.at(name)))
    return Attacked(found.each(lambda part, _: part.batch), found.each(lambda part, _: part.clean))


@dispatch
def validate(semi: SemiSupervised, batch):
    for part in (batch.labeled, batch.unlabeled) if isinstance(batch, Mixed) else (batch,):
        validate(semi.system, part)

"""`SemiSupervised`: labelled and unlabelled examples in one training step."""

import jax.numpy as jnp

from fulmen.compose.example_means import total_loss
from fulmen.compose.loss_entries import entries_of, joined
from fulmen.core import Component, Wrapper, briefly, hyper, keeps_rows, sums_losses
from fulmen.core.verbs import as_batch, augment, loss, losses, metrics, predictions, reduce_losses, validate
from fulmen.data.mixed import Mixed
from fulmen.dispatching.registry import dispatch


class SemiSupervised(Wrapper):
    """A system whose loss on `Mixed` batches is loss(labelled) + w · loss(unlabelled); on other batches it is the system.

    Args:
        system: a system with a loss for `Labeled` and `Unlabeled` batches, such as `MeanTeacher` or `VAT`, or a custom one with a
            method `loss(system: Mine, batch: fm.Unlabeled)`.
        weight: w, a hyperparameter.

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
def as_batch(semi: SemiSupervised, raw: Mixed):
    return raw.each(lambda part, _: as_batch(semi.system, part))


@dispatch
def augment(semi: SemiSupervised, batch: Mixed, mode):
    return batch.each(lambda part, name: augment(semi.system, part, mode.at(name)))


@dispatch
@sums_losses
def loss(semi: SemiSupervised, batch: Mixed):
    return reduce_losses(semi, entries_of(semi, batch), batch)


@dispatch
def losses(semi: SemiSupervised, batch: Mixed):
    labeled, unlabeled = (total_loss(semi.system, part) for part in (batch.labeled, batch.unlabeled))
    return {"labeled": labeled, "unlabeled": jnp.asarray(semi.weight).astype(unlabeled.dtype) * unlabeled}


@dispatch
def reduce_losses(semi: SemiSupervised, losses, batch: Mixed):
    return losses["labeled"] + losses["unlabeled"]


@dispatch
def metrics(semi: SemiSupervised, batch: Mixed):
    return metrics(semi.system, batch.labeled)


@dispatch
def predictions(semi: SemiSupervised, batch: Mixed):
    return joined({name: predictions(semi.system, getattr(batch, name)) for name in ("labeled", "unlabeled")})


@dispatch
def validate(semi: SemiSupervised, batch: Mixed):
    for part in (batch.labeled, batch.unlabeled):
        validate(semi.system, part)

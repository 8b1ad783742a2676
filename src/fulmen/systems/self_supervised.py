"""`SelfSupervised`, representations from two views of each example (SimCLR); and `BYOL`."""

import dataclasses
from typing import Any

import jax

from fulmen.augmentations.augmentation import Augmentation
from fulmen.compose.part_defaults import augmented
from fulmen.core import Component, Labeled, PartBatches, Prediction, System, parts_of
from fulmen.core.verbs import augment, embeddings, forward, loss, losses, metrics
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import CosineDistance, NTXent, Objective
from fulmen.systems.ema import EMA


class SelfSupervised(System):
    """A model that learns representations from two views of each example, which are augmented independently.

    The loss is the mean over both directions: the outputs of one view with those of the other view as targets, by `embeddings`.
    With the default objective this is SimCLR (Chen et al. 2020, arXiv:2002.05709). Evaluations draw views too. The outputs are
    those of the model; the projection, which SimCLR discards after training, is the last part of the model.

    Args:
        model: from x to an embedding, `(n, features)`, such as `Chain(encoder, projector)`.
        objective: of two embeddings: `NTXent()`, `InfoNCE()`, or a custom one, with the other view's embedding as `y`.
        augment: an augmentation, by keyword, such as `fm.augmentations.Flip() >> fm.augmentations.ShiftCrop(4)`.

    >>> net = fm.models.Chain(fm.models.MLP(4, 16, 8), fm.models.Dense(8, 4))
    >>> simclr = fm.systems.SelfSupervised(net, fm.objectives.NTXent(temperature=0.2), augment=fm.augmentations.Noise(0.1))
    >>> state = fm.setup(simclr, jnp.ones((6, 4)), optimizer=optax.adam, lr=1e-3)
    >>> state.system.model[0](jnp.ones((1, 4))).shape       # the representation
    (1, 8)
    """

    model: Component
    objective: Objective = NTXent()
    augment: Augmentation = dataclasses.field(kw_only=True)


class BYOL(SelfSupervised):
    """Bootstrap your own latent: a predictor maps the embedding of one view to the averaged model's embedding of the other.

    There are no negatives, and no gradient through the average. With `decay=0` it is SimSiam. Grill et al. 2020,
    arXiv:2006.07733.

    Args:
        model: an `EMA` of a model from x to an embedding.
        objective: of two embeddings.
        predictor: from an embedding to an embedding.
        augment: an augmentation, by keyword.

    >>> net = fm.models.Chain(fm.models.MLP(4, 16, 8), fm.models.Dense(8, 4))
    >>> byol = fm.systems.BYOL(fm.EMA(net, 0.99), predictor=fm.models.MLP(4, 16, 4), augment=fm.augmentations.Noise(0.1))
    >>> state = fm.setup(byol, jnp.ones((6, 4)), optimizer=optax.adam, lr=1e-3)
    """

    model: EMA
    objective: Objective = CosineDistance()
    predictor: Component = dataclasses.field(kw_only=True)


@dispatch
def embeddings(system: SelfSupervised, x):
    z = forward(system.model, x)
    return z, z


@dispatch
def embeddings(byol: BYOL, x):
    ema = byol.model
    return forward(byol.predictor, forward(ema.component, x)), jax.lax.stop_gradient(forward(ema.average, x))


@dispatch
def forward(system: SelfSupervised, *inputs):
    return forward(system.model, *inputs)


@dispatch
def augment(system: SelfSupervised, batch, mode):
    views = {name: augmented(system.augment, batch, mode.at(name)) for name in ("first", "second")}
    return PartBatches(batch, views, weight=batch.weight, index=batch.index)


@dispatch
def losses(system: SelfSupervised, batch, mode):
    if not parts_of(batch):
        batch = augment(system, batch, mode.at("views"))
    parts: Any = batch.parts
    views = [parts[name].x for name in ("first", "second")]
    (first, own), (second, other) = (embeddings(system, x) for x in views)
    there = Prediction(system.model, first, Labeled(views[0], other))
    back = Prediction(system.model, second, Labeled(views[1], own))
    return {name: (loss(term, there) + loss(term, back)) / 2 for name, term in system.objective.by_name().items()}


@dispatch
def metrics(system: SelfSupervised, batch):
    return {}

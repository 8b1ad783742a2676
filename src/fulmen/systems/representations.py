"""Systems that compare embeddings: `SelfSupervised` (SimCLR), `BYOL` and `CLIP`."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.augmentations.augmentation import Augmentation
from fulmen.compose.part_defaults import augmented
from fulmen.core import Component, Labeled, Parameter, PartBatches, Prediction, System, parts_of, remake
from fulmen.core.tree import with_article
from fulmen.core.verbs import augment, embeddings, forward, init, loss, losses, metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import CosineDistance, NTXent, Objective
from fulmen.objectives.number_objectives import InfoNCE, directions
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

    model: EMA  # type: ignore[assignment]  # narrower than the base class's
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


_LOWEST_TEMPERATURE = 0.01


class CLIP(System):
    """Two encoders trained by `InfoNCE` in both directions to match x and y, with a learned temperature.

    Data is pairs `(x, y)`, such as images and texts. `clip(x)` returns the embeddings of x, `clip(x, y)` the logits of all
    pairs, `(n, m)`. Radford et al. 2021, arXiv:2103.00020.

    Args:
        first: from x to embeddings `(n, features)`.
        second: from y to embeddings `(n, features)`.
        log_temperature: the logarithm of the temperature, a `Parameter`, log 0.07 at first. The temperature is at least 0.01.

    >>> clip = fm.systems.CLIP(fm.models.MLP(64, 8), fm.models.MLP(4, 8))
    >>> state = fm.setup(clip, (jnp.ones((6, 64)), jnp.ones((6, 4))), optimizer=optax.adam, lr=1e-3)
    >>> state.system(jnp.ones((3, 64)), jnp.ones((5, 4))).shape, state.system.temperature
    ((3, 5), Array(0.07, dtype=float32))
    """

    first: Component
    second: Component
    log_temperature: Parameter | None = dataclasses.field(default=None, kw_only=True)

    @property
    def temperature(self) -> jax.Array:
        """The temperature, a number."""
        if self.log_temperature is None:
            raise ValueError("CLIP.log_temperature is not initialised; write fm.init(clip, key).")
        return jnp.maximum(jnp.exp(self.log_temperature.value), _LOWEST_TEMPERATURE)


@dispatch
def init(clip: CLIP, key):
    first = Parameter(jnp.asarray(math.log(0.07), jnp.result_type(float)))
    return remake(init.invoke(Component, object)(clip, key), {"log_temperature": clip.log_temperature or first})


@dispatch
def forward(clip: CLIP, x):
    return forward(clip.first, x)


@dispatch
def forward(clip: CLIP, x, y):
    logits = directions(forward(clip.first, x)) @ directions(forward(clip.second, y)).T
    return logits / clip.temperature.astype(logits.dtype)


@dispatch
def losses(clip: CLIP, batch):
    u, v = forward(clip.first, batch.x), forward(clip.second, batch.y)
    temperature: Any = clip.temperature
    objective = InfoNCE(temperature)
    there = loss(objective, Prediction(clip.first, u, Labeled(batch.x, v)))
    back = loss(objective, Prediction(clip.second, v, Labeled(batch.y, u)))
    return {"first": there / 2, "second": back / 2}


@dispatch
def validate(clip: CLIP, batch):
    if not isinstance(batch, Labeled):
        raise TypeError(f"data of a CLIP must be pairs (x, y), got {with_article(type(batch))} batch.")

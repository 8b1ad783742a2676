"""`CLIP`: two encoders whose embeddings of a pair are near each other."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, Labeled, Parameter, Prediction, System, remake
from fulmen.core.verbs import forward, init, loss, losses, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.contrastive import InfoNCE, directions

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
        raise TypeError(f"data of a CLIP must be pairs (x, y), got a {type(batch).__name__} batch.")

"""What an attack is after: away from the true label, or towards another one."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.batch import with_labels
from fulmen.core.component import Component
from fulmen.core.fields import hyper
from fulmen.core.naming import concrete
from fulmen.core.prediction import Prediction
from fulmen.core.tree import remake
from fulmen.core.verbs import aim, loss, predictions, succeeded, toward, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["LikelyTarget", "PredictedLabel", "Target", "Targeting", "TrueLabel"]


class Targeting(Component):
    """What an attack is after.

    **Extending.** Subclass it, and write `aim(targeting: Mine, system, batch)`.
    """

    __example__ = "fm.attacks.Target(3)"
    names_class: ClassVar[bool] = False  # whether it leads to a class that the user gives


class TrueLabel(Targeting):
    """Away from the label that the batch has."""


class PredictedLabel(Targeting):
    """Away from the label that the model gives the clean input, so that the attack does not know the true one."""


class Target(Targeting):
    """Towards a class. It has succeeded where the model gives that class.

    Args:
        label: the class, or `(n,)`, one for each example.
    """

    names_class = True

    label: jax.Array


class LikelyTarget(Targeting):
    """Towards the wrong class that the model finds the `rank`-th likeliest for the clean input.

    It has succeeded where the model gives any wrong class. Croce and Hein 2020, arXiv:2003.01690, go through the nine
    likeliest.

    Args:
        rank: from 1; where there are fewer wrong classes, the least likely one is meant.
    """

    rank: int = hyper(minimum=1, default=1)


@dispatch
def aim(targeting: TrueLabel, system, batch):
    return batch, None


@dispatch
def aim(targeting: PredictedLabel, system, batch):
    predicted = the_prediction(targeting, system, batch).outputs.argmax(-1)
    return with_labels(batch, predicted.astype(jnp.int32)), None


@dispatch
def aim(targeting: Target, system, batch):
    return batch, jnp.broadcast_to(jnp.asarray(targeting.label, jnp.int32), (len(batch),))


@dispatch
def aim(targeting: LikelyTarget, system, batch):
    prediction = the_prediction(targeting, system, batch)
    outputs = prediction.outputs
    wrong = jnp.where(jax.nn.one_hot(labels(prediction), outputs.shape[1], dtype=bool), -jnp.inf, outputs)
    order = jnp.argsort(wrong, axis=1, descending=True)
    rank = jnp.clip(jnp.asarray(targeting.rank, jnp.int32), 1, outputs.shape[1] - 1)
    place = jnp.broadcast_to(rank - 1, (len(batch), 1))
    return batch, jnp.take_along_axis(order, place, axis=1)[:, 0].astype(jnp.int32)


def the_prediction(who: Any, system: Any, batch: Any) -> Prediction:
    """The one prediction of a system, of logits `(n, classes)`; raises where there are several."""
    found = predictions(system, batch)
    if len(found) != 1:
        names = ", ".join(map(repr, found)) or "none"
        raise ValueError(
            f"{type(who).__name__} looks at one model's logits, and {type(system).__name__} has {len(found)} predictions "
            f"({names}). Attack one of its parts, or attack its loss."
        )
    (prediction,) = found.values()
    if getattr(prediction.outputs, "ndim", None) != 2:
        shape = getattr(prediction.outputs, "shape", type(prediction.outputs).__name__)
        raise ValueError(f"{type(who).__name__} looks at logits (n, classes), and the model gave {shape}.")
    return prediction


def labels(prediction: Prediction) -> jax.Array:
    """The class of each example, `(n,)`; of probabilities the likeliest."""
    batch: Any = prediction.batch
    y = jnp.asarray(batch.y)
    return y.astype(jnp.int32) if jnp.issubdtype(y.dtype, jnp.integer) else y.argmax(-1).astype(jnp.int32)


# What is made large


@dispatch
def toward(objective: object, prediction, target):
    return -loss(objective, remake(prediction, {"batch": with_labels(prediction.batch, target)}))


@dispatch
def succeeded(targeting: Targeting, prediction, target):
    return ~_is_highest(prediction.outputs, labels(prediction))


@dispatch
def succeeded(targeting: Target, prediction, target):
    return _is_highest(prediction.outputs, target)


def _is_highest(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """Whether a class is the only highest one, as `Accuracy` counts: ties and NaN are wrong."""
    own = jnp.take_along_axis(outputs, label[:, None], axis=1)
    return (outputs >= own).sum(1) == 1


@dispatch
def validate(targeting: Targeting, system, batch):
    return None


@dispatch
def validate(targeting: Target, system, batch):
    validate(system, with_labels(batch, aim(targeting, system, batch)[1]))


@dispatch
def validate(targeting: Target):
    label = concrete(targeting.label)
    if label is not None and not np.issubdtype(label.dtype, np.integer):
        raise TypeError(f"Target, label: a class, or an integer for each example, was expected, and {label.dtype} came.")

"""How far a class is ahead of the others, as attacks make it large."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core.prediction import at_least_float32, check_classes, class_targets
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import Objective

__all__ = ["DLR", "Margin"]


class Margin(Objective):
    """How far the best other class is ahead of the true one: max_{i≠y} z_i − z_y, positive where the model is wrong.

    Outputs are scores z, `(n, classes)`; targets labels `(n,)`, or probabilities, of which the likeliest class counts.

    >>> print(fm.loss(fm.objectives.Margin(), fm.Prediction(None, jnp.array([[1.0, 3.0, 2.0]]), fm.Labeled(None, jnp.array([1])))))
    [-1.]
    """

    per_example: ClassVar[bool] = True


class DLR(Objective):
    """The difference of logits ratio, which neither shifting nor scaling the logits changes.

    −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3 + 10⁻¹²), with π the classes from the highest logit down; at least 3 classes. An attack
    towards a class t makes −(z_y − z_t) / (z_π1 − ½ (z_π3 + z_π4) + 10⁻¹²) large, with at least 4. Croce and Hein 2020,
    arXiv:2003.01690.

    Outputs are logits z, `(n, classes)`; targets labels `(n,)`, or probabilities, of which the likeliest class counts.

    >>> print(fm.loss(fm.objectives.DLR(), fm.Prediction(None, jnp.array([[1.0, 5.0, 2.0]]), fm.Labeled(None, jnp.array([1])))))
    [-0.75]
    """

    per_example: ClassVar[bool] = True


@dispatch
def loss(objective: Margin, prediction):
    logits, own = _logits_and_own(objective, prediction)
    return _margin(logits, own)


@dispatch
def loss(objective: DLR, prediction):
    logits, own = _logits_and_own(objective, prediction)
    _require_classes(logits, 3, "DLR")
    first, _, third = highest(logits, 3)
    return _margin(logits, own) / (first - third + 1e-12)


def targeted_ratio(objective: DLR, prediction: Any, target: jax.Array) -> jax.Array:
    """What an attack towards a class makes large, `(n,)`."""
    logits, own = _logits_and_own(objective, prediction)
    _require_classes(logits, 4, "DLR towards a class")
    there = jax.nn.one_hot(target, logits.shape[1], dtype=bool)
    first, _, third, fourth = highest(logits, 4)
    return (_of(logits, there) - _of(logits, own)) / (first - (third + fourth) / 2 + 1e-12)


def highest(logits: jax.Array, n: int) -> list[jax.Array]:
    """The `n` highest logits of each example, from the highest down, each `(examples,)`.

    One after the other, as sorting and its gradient cost more than a few passes over them.
    """
    found = []
    for _ in range(n):
        place = jax.nn.one_hot(logits.argmax(1), logits.shape[1], dtype=bool)
        found.append(_of(logits, place))
        logits = jnp.where(place, -jnp.inf, logits)
    return found


def _logits_and_own(objective: Margin | DLR, prediction: Any) -> tuple[jax.Array, jax.Array]:
    """The logits, and where the true class's are."""
    y, labels = class_targets(prediction, objective)
    logits = at_least_float32(prediction.outputs)
    _require_classes(logits, 2, type(objective).__name__)
    label = jnp.asarray(y) if labels else jnp.asarray(y).argmax(1)
    return logits, jax.nn.one_hot(label, logits.shape[1], dtype=bool)


def _of(logits: jax.Array, place: jax.Array) -> jax.Array:
    return jnp.where(place, logits, 0).sum(1)


def _margin(logits: jax.Array, own: jax.Array) -> jax.Array:
    return highest(jnp.where(own, -jnp.inf, logits), 1)[0] - _of(logits, own)


def _require_classes(logits: jax.Array, n: int, who: str) -> None:
    classes = logits.shape[1]
    if classes < n:
        other = "fm.objectives.DLR() away from the true class, or " if n > 3 else ""
        raise ValueError(
            f"{who}: at least {n} classes were expected, and the model gave outputs of {classes}. For fewer there is "
            f"{other}fm.CrossEntropy(); fm.autoattack(region, classes={classes}) takes what goes."
        )


@dispatch
def validate(objective: Margin | DLR, prediction):
    check_classes(prediction, objective)
    _require_classes(prediction.outputs, 3 if isinstance(objective, DLR) else 2, type(objective).__name__)

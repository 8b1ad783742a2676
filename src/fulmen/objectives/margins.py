"""Margins between the logits of classes, which attacks maximize."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import at_least_float32, check_classes, class_targets
from fulmen.core.verbs import loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.classification import ClassObjective


class Margin(ClassObjective):
    """The highest other logit minus the true one: max_{i≠y} z_i − z_y, positive where the model is wrong.

    Outputs are scores z, `(n, classes)`; targets are labels `(n,)`, or probabilities, whose largest marks the true class.

    >>> print(fm.loss(fm.objectives.Margin(), fm.Prediction(None, jnp.array([[1.0, 3.0, 2.0]]), fm.Labeled(None, jnp.array([1])))))
    [-1.]
    """

    least_classes: ClassVar[int] = 2


class ProbabilityMargin(Margin):
    """The margin of the softmax probabilities: max_{i≠y} p_i − p_y (the loss of the PMA attack, arXiv:2411.15210).

    Outputs and targets are as in `Margin`.

    >>> logits, labels = jnp.log(jnp.array([[0.5, 0.3, 0.2]])), fm.Labeled(None, jnp.array([0]))
    >>> print(f"{fm.loss(fm.objectives.ProbabilityMargin(), fm.Prediction(None, logits, labels))[0]:.2f}")
    -0.20
    """


class DLR(Margin):
    """The difference of logits ratio, which does not depend on shift or scale of the logits.

    −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3 + 10⁻¹²), with π the classes by decreasing logit; at least 3 classes. An attack
    towards a class t maximizes −(z_y − z_t) / (z_π1 − ½ (z_π3 + z_π4) + 10⁻¹²), with at least 4. Croce and Hein 2020,
    arXiv:2003.01690. Outputs and targets are as in `Margin`.

    >>> print(fm.loss(fm.objectives.DLR(), fm.Prediction(None, jnp.array([[1.0, 5.0, 2.0]]), fm.Labeled(None, jnp.array([1])))))
    [-0.75]
    """

    least_classes: ClassVar[int] = 3


@dispatch
def loss(objective: Margin, prediction):
    return _margin(*_logits_and_mask(objective, prediction))


@dispatch
def loss(objective: ProbabilityMargin, prediction):
    logits, true = _logits_and_mask(objective, prediction)
    return _margin(jax.nn.softmax(logits), true)


@dispatch
def loss(objective: DLR, prediction):
    logits, true = _logits_and_mask(objective, prediction)
    first, _, third = highest(logits, 3)
    return _margin(logits, true) / (first - third + 1e-12)


def targeted_ratio(objective: DLR, prediction: Any, target: jax.Array) -> jax.Array:
    """What an attack towards the classes `target`, `(n,)`, maximizes: `(n,)`."""
    logits, true = _logits_and_mask(objective, prediction)
    _require_classes(logits, 4, "DLR towards a class")
    towards = jax.nn.one_hot(target, logits.shape[1], dtype=bool)
    first, _, third, fourth = highest(logits, 4)
    return (_selected(logits, towards) - _selected(logits, true)) / (first - (third + fourth) / 2 + 1e-12)


def highest(logits: jax.Array, n: int) -> list[jax.Array]:
    """The `n` highest logits of each example in decreasing order, each `(examples,)`.

    In `n` passes, since sorting and its gradient cost more.
    """
    found = []
    for _ in range(n):
        mask = jax.nn.one_hot(logits.argmax(1), logits.shape[1], dtype=bool)
        found.append(_selected(logits, mask))
        logits = jnp.where(mask, -jnp.inf, logits)
    return found


def _logits_and_mask(objective: Margin, prediction: Any) -> tuple[jax.Array, jax.Array]:
    """The logits, and a mask of the true class."""
    y, labels = class_targets(prediction, objective)
    logits = at_least_float32(prediction.outputs)
    _require_classes(logits, objective.least_classes, type(objective).__name__)
    label = jnp.asarray(y) if labels else jnp.asarray(y).argmax(1)
    return logits, jax.nn.one_hot(label, logits.shape[1], dtype=bool)


def _selected(logits: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, logits, 0).sum(1)


def _margin(logits: jax.Array, true: jax.Array) -> jax.Array:
    return highest(jnp.where(true, -jnp.inf, logits), 1)[0] - _selected(logits, true)


def _require_classes(logits: jax.Array, n: int, who: str) -> None:
    classes = logits.shape[1]
    if classes < n:
        other = "fm.objectives.DLR() away from the true class, or " if n > 3 else ""
        raise ValueError(
            f"{who}: the model must have at least {n} outputs, one per class, got {classes}. For fewer use {other}"
            f"fm.CrossEntropy(); fm.autoattack(region, classes={classes}) chooses the attacks that are possible."
        )


@dispatch
def validate(objective: Margin, prediction):
    check_classes(prediction, objective)
    _require_classes(prediction.outputs, objective.least_classes, type(objective).__name__)

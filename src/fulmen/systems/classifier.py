"""`Supervised`, a model with an objective, metrics and augmentations; and `Classifier`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fulmen.component import Component, System
from fulmen.dispatch import dispatch
from fulmen.metrics import Accuracy, Metric
from fulmen.naming import numbered
from fulmen.objectives import CrossEntropy, Objective
from fulmen.prediction import Prediction
from fulmen.verbs import as_batch, augment, forward, loss, losses, metrics, validate

__all__ = ["Classifier", "Supervised"]


class Supervised(System):
    """A model that learns from examples: what `Classifier` and `Regressor` share.

    `losses` has one entry per term of the objective, and `metrics` one figure per metric. Its outputs are its model's.

    Args:
        model: what maps `batch.x` to outputs.
        objective: what is to be made small.
        metrics: a metric, or a tuple of them.
        augment: an augmentation, or a tuple of them, which are applied in turn in the training step.
    """

    model: Component
    objective: Objective
    metrics: Metric | tuple[Metric, ...] = dataclasses.field(default=(), kw_only=True)
    augment: Component | tuple[Component, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def per_example(self) -> bool:
        """Whether evaluation may pad its last batch: not where a term couples examples."""
        return all(term.per_example for term in _components(self.objective, Objective))


class Classifier(Supervised):
    """A model whose outputs are logits, `(n, classes)`.

    Args:
        model: what maps `batch.x` to logits.
        objective: what is to be made small.
        metrics: a metric, or a tuple of them.
        augment: an augmentation, or a tuple of them, which are applied in turn in the training step.

    >>> fm.Classifier(fm.models.Flatten(), fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.L2()).objective
    CrossEntropy(smoothing=0.1) + 0.0001 * L2()
    """

    objective: Objective = CrossEntropy()
    metrics: Metric | tuple[Metric, ...] = dataclasses.field(default=(Accuracy(),), kw_only=True)


def _components(value: Any, kind: type) -> list[Any]:
    raise NotImplementedError


@dispatch
def forward(system: Supervised, *inputs):
    return forward(system.model, *inputs)


@dispatch
def losses(system: Supervised, batch):
    prediction = _predicted(system, as_batch(system, batch))
    return {name: loss(term, prediction) for name, term in system.objective.by_name().items()}


@dispatch
def metrics(system: Supervised, batch):
    prediction = _predicted(system, as_batch(system, batch))
    return {name: metrics(metric, prediction) for name, metric in numbered(_several(system.metrics)).items()}


@dispatch
def augment(system: Supervised, batch, mode):
    for i, each in enumerate(_several(system.augment)):
        batch = augment(each, batch, mode.at("augment").at(str(i)))
    return batch


@dispatch
def validate(system: Supervised):
    name = type(system).__name__
    _require(system.objective, Objective, f"{name}, objective: an objective such as fm.CrossEntropy()")
    for metric in _several(system.metrics):
        _require(metric, Metric, f"{name}, metrics: metrics such as fm.Accuracy()")
    for each in _several(system.augment):
        _require(each, Component, f"{name}, augment: augmentations such as fm.Noise(0.1)")


@dispatch
def validate(system: Supervised, batch):
    batch = as_batch(system, batch)
    one = _predicted(system, batch, shape_only=True)
    validate(system.objective, one)
    for metric in _several(system.metrics):
        validate(metric, one)


def _predicted(system: Any, batch: Any) -> Prediction:
    return Prediction(system.model, forward(system, batch.x), batch)

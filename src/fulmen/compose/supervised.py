"""`Supervised`, a model with an objective, metrics and augmentations; and `Classifier`."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from fulmen.compose.losses import augmented
from fulmen.core.component import Component, Model, System
from fulmen.core.leaves import components
from fulmen.core.marks import sums_losses, uses_outputs
from fulmen.core.naming import numbered
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.prediction import Prediction, inputs_for
from fulmen.core.tree import remake
from fulmen.core.verbs import augment, forward, loss, losses, metrics, model_inputs, predictions, validate
from fulmen.dispatching.registry import dispatch, verb
from fulmen.metric_types import Accuracy, Metric
from fulmen.objectives import CrossEntropy, Objective

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
    augment: Component | tuple[Component, ...] = dataclasses.field(
        default=(), kw_only=True, metadata={"example": "fm.augmentations.Noise(0.1)"}
    )

    @property
    def per_example(self) -> bool:
        """Whether all its terms and metrics are per example, so that evaluation may pad its last batch."""
        terms = [part for _, part in components(self.objective) if isinstance(part, Objective)]
        return all(each.per_example for each in (*terms, *several(self.metrics)))


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


def several(value: Any) -> tuple[Any, ...]:
    """What one or several may be given for, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@dispatch
def forward(system: Supervised, *inputs):
    return forward(system.model, *inputs)


@dispatch
def model_inputs(system: Supervised, batch):
    return model_inputs(system.model, batch)


@dispatch
@uses_outputs
def losses(system: Supervised, batch):
    prediction = _predicted(system, batch)
    return {name: loss(term, prediction) for name, term in system.objective.by_name().items()}


@dispatch
def metrics(system: Supervised, batch):
    prediction = _predicted(system, batch)
    return {name: metrics(metric, prediction) for name, metric in numbered(several(system.metrics)).items()}


@dispatch
def predictions(system: Supervised, batch):
    return {"": _predicted(system, batch)}


@dispatch
def augment(system: Supervised, batch, mode):
    for i, each in enumerate(several(system.augment)):
        batch = augmented(each, batch, mode.at("augment").at(str(i)))
    return batch


@dispatch
def validate(system: Supervised, batch):
    validate(system.model, batch)
    prediction = Prediction(system.model, output_shapes(evaluated, system, inputs_for(system, batch)), batch)
    for each in (system.objective, *several(system.metrics)):
        validate(each, prediction)


@verb
def check_inputs(component, batch):
    """Raise on inputs that the component's model cannot take, whatever the targets.

    It is called on the host: in a compiled program, an invalid token gives NaN without an error.
    """


@dispatch
def check_inputs(component: object, batch):
    return None


@dispatch
def check_inputs(model: Model, batch):
    validate(model, batch)


@dispatch
def check_inputs(system: Supervised, batch):
    check_inputs(system.model, batch)


def with_outputs(system: Any, batch: Any) -> Any:
    """The batch with its model's outputs at hand, so that loss and metrics do not each compute them.

    XLA merges what is computed twice, but not two loops, such as those of a scanned stack. The outputs are no field of the
    batch: they are lost where it is taken apart, and not used for another model or other inputs.
    """
    if not isinstance(system, Supervised):
        return batch
    if not (sums_losses.on(loss.method(system, batch)) and uses_outputs.on(losses.method(system, batch))):
        return batch  # the loss may use the model in another way
    given = inputs_for(system, batch)
    return remake(batch, {"_outputs": (system.model, given, forward(system, *given))})


def outputs(system: Any, batch: Any) -> Any:
    """What a system's model gives for a batch."""
    model, before, found = batch.__dict__.get("_outputs", (None, (), None))
    given = inputs_for(system, batch)
    same = model is system.model and len(before) == len(given) and all(map(operator.is_, before, given))
    return found if same else forward(system, *given)


def _predicted(system: Any, batch: Any) -> Prediction:
    return Prediction(system.model, outputs(system, batch), batch)

"""`Supervised`, a model with an objective, metrics and augmentations; `Classifier` and `Regressor`."""

import dataclasses
import operator
from typing import Any

import numpy as np

from fulmen.compose.loss_entries import innermost, reduces_losses, with_entries
from fulmen.compose.part_defaults import augmented
from fulmen.core import Component, Model, System, Tree, components, remake
from fulmen.core.marks import uses_outputs
from fulmen.core.naming import numbered
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.prediction import Prediction, inputs_for
from fulmen.core.verbs import augment, forward, loss, losses, metrics, model_inputs, predictions, validate
from fulmen.dispatching import hooks
from fulmen.dispatching.registry import dispatch, verb
from fulmen.dispatching.warning import warn
from fulmen.metric_types import Accuracy, MeanAbsoluteError, Metric
from fulmen.objectives import MSE, CrossEntropy, Objective

__all__ = ["Classifier", "Supervised"]

_EXAMPLES = 100  # that are looked at
_DARK = 100  # images of 0 to 255 have pixels above this, and few other data of whole numbers have


class Supervised(System):
    """A model that learns from examples: the base of `Classifier` and `Regressor`.

    `losses` has one entry per term of the objective, and `metrics` one per metric. The outputs are those of the model.

    Args:
        model: maps `batch.x` to outputs.
        objective: the objective to minimise.
        metrics: a metric, or a tuple of metrics.
        augment: an augmentation, or a tuple of augmentations, applied in order in the training step.
    """

    model: Component
    objective: Objective
    metrics: Metric | tuple[Metric, ...] = dataclasses.field(default=(), kw_only=True)
    augment: Component | tuple[Component, ...] = dataclasses.field(
        default=(), kw_only=True, metadata={"example": "fm.augmentations.Noise(0.1)"}
    )

    @property
    def per_example(self) -> bool:
        """Whether all terms and metrics are per example, so that an evaluation may pad its last batch."""
        terms = [part for _, part in components(self.objective) if isinstance(part, Objective)]
        return all(each.per_example for each in (*terms, *metrics_of(self)))


class Classifier(Supervised):
    """A model whose outputs are logits, `(n, classes)`.

    With `fm.BinaryCrossEntropy()` they are logits of one binary target, `(n,)`, or of several labels per example, `(n, k)`.

    Args:
        model: maps `batch.x` to logits.
        objective, augment: as in `Supervised`.
        metrics: as in `Supervised`; None is the accuracy, of classes or of binary targets, as the objective says.

    >>> fm.Classifier(fm.models.Flatten(), fm.CrossEntropy(smoothing=0.1) + 1e-4 * fm.L2()).objective
    CrossEntropy(smoothing=0.1) + 0.0001 * L2()
    """

    objective: Objective = CrossEntropy()
    metrics: Metric | tuple[Metric, ...] | None = dataclasses.field(default=None, kw_only=True)  # type: ignore[assignment]


def metrics_of(system: Supervised) -> tuple[Metric, ...]:
    """The metrics of a system; None is the accuracy, for the outputs that the objective is for."""
    if system.metrics is not None:
        return several(system.metrics)
    binary = any(getattr(part, "binary", False) for _, part in components(system.objective))
    return (Accuracy(threshold=0.5 if binary else None),)


def several(value: Any) -> tuple[Any, ...]:
    """One value or several, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@dispatch
def forward(system: Supervised, *inputs):
    return forward(system.model, *inputs)


@dispatch
def model_inputs(system: Supervised, batch):
    return model_inputs(system.model, batch)


@verb(delegates=False)
def prediction(system, batch):
    """The `Prediction` that the objective and the metrics of a `Supervised` get."""


@dispatch
def prediction(system: Supervised, batch):
    return Prediction(system.model, outputs(system, batch), batch)


@dispatch
@uses_outputs
def losses(system: Supervised, batch):
    found = prediction(system, batch)
    return {name: loss(term, found) for name, term in system.objective.by_name().items()}


@dispatch
def metrics(system: Supervised, batch):
    found = prediction(system, batch)
    return {name: metrics(metric, found) for name, metric in numbered(metrics_of(system)).items()}


@dispatch
def predictions(system: Supervised, batch):
    return {"": prediction(system, batch)}


@dispatch
def augment(system: Supervised, batch, mode):
    for i, each in enumerate(several(system.augment)):
        batch = augmented(each, batch, mode.at("augment").at(str(i)))
    return batch


@dispatch
def validate(system: Supervised, batch):
    validate(system.model, batch)
    _warn_of_pixels(system.model, getattr(batch, "x", None))
    found = Prediction(system.model, output_shapes(evaluated, system, inputs_for(system, batch)), batch)
    for each in (system.objective, *metrics_of(system)):
        validate(each, found)


def _warn_of_pixels(model: Any, x: Any) -> None:
    """Warn of inputs that look like images of 0 to 255, unless a part of the model normalizes."""
    # Integers of two axes are tokens.
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "uif" or x.ndim < 2 or (x.ndim == 2 and x.dtype.kind != "f"):
        return
    some = np.asarray(x[:_EXAMPLES])
    if not (some.size and _DARK < some.max() <= 255 and some.min() == 0 and (some == np.round(some)).all()):
        return
    if not any(getattr(part, "ignores_scale", False) for _, part in components(model)):
        warn(
            f"x looks like images of 0 to {some.max():g}, on which models train slowly or not at all. Write x.astype(np.float32) / 255, "
            f"or let the model do it, fm.models.Normalized(model, mean=127.5, std=127.5)."
        )


@verb
def check_inputs(component, batch):
    """Raise on inputs that the component's model cannot take. Targets are not checked.

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
    """The batch with the model's outputs and the `losses` attached, so that loss, metrics and logs do not all compute them.

    XLA merges equal computations, but not two loops, such as those of a scanned stack. The outputs are not a field of the batch:
    a batch that is rebuilt does not have them, and they are not used for another model or other inputs.
    """
    if not (isinstance(batch, Tree) and reduces_losses(system, batch)):
        return batch
    part = innermost(system, batch)
    if part is not innermost(system, batch):  # `Frozen` makes another copy at each access, so nothing would be found again
        return batch
    try:
        # A method of `losses` without the mark may use the model in another way.
        if isinstance(part, Supervised) and uses_outputs.on(losses.method(part, batch)):
            given = inputs_for(part, batch)
            batch = remake(batch, {"_outputs": (part.model, given, forward(part, *given))})
        return with_entries(part, batch)
    except (AttributeError, TypeError, ValueError) as error:
        hooks.annotate(error, "losses", (system, batch), {})  # the path from the wrapper
        raise


def outputs(system: Any, batch: Any) -> Any:
    """The outputs of a system's model for a batch."""
    model, before, found = batch.__dict__.get("_outputs", (None, (), None))
    given = inputs_for(system, batch)
    same = model is system.model and len(before) == len(given) and all(map(operator.is_, before, given))
    return found if same else forward(system, *given)


class Regressor(Supervised):
    """A model whose outputs are numbers, of the shape of the targets.

    Args:
        model: maps `batch.x` to numbers.
        objective, metrics, augment: as in `Supervised`.

    >>> fm.Regressor(fm.models.Flatten())
    Regressor(model=Flatten(), objective=MSE(), metrics=(MeanAbsoluteError(),), augment=())
    """

    objective: Objective = MSE()
    metrics: Metric | tuple[Metric, ...] = dataclasses.field(default=(MeanAbsoluteError(),), kw_only=True)

"""What a system does by default with its parts: the defaults of `metrics`, `predictions`, `augment` and `validate`."""

from __future__ import annotations

from typing import Any

import jax

from fulmen.compose.loss_entries import has_losses_of_parts, joined, part_batch
from fulmen.compose.microbatches import mapped, microbatches_of
from fulmen.core.batch import Batch, PartBatches, parts_of
from fulmen.core.component import Model, System, Wrapper, named_parts
from fulmen.core.prediction import Prediction, outputs_for
from fulmen.core.tree import remake, short
from fulmen.core.verbs import as_batch, augment, metrics, predictions, validate
from fulmen.dispatching.registry import dispatch


def _parts_with_batches(system: Any, batch: Any) -> dict[str, tuple[Any, Any]]:
    return {name: (part, part_batch(part, name, batch)) for name, part in named_parts(system, Model, System).items()}


@dispatch
def metrics(component: object, batch):
    return {}


@dispatch
def metrics(system: System, batch):
    return joined({name: metrics(part, own) for name, (part, own) in _parts_with_batches(system, batch).items()})


@dispatch
def predictions(model: Model, batch):
    return {"": Prediction(model, outputs_for(model, batch), batch)}


@dispatch
def predictions(system: System, batch):
    return joined({name: predictions(part, own) for name, (part, own) in _parts_with_batches(system, batch).items()})


@dispatch
def augment(component: object, batch, mode):
    return batch


@dispatch
def augment(system: System, batch, mode):
    if not has_losses_of_parts(system, batch):
        return batch  # a custom `losses` decides which batch each part gets
    before = _parts_with_batches(system, batch)
    after = {name: augmented(part, own, mode.at(name)) for name, (part, own) in before.items()}
    if parts_of(batch):
        return remake(batch, {"parts": after})
    changed = any(after[name] is not own for name, (_, own) in before.items())
    return PartBatches(batch, after, weight=batch.weight, index=batch.index) if changed else batch


def augmented(component: Any, batch: Any, mode: Any) -> Any:
    """`augment` of a component, in microbatches if the mode has them; raises a TypeError unless it returns a batch."""
    if isinstance(batch, Batch) and microbatches_of(batch, mode) > 1:
        return _augmented_in_parts(component, batch, mode)
    found = augment(component, batch, mode)
    if isinstance(batch, Batch) and not isinstance(found, Batch):
        raise TypeError(
            f"`augment` of {type(component).__name__} must return the batch, such as `return fm.replace(batch, x=…)`, got "
            f"{short(found)}."
        )
    return found


def _augmented_in_parts(component: Any, batch: Any, mode: Any) -> Any:
    unchanged: list[bool] = []

    def run(part: Any, mode: Any) -> Any:
        found = augmented(component, part, mode)
        unchanged.append(found is part)
        return found

    jax.eval_shape(lambda batch: mapped(run, batch, mode), batch)
    return batch if all(unchanged) else mapped(run, batch, mode)


@dispatch
def validate(wrapper: Wrapper, batch):
    for part in named_parts(wrapper, Model, System).values():
        validate(part, as_batch(part, batch))


@dispatch
def validate(system: System, batch):
    if has_losses_of_parts(system, batch):  # else a custom `losses` decides which batch each part gets
        for part, own in _parts_with_batches(system, batch).values():
            validate(part, own)

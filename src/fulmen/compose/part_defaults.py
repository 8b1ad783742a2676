"""What components do by default: `as_batch` by the type of raw data; `metrics`, `predictions`, `augment` and `validate` by the parts."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.loss_entries import has_losses_of_parts, joined, part_batch
from fulmen.compose.microbatches import mapped, microbatches_of
from fulmen.core import Model, Prediction, System, Wrapper, keeps_rows, named_parts, outputs_for, remake, short
from fulmen.core.batch import Batch, Labeled, PartBatches, Unlabeled, parts_of
from fulmen.core.batch_checks import as_arrays, check_array, named_arrays
from fulmen.core.prediction import inputs_for
from fulmen.core.verbs import as_batch, augment, forward, metrics, model_inputs, predictions, validate
from fulmen.dispatching.registry import dispatch, verb

__all__: list[str] = []  # the verb is private


@dispatch
@keeps_rows
def as_batch(component: object, raw):
    return to_batch(raw, component)


@verb(delegates=False)
def to_batch(raw, component):
    """The batch that is made of raw data for a component without an `as_batch` method for it."""


@dispatch
def to_batch(raw: object, component):
    return Unlabeled(_arrays(raw))


@dispatch
def to_batch(raw: int | float, component):
    return Unlabeled(raw)  # type: ignore[arg-type] - a placeholder for a batch that no method reads


@dispatch
def to_batch(raw: Batch, component):
    return raw


@dispatch
def to_batch(raw: tuple | list, component):
    if len(raw) not in (2, 3):
        raise ValueError(
            f"a batch must be an array, a pair (x, y) or a triple (x, y, weight), got {len(raw)} arrays. For other data, overload "
            f"`as_batch(component: {type(component).__name__}, raw: tuple)`."
        )
    raw = _arrays(raw)
    if len(raw) == 2:
        return Labeled(*raw)
    x, y, weight = raw
    if jnp.issubdtype(weight.dtype, jnp.integer):
        raise TypeError(
            f"weight, the third array, must be floating-point, got {weight.dtype}. Integer weights: weight.astype(np.float32), or by "
            "name dict(x=…, y=…, weight=…). Two inputs and labels need a batch type: class Pair(fm.Batch) with a field for each."
        )
    return Labeled(x, y, weight=weight)


@dispatch
def to_batch(raw: dict, component):
    inside = named_parts(component, Model, System) if isinstance(component, System) else {}
    if raw and set(raw) <= set(inside):
        return PartBatches(None, {name: as_batch(inside[name], own) for name, own in raw.items()})
    kind = Labeled if "y" in raw else Unlabeled
    allowed = {"x", "y", "weight", "index"}
    if "x" not in raw or not set(raw) <= allowed:
        parts = f", or an entry for each part of {type(component).__name__}: {', '.join(inside)}" if inside else ""
        raise ValueError(
            f"a dict of data must have x, and may have y, weight and index{parts}; got {', '.join(map(str, raw))}. For "
            f"other data, overload `as_batch(component: {type(component).__name__}, raw: dict)`, or give a custom `fm.Batch`."
        )
    return kind(**_arrays(raw))


def _arrays(raw: Any) -> Any:
    """Raw data with NumPy arrays for those of other libraries, which are checked."""
    raw = as_arrays(raw)
    for name, value in named_arrays(raw):
        check_array(name, value)
    return raw


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
    inputs = _own_inputs(system, batch)
    if inputs is not None:
        return {"": Prediction(system, forward(system, *inputs), batch)}
    parts = _parts_with_batches(system, batch)
    if len(parts) > 1 and not has_losses_of_parts(system, batch):  # a custom `losses` decides what each model gets
        parts = {name: (part, own) for name, (part, own) in parts.items() if isinstance(part, System)}
    return joined({name: predictions(part, own) for name, (part, own) in parts.items()})


def _own_inputs(system: Any, batch: Any) -> tuple[Any, ...] | None:
    """The inputs in a batch for a system's own `forward`; None if it has none for them."""
    x = None if parts_of(batch) else getattr(batch, "x", None)
    if model_inputs.method(system, batch).hints[0] is not object:
        inputs = inputs_for(system, batch)
    elif x is not None:
        inputs = (x,)
    else:
        return None
    return inputs if forward.has(system, *inputs) else None


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

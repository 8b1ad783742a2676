"""What a system's loss is made of: the defaults of `losses`, `reduce_losses`, `metrics`, `augment`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.batch import Batch, PartBatches, inner, parts_of
from fulmen.core.border import check_weight
from fulmen.core.component import Model, System, Wrapper, named_parts, part_name
from fulmen.core.marks import sums_losses
from fulmen.core.mergeable import Mean, Mergeable
from fulmen.core.prediction import Prediction, outputs_for
from fulmen.core.tree import remake, short
from fulmen.core.verbs import as_batch, augment, loss, losses, metrics, predictions, reduce_losses, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["as_figure", "augmented", "entry", "example_mean", "named", "per_example", "reduced", "total_loss"]


def example_mean(value: Any, batch: Any, what: str = "loss") -> jax.Array:
    """One number from one or one per example: the weighted mean over examples.

    Args:
        value: `()` or `(n,)`.
        batch: a batch of `n` examples, whose `weight` is used.
        what: what the value is, for the error.

    Raises:
        TypeError: if the value is None, a dict or a tuple.
        ValueError: if the value has another shape.
    """
    if value is None:
        raise TypeError(f"{what} is None: a number or one per example was expected. Does its method end with `return …`?")
    if isinstance(value, Mapping | tuple):
        raise TypeError(
            f"{what} is a {type(value).__name__}: a number or one per example was expected. Several named losses are what "
            "`losses` returns, as a dict; what is only to be seen is for `metrics`."
        )
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    n = len(batch)
    if value.shape != (n,):
        raise ValueError(
            f"{what} has shape {value.shape}; a number or one per example, ({n},), was expected. "
            "Take the mean or the sum over the other axes."
        )
    weight = getattr(batch, "weight", None)
    if weight is None:
        return value.mean()
    check_weight(weight)
    weight = weight.astype(value.dtype)
    return jnp.where(weight == 0, 0, value * weight).sum() / weight.sum()


def total_loss(component: Any, batch: Any) -> jax.Array:
    """The loss of the root of a tree, as one number."""
    return example_mean(loss(component, batch), batch, f"the loss of {type(component).__name__}")


def per_example(component: Any) -> bool:
    """Whether losses and metrics say of themselves that they are per example, so that padding does no harm.

    What a class says holds for its own methods; a subclass with a method of its own has to say it again.
    """
    while isinstance(component, Wrapper) and not hasattr(type(component), "per_example"):
        component = getattr(component, part_name(type(component)))
    if not getattr(component, "per_example", False):
        return False
    kind = type(component)
    says = next(k for k in kind.__mro__ if "per_example" in k.__dict__)
    firsts = [k for v in (as_batch, loss, losses, metrics) for m in v.methods if m.hints for k in m.members[0]]
    return not any(issubclass(kind, k) and issubclass(k, says) and k is not says for k in firsts)


def part_batch(part: Any, name: str, batch: Any) -> Any:
    """The batch of a part, made of its system's: its own or augmented already, or selected by its own `as_batch`."""
    given = parts_of(batch)
    if not given:
        return as_batch(part, batch)
    if name not in given:
        raise ValueError(f"the data has batches for {', '.join(given)}, and none for {name!r}: give it one.")
    return given[name]


@sums_losses
def _sum_of_losses(system: System, batch):
    return reduce_losses(system, named(system, losses(system, batch)), batch)


loss.dispatch(_sum_of_losses)


def _losses_of_parts(system: System, batch):
    found = named_parts(system, Model, System)
    if not found:
        raise TypeError(
            f"{type(system).__name__} has no part with a loss. Write `losses(system: {type(system).__name__}, batch)`, or give "
            "it models or systems as fields."
        )
    return {name: entry(part, part_batch(part, name, batch)) for name, part in found.items()}


losses.dispatch(_losses_of_parts)


def entry(part: Any, batch: Any) -> Any:
    """A part's entry in the losses of its system."""
    return (
        named(part, losses(part, batch)) if isinstance(part, System) and sums_its_losses(part, batch) else loss(part, batch)
    )


def sums_its_losses(system: Any, batch: Any) -> bool:
    """Whether a system's loss is what its `losses` add up to, and no method of its own."""
    return loss.method(system, batch).function is _sum_of_losses


@dispatch
def reduce_losses(system: System, losses, batch):
    total: Any = None
    for name, entry, part, own in _with_batches(system, losses, batch):
        value = reduced(part, entry, own, f"the loss {name!r} of {type(system).__name__}")
        total = value if total is None else _add(total, value)
    if total is None:
        raise ValueError(f"`losses` of {type(system).__name__} gave no entry; at least one was expected.")
    return total


def reduced(part: Any, entry: Any, batch: Any, what: str) -> jax.Array:
    """One number from a part's entry: by its own `reduce_losses`, if it is a system."""
    if isinstance(part, System) and isinstance(entry, Mapping):
        return reduce_losses(part, entry, batch)
    return _reduce(entry, batch, what)


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    """A sum in the wider type: parts may compute in different precisions."""
    with jax.numpy_dtype_promotion("standard"):
        return a + b


def _with_batches(system: Any, entries: Mapping[str, Any], batch: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Each entry with the part that it belongs to, or None, and the batch that it was computed on."""
    found, given = named_parts(system, Model, System), parts_of(batch)
    for name, entry in entries.items():
        part = found.get(name)
        alone = part is None or (given and name not in given)
        yield name, entry, part, batch if alone else part_batch(part, name, batch)


def entry_means(system: Any, entries: Mapping[str, Any], batch: Any) -> dict[str, jax.Array]:
    """Every entry as one number, flat, under names joined with `/`."""
    while isinstance(system, Wrapper):
        system = getattr(system, part_name(type(system)))
        batch = inner(batch)
    found: dict[str, jax.Array] = {}
    rows = (
        _with_batches(system, entries, batch)
        if isinstance(system, System)
        else ((n, e, None, batch) for n, e in entries.items())
    )
    for name, entry, part, own in rows:
        if isinstance(entry, Mapping):
            found |= {f"{name}/{inner}": value for inner, value in entry_means(part, entry, own).items()}
        else:
            found[name] = example_mean(entry, own, f"the loss {name!r}")
    return found


def _reduce(entry: Any, batch: Any, what: str) -> jax.Array:
    if isinstance(entry, Mapping):
        if not entry:
            raise ValueError(f"{what} is an empty dict; give it at least one entry, or leave it out.")
        values = [_reduce(inner, batch, f"{what}, entry {name!r},") for name, inner in entry.items()]
        return functools.reduce(_add, values)
    return example_mean(entry, batch, what)


def as_figure(name: str, figure: Any, batch: Any) -> Mergeable:
    """What a metric gave, a number or one per example, as a value that can be merged."""
    if isinstance(figure, Mergeable):
        return figure
    weight = getattr(batch, "weight", None)
    return Mean(example_mean(figure, batch, f"the metric {name!r}"), len(batch) if weight is None else weight.sum())


@dispatch
def metrics(component: object, batch):
    return {}


@dispatch
def metrics(system: System, batch):
    found = {}
    for name, part in named_parts(system, Model, System).items():
        for key, value in metrics(part, part_batch(part, name, batch)).items():
            found[f"{name}/{key}"] = value
    return found


@dispatch
def predictions(model: Model, batch):
    return {"": Prediction(model, outputs_for(model, batch), batch)}


@dispatch
def predictions(system: System, batch):
    return {
        f"{name}/{inner}" if inner else name: prediction
        for name, part in named_parts(system, Model, System).items()
        for inner, prediction in predictions(part, part_batch(part, name, batch)).items()
    }


@dispatch
def augment(component: object, batch, mode):
    return batch


@dispatch
def augment(system: System, batch, mode):
    if losses.method(system, batch).function is not _losses_of_parts:
        return batch  # its own `losses` says what each part sees
    changed, any_changed = {}, False
    for name, part in named_parts(system, Model, System).items():
        own = part_batch(part, name, batch)
        changed[name] = augmented(part, own, mode.at(name))
        any_changed |= changed[name] is not own
    if parts_of(batch):
        return remake(batch, {"parts": changed})
    return PartBatches(batch, changed, weight=batch.weight, index=batch.index) if any_changed else batch


@dispatch
def validate(system: System, batch):
    wrapper = isinstance(system, Wrapper)
    if wrapper or losses.method(system, batch).function is _losses_of_parts:  # else its own `losses` says what each sees
        for name, part in named_parts(system, Model, System).items():
            validate(part, as_batch(part, batch) if wrapper else part_batch(part, name, batch))


# What methods return


def named(system: Any, entries: Any) -> Mapping[str, Any]:
    """What `losses` of a system returned, which must be a dict."""
    if not isinstance(entries, Mapping):
        raise TypeError(
            f"`losses` of {type(system).__name__} returned {short(entries)}; it must return a dict with one entry per part of the "
            "loss, such as dict(main=…). One number, or one per example, is what `loss` returns."
        )
    return entries


def augmented(component: Any, batch: Any, mode: Any) -> Any:
    """The component's `augment` of the batch, which must be a batch."""
    found = augment(component, batch, mode)
    if isinstance(batch, Batch) and not isinstance(found, Batch):
        raise TypeError(
            f"`augment` of {type(component).__name__} returned {short(found)}; it must return the batch, such as "
            "`return fm.replace(batch, x=…)`."
        )
    return found

"""Values that are one number or one per example, as weighted means over the examples of a batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, Mean, Mergeable, Wrapper, check_weight, first_field, short
from fulmen.core.tree import with_article
from fulmen.core.verbs import as_batch, loss, losses, metrics


def example_mean(value: Any, batch: Any, what: str = "loss") -> jax.Array:
    """The mean over the examples of a batch, by their `weight`, of a number or of one number per example, `(n,)`.

    Raises:
        TypeError: if the value, which errors call `what`, is None, a dict or a tuple.
        ValueError: if it has another shape.
    """
    if value is None:
        raise TypeError(f"{what} must be a number or one per example, got None. Does its method end with `return …`?")
    if isinstance(value, Mapping | tuple):
        raise TypeError(
            f"{what} must be a number or one per example, got {with_article(type(value))}. Return several named losses from "
            "`losses`, as a dict, and values that are only logged from `metrics`."
        )
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    n = len(batch)
    if value.shape != (n,):
        raise ValueError(
            f"{what} must be a number or one per example, ({n},), got shape {value.shape}. Take the mean or the sum over the "
            "other axes."
        )
    weight = getattr(batch, "weight", None)
    if weight is None:
        return value.mean()
    check_weight(weight)
    if weight.shape != (n,):
        raise ValueError(f"weight must have one number per example, ({n},), got shape {weight.shape}.")
    weight = weight.astype(value.dtype)
    return jnp.where(weight == 0, 0, value * weight).sum() / weight.sum()


def total_loss(component: Any, batch: Any) -> jax.Array:
    """The loss of a component as one number."""
    return example_mean(loss(component, batch), batch, f"the loss of {type(component).__name__}")


def as_metric(name: str, value: Any, batch: Any) -> Mergeable:
    """An entry of `metrics`, a number, one per example or a mergeable value, as a mergeable value."""
    if isinstance(value, Mergeable):
        return value
    if isinstance(value, Component):
        raise TypeError(
            f"the metric {name!r} must be a number, one per example or a mergeable value such as fm.Mean(values), got {short(value)}. "
            "An fm.Metric is given to a system, as in fm.Classifier(model, metrics=(fm.Accuracy(),))."
        )
    return Mean(example_mean(value, batch, f"the metric {name!r}"), total_weight(batch))


def total_weight(batch: Any) -> Any:
    """The sum of the weights of a batch's examples, or their number."""
    weight = getattr(batch, "weight", None)
    return len(batch) if weight is None else weight.sum()


def per_example(component: Any) -> bool:
    """Whether losses and metrics are declared to be per example, so that an evaluation may pad its last batch.

    The declaration of a class covers the methods for that class. A subclass with methods of `as_batch`, `loss`, `losses` or
    `metrics` has to declare `per_example` again.
    """
    while isinstance(component, Wrapper) and not hasattr(type(component), "per_example"):
        component = first_field(component)
    if not getattr(component, "per_example", False):
        return False
    kind = type(component)
    declared = next(k for k in kind.__mro__ if "per_example" in k.__dict__)
    firsts = [k for v in (as_batch, loss, losses, metrics) for m in v.methods if m.hints for k in m.members[0]]
    return not any(issubclass(kind, k) and issubclass(k, declared) and k is not declared for k in firsts)

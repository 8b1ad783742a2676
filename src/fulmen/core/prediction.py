"""`Prediction`, what objectives and metrics look at, and what they say of targets that do not fit it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.batch import Batch
from fulmen.core.component import Component
from fulmen.core.naming import concrete
from fulmen.core.tree import Tree
from fulmen.core.verbs import forward, model_inputs
from fulmen.dispatching.registry import dispatch

__all__ = ["Prediction"]


class Prediction(Tree):
    """All that an objective or a metric may look at.

    Args:
        model: the model.
        outputs: what it gave for the batch, `(n, …)`.
        batch: the batch, with the targets.
    """

    model: Component
    outputs: jax.Array
    batch: Batch


@dispatch
def model_inputs(component: object, batch):
    x = getattr(batch, "x", None)
    if x is None:
        name, kind = type(component).__name__, type(batch).__name__
        raise TypeError(
            f"{name} is called with batch.x, and {kind} has no x. Write `model_inputs(model: {name}, batch: {kind})`, which returns "
            f"the inputs of its `forward`, or `as_batch(component: {name}, raw)`, which makes a batch that has x."
        )
    return x


def outputs_for(component: Any, batch: Any) -> Any:
    """The outputs of a component for a batch."""
    return forward(component, *inputs_for(component, batch))


def inputs_for(component: Any, batch: Any) -> tuple[Any, ...]:
    """The positional inputs of `forward` for a batch."""
    found = model_inputs(component, batch)
    return found if isinstance(found, tuple) else (found,)


def widest(*dtypes: Any) -> Any:
    """The type that all of these go into, also where promotion has to be written out."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def at_least_float32(value: Any) -> jax.Array:
    """Losses of half-precision outputs are computed in float32, those of double precision in double."""
    value = jnp.asarray(value)
    return value.astype(widest(value.dtype, jnp.float32))


def targets(prediction: Prediction, who: Any) -> Any:
    """The batch's `y`, or an error that names the objective or metric that needs it."""
    y = getattr(prediction.batch, "y", None)
    if y is None:
        kind = type(prediction.batch).__name__
        raise ValueError(
            f"{type(who).__name__} needs targets, and the {kind} batch that came has no y. "
            "Give pairs (x, y), or a batch type with a field `y`."
        )
    if not hasattr(y, "dtype"):
        raise TypeError(f"{type(who).__name__}, y: an array was expected, and a {type(y).__name__} came: np.asarray(y).")
    return y


def class_targets(prediction: Prediction, who: Any) -> tuple[Any, bool]:
    """The targets of a classification, and whether they are integer labels `(n,)` or probabilities `(n, classes)`.

    Raises:
        TypeError: for targets or outputs of a type that is neither.
        ValueError: for shapes that are neither, and for negative labels where they are not traced.
    """
    outputs, y = prediction.outputs, targets(prediction, who)
    name = type(who).__name__
    _require_array(outputs, name)
    if len(outputs.shape) != 2:
        hint = " Flatten them, or pool over the other axes." if len(outputs.shape) > 2 else ""
        raise ValueError(f"{name}: outputs of shape (n, classes) were expected, and the model gave {_shape(outputs)}.{hint}")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"{name}: floating-point outputs were expected, and the model gave {outputs.dtype}.")
    n, classes = outputs.shape
    kinds = f"integer labels of shape ({n},) or probabilities of shape ({n}, {classes})"
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape == (n,):
            seen = concrete(y)
            if seen is not None and seen.size and seen.min() < 0:  # which indexing would count from the last class
                _refuse_labels(seen, classes, name)
            if isinstance(y, Tracer) and jnp.issubdtype(y.dtype, jnp.signedinteger):
                y = y.astype(jnp.int32) if y.dtype.itemsize < 4 else y
                y = jnp.where(y < 0, classes, y)  # beyond the last class: the loss is NaN, as of a label that is too large
            return y, True
        hint = ""
        if y.shape == (n, 1):
            hint = " Labels are y[:, 0]."
        elif y.shape == (n, classes):
            hint = " One-hot vectors are probabilities: y.astype(np.float32)."
        raise ValueError(f"{name}, y: {kinds} were expected, and {y.dtype} of shape {_shape(y)} came.{hint}")
    if len(y.shape) == 1:
        raise TypeError(f"{name}, y: integer labels were expected, and {y.dtype} came: y.astype(np.int32).")
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"{name}, y: {kinds} were expected, and {y.dtype} of shape {_shape(y)} came.")
    if y.shape != (n, classes):
        raise ValueError(
            f"{name}, y: {kinds} were expected, since the outputs have {classes} classes, and {y.dtype} of shape "
            f"{_shape(y)} came."
        )
    return y, False


def _refuse_labels(y: np.ndarray, classes: int, name: str) -> None:
    low, high = int(y.min()), int(y.max())
    hint = " Labels that begin at 1: y - 1." if (low, high) == (1, classes) else ""
    raise ValueError(
        f"{name}, y must be labels from 0 to {classes - 1}, since the outputs have {classes} classes, got labels from {low} to "
        f"{high}.{hint}"
    )


def check_classes(prediction: Prediction, who: Any) -> None:
    """Raise on targets that `class_targets` refuses, labels that are no class and rows that are no probabilities."""
    y, labels = class_targets(prediction, who)
    y, classes = concrete(y), prediction.outputs.shape[1]
    if y is None or not y.size:
        return
    if labels and y.max() >= classes:
        _refuse_labels(y, classes, type(who).__name__)
    sums = np.ones(1) if labels else y.sum(1, dtype=np.float64)
    if y.min() < 0 or np.abs(sums - 1).max() > 0.01:
        raise ValueError(
            f"{type(who).__name__}, y must be probabilities, none negative and each row adding up to 1, got a smallest of "
            f"{y.min():.4g} and rows that add up to {sums.min():.4g} to {sums.max():.4g}. Make them by jax.nn.softmax(logits)."
        )


def number_targets(prediction: Prediction, who: Any) -> Any:
    """The targets of a regression, which have the outputs' shape.

    Raises:
        ValueError: if they have another.
    """
    outputs, y = prediction.outputs, targets(prediction, who)
    name = type(who).__name__
    _require_array(outputs, name)
    if not outputs.shape or outputs.shape != y.shape:
        hint = ""
        if outputs.shape == (*y.shape, 1):
            hint = (
                " Write y[:, None], or let the model return outputs[..., 0]."
                if len(y.shape) == 1
                else " Write y[..., None]."
            )
        elif y.shape == (*outputs.shape, 1):
            hint = " Write y[..., 0]."
        raise ValueError(
            f"{name}, y: the shape of the model's outputs, {_shape(outputs)}, was expected, and {_shape(y)} came.{hint}"
        )
    if any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in (outputs, y)):
        raise TypeError(f"{name}: real numbers were expected, and outputs {outputs.dtype} and y {y.dtype} came.")
    return y


def _require_array(outputs: Any, name: str) -> None:
    if not hasattr(outputs, "shape"):
        raise TypeError(
            f"{name}: one array of outputs was expected, and the model gave a {type(outputs).__name__}. Write an objective "
            "or a metric of your own for it, or let the model return an array."
        )


def _shape(value: Any) -> str:
    return str(tuple(value.shape))

"""`Prediction`, the argument of objectives and metrics, and their checks of targets."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.batch import Batch
from fulmen.core.component import Component
from fulmen.core.naming import concrete
from fulmen.core.tree import Tree, with_article
from fulmen.core.verbs import forward, model_inputs
from fulmen.dispatching.errors import MissingMethodError
from fulmen.dispatching.registry import dispatch

_SEVERAL_LABELS = " Several labels per example are independent binary targets: use fm.BinaryCrossEntropy(), and metrics with threshold=0.5."


class Prediction(Tree):
    """The argument of an objective or a metric.

    Args:
        model: the model.
        outputs: its outputs for the batch, `(n, …)`.
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
            f"{name} needs batch.x, and {kind} has no x. Write a method `model_inputs(model: {name}, batch: {kind})` that returns the "
            f"inputs of its `forward`, or `as_batch(component: {name}, raw)` that returns a batch with x."
        )
    _require_one_input(component, x, batch)
    return x


def _require_one_input(component: Any, x: Any, batch: Any) -> None:
    """Raise if `forward` has methods for the component, but only with another number of inputs than one."""
    if forward.has(component, x):
        return
    name, kind = type(component).__name__, type(batch).__name__
    methods = [m for m in forward.methods if any(issubclass(type(component), k) for k in {*m.members[0]} - {object})]
    if methods and all(m.rest is None and len(m.hints) != 2 for m in methods):
        raise MissingMethodError(
            f"{name} takes {len(methods[0].hints) - 1} inputs, got one, batch.x of a {kind} batch. Use a batch type with a field "
            f"for each, `class Inputs(fm.Batch)`, and write a method `model_inputs(model: {name}, batch: Inputs)` that returns a "
            "tuple of them."
        )


def outputs_for(component: Any, batch: Any) -> Any:
    """The outputs of a component for a batch."""
    return forward(component, *inputs_for(component, batch))


def inputs_for(component: Any, batch: Any) -> tuple[Any, ...]:
    """The positional inputs of `forward` for a batch."""
    found = model_inputs(component, batch)
    return found if isinstance(found, tuple) else (found,)


def widest(*dtypes: Any) -> Any:
    """The common type of several, also under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def at_least_float32(value: Any) -> jax.Array:
    """A value for the computation of a loss: half precision as float32, other types unchanged."""
    value = jnp.asarray(value)
    return value.astype(widest(value.dtype, jnp.float32))


def reshaped(value: Any, *shape: int) -> Any:
    """An array, or the description of one, in another shape."""
    return jax.ShapeDtypeStruct(shape, value.dtype) if isinstance(value, jax.ShapeDtypeStruct) else value.reshape(shape)


def targets(prediction: Prediction, who: Any) -> Any:
    """The batch's `y`, or an error that names the objective or metric that needs it."""
    name, y = type(who).__name__, getattr(prediction.batch, "y", None)
    if y is None:
        kind = with_article(type(prediction.batch))
        raise ValueError(
            f"{name} needs a batch with targets, got {kind} without y. Give pairs (x, y), or a batch type with a y."
        )
    if not hasattr(y, "dtype"):
        raise TypeError(f"{name}, y must be an array, got {with_article(type(y))}; write np.asarray(y).")
    return y


def class_targets(prediction: Prediction, who: Any) -> tuple[Any, bool]:
    """The targets of a classification, and whether they are integer labels `(n,)` or probabilities `(n, classes)`.

    Raises:
        TypeError: for targets or outputs of another type.
        ValueError: for other shapes, and for negative labels unless they are traced.
    """
    outputs, y = prediction.outputs, targets(prediction, who)
    name = type(who).__name__
    _require_array(outputs, name)
    if len(outputs.shape) != 2:
        hint = " Flatten them, or pool over the other axes." if len(outputs.shape) > 2 else ""
        raise ValueError(f"{name}, outputs must have shape (n, classes), got {_shape(outputs)} from the model.{hint}")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"{name}, outputs must be floating-point numbers, got {outputs.dtype} from the model.")
    n, classes = outputs.shape
    integers = jnp.issubdtype(y.dtype, jnp.integer)
    if integers and y.shape == (n,):
        seen = concrete(y)
        if seen is not None and seen.size and seen.min() < 0:  # which indexing would count from the last class
            _refuse_labels(seen, classes, name)
        if isinstance(y, Tracer) and jnp.issubdtype(y.dtype, jnp.signedinteger):
            y = y.astype(jnp.int32) if y.dtype.itemsize < 4 else y
            y = jnp.where(y < 0, classes, y)  # beyond the last class, so that the loss is NaN as for labels too large
        return y, True
    if jnp.issubdtype(y.dtype, jnp.floating) and y.shape == (n, classes):
        return y, False
    hint = ""
    if integers and y.shape == (n, 1):
        hint = " Write y[:, 0]."
    elif integers and y.shape == (n, classes):
        seen = concrete(y)
        one = seen is None or (seen.sum(1) == 1).all()
        hint = " One-hot vectors are probabilities: write y.astype(np.float32)." if one else _SEVERAL_LABELS
    elif not integers and len(y.shape) == 1:
        hint = " Write y.astype(np.int32)."
    wrong_type = not integers and (len(y.shape) == 1 or not jnp.issubdtype(y.dtype, jnp.floating))
    raise (TypeError if wrong_type else ValueError)(
        f"{name}, y must be integer labels of shape ({n},) or probabilities of shape ({n}, {classes}), since the outputs have "
        f"{classes} classes, got {y.dtype} of shape {_shape(y)}.{hint}"
    )


def at_labels(values: jax.Array, labels: Any) -> jax.Array:
    """The number of each row of `values`, `(n, classes)`, at its label: `(n,)`, NaN for a label out of range."""

    # `jnp.take_along_axis` becomes twice as many operations, and this is a part of most steps.
    def of_row(row: jax.Array, label: jax.Array) -> jax.Array:
        return row.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    return jax.vmap(of_row)(values, labels)


def _refuse_labels(y: np.ndarray, classes: int, name: str) -> None:
    low, high = int(y.min()), int(y.max())
    hint = " Labels that begin at 1: y - 1." if (low, high) == (1, classes) else ""
    hint = " For one output per example the objective is fm.BinaryCrossEntropy()." if classes == 1 else hint
    raise ValueError(
        f"{name}, y must be labels from 0 to {classes - 1}, since the outputs have {classes} classes, got labels from {low} to "
        f"{high}.{hint}"
    )


def check_classes(prediction: Prediction, who: Any) -> None:
    """Raise for targets that `class_targets` refuses, labels out of range and rows that are not probabilities."""
    y, labels = class_targets(prediction, who)
    y, classes = concrete(y), prediction.outputs.shape[1]
    if y is None or not y.size:
        return
    if labels and y.max() >= classes:
        _refuse_labels(y, classes, type(who).__name__)
    sums = np.ones(1) if labels else y.sum(1, dtype=np.float64)
    if y.min() < 0 or np.abs(sums - 1).max() > 0.01:
        remedy = _SEVERAL_LABELS if np.isin(y, (0, 1)).all() else " Make them by jax.nn.softmax(logits)."
        raise ValueError(
            f"{type(who).__name__}, y must be probabilities, none negative and each row adding up to 1, got a smallest of "
            f"{y.min():.4g} and rows that add up to {sums.min():.4g} to {sums.max():.4g}.{remedy}"
        )


def number_targets(prediction: Prediction, who: Any) -> Any:
    """The targets of a regression, which have the outputs' shape.

    Raises:
        ValueError: if they have another shape.
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
        elif y.shape == outputs.shape[:-1] and jnp.issubdtype(y.dtype, jnp.integer):
            hint = " For labels of classes the objective is fm.CrossEntropy()."
        raise ValueError(f"{name}, y must have the shape of the model's outputs, {_shape(outputs)}, got {_shape(y)}.{hint}")
    if any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in (outputs, y)):
        raise TypeError(f"{name}, outputs and y must be real numbers, got {outputs.dtype} and {y.dtype}.")
    return y


def check_binary(prediction: Prediction, who: Any) -> None:
    """Raise for targets that `number_targets` refuses, and for others than 0 and 1, probabilities, or −1 and 1."""
    y = concrete(number_targets(prediction, who))
    if y is None or not y.size or (y.min() >= 0 and y.max() <= 1) or np.isin(y, (-1, 1)).all():
        return
    hint = " For several classes, the model needs one output for each." if np.issubdtype(y.dtype, np.integer) else ""
    raise ValueError(
        f"{type(who).__name__}, y must be 0 or 1 for binary outputs of shape {_shape(prediction.outputs)}, got numbers from "
        f"{y.min():.4g} to {y.max():.4g}.{hint}"
    )


def _require_array(outputs: Any, name: str) -> None:
    if not hasattr(outputs, "shape"):
        raise TypeError(
            f"{name}, outputs must be one array, got {with_article(type(outputs))} from the model. Write a custom objective or "
            "metric for it, or let the model return an array."
        )


def _shape(value: Any) -> str:
    return str(tuple(value.shape))

"""Normalization: `BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm`."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.core import Buffer, Model, Train, at_least_float32, hyper, record, remake, static
from fulmen.core.verbs import forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import aligned, promoted, require_arrays, require_last_axis


class Normalization(Model):
    """A layer with a scale (and perhaps a shift and running statistics) for each of `features`, and an `epsilon`."""

    ignores_scale: ClassVar[bool] = True


@dispatch
def init(layer: Normalization, key):
    n: int = layer.features  # type: ignore[attr-defined]
    arrays = {"weight": jnp.ones(n), "bias": jnp.zeros(n), "mean": Buffer(jnp.zeros(n)), "variance": Buffer(jnp.ones(n))}
    return remake(layer, {name: array for name, array in arrays.items() if hasattr(layer, name)})


class BatchNorm(Normalization):
    """Normalizes each feature over all axes but the last, then scales and shifts it: `(…, features)` to the same shape.

    In training it uses the mean and (biased) variance of the batch and updates the running statistics:
    `(1 − momentum) · running + momentum · batch`, with the unbiased variance. In evaluation it uses the running
    statistics. These are PyTorch's conventions. Half precision is normalized in float32.
    Ioffe and Szegedy 2015, arXiv:1502.03167.

    Args:
        features: size of the last axis.
        momentum: weight of the batch in the running statistics, in [0, 1].
        epsilon: added to the variance.
        weight, bias: scale and shift, `(features,)`; initially 1 and 0.
        mean, variance: the running statistics, `Buffer`s of `(features,)`; initially 0 and 1.

    >>> norm = fm.init(fm.models.BatchNorm(2), jax.random.key(0))
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> fm.forward(norm, x, fm.Train(jax.random.key(0))).round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    features: int = static(minimum=1)
    momentum: float = hyper(minimum=0, maximum=1, default=0.1)
    epsilon: float = hyper(above=0, default=1e-5)
    weight: jax.Array | None = None
    bias: jax.Array | None = None
    mean: Buffer | None = None
    variance: Buffer | None = None


@dispatch
def forward(layer: BatchNorm, x):
    mean, variance = require_arrays(layer, "mean", "variance")
    x, dtype = _checked(layer, x)
    return _normalized(layer, x, variance.value.astype(x.dtype), mean.value.astype(x.dtype)).astype(dtype)


@dispatch
def forward(layer: BatchNorm, x, mode: Train):
    running_mean, running_variance = require_arrays(layer, "mean", "variance")
    x, dtype = _checked(layer, x)
    count = x.size // max(layer.features, 1)
    if count < 2:
        raise ValueError(
            f"BatchNorm({layer.features}) needs at least two values per feature in training, got shape {x.shape}: use larger "
            "batches, or drop the incomplete last one, drop_last=True."
        )
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    y = _normalized(layer, x, variance, mean).astype(dtype)
    y = record(y, running_mean, _moving_average(layer, running_mean, mean))
    return record(y, running_variance, _moving_average(layer, running_variance, variance * (count / (count - 1))))


def _moving_average(layer: BatchNorm, running: Buffer, batch: jax.Array) -> jax.Array:
    momentum = jnp.asarray(layer.momentum).astype(batch.dtype)
    return (1 - momentum) * running.value.astype(batch.dtype) + momentum * batch


class LayerNorm(Normalization):
    """Normalizes each vector along the last axis, then scales and shifts it: `(…, features)` to the same shape.

    Half precision is normalized in float32. Ba, Kiros and Hinton 2016, arXiv:1607.06450.

    Args:
        features, epsilon, weight, bias: as in `BatchNorm`.

    >>> norm = fm.init(fm.models.LayerNorm(2), jax.random.key(0))
    >>> norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3)
    Array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """

    features: int = static(minimum=1)
    epsilon: float = hyper(above=0, default=1e-5)
    weight: jax.Array | None = None
    bias: jax.Array | None = None


@dispatch
def forward(layer: LayerNorm, x):
    x, dtype = _checked(layer, x)
    # On the CPU, XLA's gradient of a stack of these is a third slower if the mean is computed first.
    return _normalized(layer, x, x.var(-1, keepdims=True), x.mean(-1, keepdims=True)).astype(dtype)


class RMSNorm(Normalization):
    """Divides each vector along the last axis by its root mean square, then scales it: `(…, features)` to the same shape.

    `x / √(mean(x²) + epsilon) · weight`, in at least float32. Zhang and Sennrich 2019, arXiv:1910.07467.

    Args:
        features: size of the last axis.
        epsilon: added to the mean square.
        weight: `(features,)`, the scale; initially 1.

    >>> norm = fm.init(fm.models.RMSNorm(2), jax.random.key(0))
    >>> norm(jnp.array([[2.0, -2.0], [30.0, -30.0]])).round(3)
    Array([[ 1., -1.],
           [ 1., -1.]], dtype=float32)
    """

    features: int = static(minimum=1)
    epsilon: float = hyper(above=0, default=1e-6)
    weight: jax.Array | None = None


@dispatch
def forward(layer: RMSNorm, x):
    x, dtype = _checked(layer, x)
    (weight,) = require_arrays(layer, "weight")
    scale = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + jnp.asarray(layer.epsilon).astype(x.dtype))
    return (x * scale * aligned(weight.astype(x.dtype), x.ndim)).astype(dtype)


class GroupNorm(Normalization):
    """Normalizes each example's features in groups, over all its positions, then scales and shifts each feature.

    `(n, …, features)` to the same shape: in each example and group of `features / groups` adjacent features,
    `(x − mean) / √(variance + epsilon) · weight + bias`, in at least float32. Wu and He 2018, arXiv:1803.08494.

    Args:
        groups: number of groups; must divide `features`.
        features, epsilon, weight, bias: as in `BatchNorm`.

    >>> norm = fm.init(fm.models.GroupNorm(2, 4), jax.random.key(0))
    >>> norm(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3)
    Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    groups: int = static(minimum=1)
    features: int = static(minimum=1)
    epsilon: float = hyper(above=0, default=1e-5)
    weight: jax.Array | None = None
    bias: jax.Array | None = None


@dispatch
def validate(layer: GroupNorm):
    if layer.features % layer.groups:
        raise ValueError(f"GroupNorm.groups must divide features, got {layer.groups} groups of {layer.features} features.")


@dispatch
def forward(layer: GroupNorm, x):
    x, dtype = _checked(layer, x)
    if x.ndim < 2:
        raise ValueError(
            f"GroupNorm takes (n, …, {layer.features}), got {x.shape}: one example needs a batch axis, x[None]."
        )
    groups = x.reshape(x.shape[0], -1, layer.groups, layer.features // layer.groups)
    per_example = (x.shape[0], *(1,) * (x.ndim - 2), layer.features)
    mean, variance = (
        jnp.repeat(v, groups.shape[-1], -1).reshape(per_example) for v in (groups.mean((1, 3)), groups.var((1, 3)))
    )
    return _normalized(layer, x, variance, mean).astype(dtype)


def _checked(layer: Any, x: Any) -> tuple[jax.Array, Any]:
    """The checked input in at least float32, and the type of the output."""
    name, x = f"{type(layer).__name__}({layer.features})", jnp.asarray(x)
    (weight,) = require_arrays(layer, "weight")
    require_last_axis(name, x, layer.features)
    x, _ = promoted(name, x, weight)
    return at_least_float32(x), x.dtype


def _normalized(layer: Any, x: jax.Array, variance: jax.Array, mean: jax.Array) -> jax.Array:
    """`(x − mean) / √(variance + epsilon) · weight + bias`."""
    weight, bias = (aligned(v.astype(x.dtype), x.ndim) for v in require_arrays(layer, "weight", "bias"))
    inverse = jax.lax.rsqrt(variance + jnp.asarray(layer.epsilon).astype(x.dtype))
    return (x - aligned(mean, x.ndim)) * (aligned(inverse, x.ndim) * weight) + bias

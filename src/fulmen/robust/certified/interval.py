"""`Interval`, lower and upper bounds of each coordinate of an input, and the rounding errors that bounds have to allow for."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Tree, concrete, short
from fulmen.core.verbs import forward
from fulmen.dispatching.errors import MissingMethodError
from fulmen.robust.attacks.projections import common_bounds
from fulmen.robust.attacks.region import PerCoordinate, Region, members, split


class MissingBoundsError(MissingMethodError, AttributeError):
    """A layer without a method for an `Interval` uses it as an array."""


def _refuse(interval: Any, *args: Any) -> Any:
    raise MissingBoundsError(_missing(interval))


class Interval(Tree):
    """All inputs between two arrays: `forward(model, interval)` is an interval that contains the outputs for all of them.

    This is interval bound propagation (Gowal et al. 2018, arXiv:1810.12715) in `Eval` mode. Models made of other models need no
    method, since an interval passes through them. A layer that uses its input as an array needs one; without it, an error
    contains the method to write.

    The bounds include rounding: the interval of each layer contains the outputs that the layer computes for every array in its
    interval, in floating-point numbers and in any order of summation, and the exact ones. On a GPU or a TPU, where products
    round their operands by default, bounds are tighter with `jax.default_matmul_precision("highest")`.

    Args:
        lower: `(n, …)`, float32 or float64.
        upper: the same shape and type; at least `lower`.

    **Extending.** `def forward(layer: Mine, x: fm.Interval): return fm.Interval(lower, upper)`, with `x.lower` and `x.upper`. For a
    layer that increases in every coordinate: `return x.map(lambda v: forward(layer, v))`; `widened` adds its rounding error.

    >>> layer = fm.models.Dense(1, 1, weight=jnp.array([[-2.0]]), bias=jnp.array([1.0]))
    >>> y = layer(fm.Interval(jnp.array([[0.0]]), jnp.array([[3.0]])))
    >>> y.lower.round(3), y.upper.round(3)
    (Array([[-5.]], dtype=float32), Array([[1.]], dtype=float32))
    """

    lower: jax.Array
    upper: jax.Array

    def __init__(self, lower: Any, upper: Any) -> None:
        lower, upper = jnp.asarray(lower), jnp.asarray(upper)
        if lower.shape != upper.shape or lower.dtype != upper.dtype:
            raise ValueError(
                f"Interval: lower and upper must have the same shape and type, got {short(lower)} and {short(upper)}."
            )
        if lower.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(
                f"Interval: lower and upper must be float32 or float64, whose rounding the bounds include, got {lower.dtype}; "
                "write x.astype('float32')."
            )
        low, high = concrete(lower), concrete(upper)
        if low is not None and high is not None and (low > high).any():
            where = tuple(int(i[0]) for i in (low > high).nonzero())
            raise ValueError(f"Interval.lower must not exceed upper, got {low[where]} > {high[where]} at index {where}.")
        self.lower, self.upper = lower, upper

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lower.shape

    @property
    def ndim(self) -> int:
        return self.lower.ndim

    @property
    def dtype(self) -> Any:
        return self.lower.dtype

    @property
    def magnitude(self) -> jax.Array:
        """The largest absolute value of each coordinate. It is for rounding errors, and has no gradient."""
        return jax.lax.stop_gradient(jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper)))

    def map(self, increasing: Any) -> Interval:
        """The interval with a function applied to both bounds, which must not decrease in any coordinate."""
        return Interval(increasing(self.lower), increasing(self.upper))

    def widened(self, slack: Any) -> Interval:
        """The interval with bounds farther apart by `slack` on each side, without a gradient through it."""
        slack = jax.lax.stop_gradient(slack + jnp.finfo(self.dtype).tiny)
        return Interval(self.lower - slack, self.upper + slack)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "lower" not in self.__dict__:
            raise AttributeError(name)
        raise MissingBoundsError(_missing(self))

    def __add__(self, other: Any) -> Interval:
        """The sum of two intervals, such as those of two branches; of an interval and an array it is refused."""
        if not isinstance(other, Interval):
            return _refuse(self)
        found = Interval(self.lower + other.lower, self.upper + other.upper)
        return found.widened(float(jnp.finfo(found.dtype).eps) * (self.magnitude + other.magnitude))

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = _refuse
    __pow__ = __neg__ = __abs__ = __getitem__ = __len__ = __iter__ = __array__ = __jax_array__ = __float__ = __bool__ = (
        _refuse
    )
    __lt__ = __le__ = __gt__ = __ge__ = _refuse


def _missing(interval: Any) -> str:
    """The error for a use as an array, which names the layer: the first argument of the innermost method of `forward`."""
    codes = {inspect.unwrap(method.function).__code__ for method in forward.methods}
    frame = sys._getframe(1)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    if frame is None:
        return "an fm.Interval is not an array: use its fields `lower` and `upper`."
    kind = type(frame.f_locals[frame.f_code.co_varnames[0]])
    return (
        f"`forward({kind.__name__}, Interval)`: {kind.__name__} uses its input as an array, and has no method for the bounds of its "
        f"outputs. Write one:\n\n    @dispatch\n    def forward({kind.__name__.lower()}: {kind.__name__}, x: fm.Interval): …\n\n"
        "It returns an fm.Interval that contains the outputs for every input from x.lower to x.upper."
    )


def no_bounds_in_training(layer: Any) -> ValueError:
    """The error for a layer whose outputs in training are random or depend on other examples."""
    return ValueError(
        f"{type(layer).__name__} has no interval bounds in training, where its outputs are random or depend on the whole batch. "
        "Bind the mode of an evaluation: fm.bind(model, fm.Eval())."
    )


def require_covered(who: str, region: Any) -> None:
    """Raise unless interval bounds hold for a region."""
    if not isinstance(region, Region):
        raise TypeError(f"{who}: region must be a region such as fm.LinfBall(0.1) & fm.Box(0, 1), got {short(region)}.")
    if not all(isinstance(member, PerCoordinate) for member in members(region)):
        raise ValueError(
            f"{who}: interval bounds need a region that bounds each coordinate, such as fm.LinfBall(0.1) & fm.Box(0, 1), got "
            f"{region!r}. In an L2Ball certify by fm.Smoothed(system, sigma)."
        )


def interval_of(region: Region, x: Any) -> Interval:
    """The interval that contains the region around inputs `(n, …)`, rounded outwards."""
    x = jnp.asarray(x)
    _, intervals, _ = split(region)
    found = Interval(*common_bounds(intervals, x))
    return found.widened(jnp.finfo(x.dtype).eps * found.magnitude)


def rounding_error(terms: int, dtype: Any) -> float:
    """A bound on the error of a sum of products, relative to the sum of the products' absolute values.

    It is at least four times that of one sum in any order (Higham 2002, "Accuracy and stability of numerical algorithms",
    section 3.1): the model's, those of the centre and the radius of the bounds, and terms of second order.

    Args:
        terms: the number of products.
        dtype: float32 or float64.
    """
    return 2 * (terms + 8) * float(jnp.finfo(dtype).eps) + 4 * _operand_rounding(dtype)


def _operand_rounding(dtype: Any) -> float:
    """The relative error of a product whose factors the device rounds first: to bfloat16 on a TPU, to TF32 on a GPU."""
    backend, precision = jax.default_backend(), jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if backend == "cpu" or dtype == jnp.float64 or precision in ("highest", "float32"):
        return 0.0
    return 2.0**-9 if backend == "gpu" and precision in (None, "default", "high", "tensorfloat32") else 2.0**-7

"""`External`: a metric class of clu, metrax or another library, as a metric of a system."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from fulmen.core import Mergeable, Prediction, static
from fulmen.core.naming import snake_case
from fulmen.core.verbs import metrics
from fulmen.dispatching.registry import dispatch
from fulmen.metric_types.metric import Metric


class External(Metric):
    """A metric of clu or metrax, or any class with `from_model_output`, `merge` and `compute` whose instances are pytrees.

    `External(metrax.AUCROC, lambda p: dict(predictions=jax.nn.softmax(p.outputs)[:, 1], labels=p.batch.y))` computes it in the
    step. Its `merge` must add the arrays, or keep the newest. Pass `p.batch.weight` on if the data has weights.

    Args:
        kind: the class.
        arguments: a function from a `Prediction` to the keyword arguments of `kind.from_model_output`, a dict.

    Raises:
        TypeError: if `kind` is anything but such a class.
        ValueError: when it is computed, if `merge` does something else, as that of clu's `CollectingMetric`.
    """

    kind: type = static()
    arguments: Callable[[Prediction], dict[str, Any]] = static()

    def __init__(self, kind: type, arguments: Callable[[Prediction], dict[str, Any]], *, name: str = "") -> None:
        if not isinstance(kind, type) or not all(hasattr(kind, name) for name in ("from_model_output", "merge", "compute")):
            raise TypeError(
                f"External, kind must be a class with from_model_output, merge and compute, such as clu.metrics.Accuracy, got {kind!r}."
            )
        if not callable(arguments):
            raise TypeError(
                f"External, arguments must be a function such as `lambda p: dict(logits=p.outputs, labels=p.batch.y)`, got {arguments!r}."
            )
        self.kind, self.arguments, self.name = kind, arguments, name

    @property
    def default_name(self) -> str:
        return snake_case(self.kind.__name__)

    def expression(self) -> str:
        return f"External({self.kind.__name__})"


class ExternalValue(Mergeable):
    """The value of an `External` metric: its arrays, which add up, and the numbers beside them, such as a number of thresholds."""

    arrays: tuple[jax.Array, ...]
    structure: Any = static()
    numbers: tuple[Any, ...] = static()  # by position, None for an array
    keeps_newest: bool = static()

    @property
    def newest(self) -> bool:
        return self.keeps_newest

    def compute(self) -> Any:
        with _usual_promotion():
            return _with_arrays(self.structure, self.numbers, self.arrays).compute()


@dispatch
def metrics(metric: External, prediction):
    with _usual_promotion():
        value = metric.kind.from_model_output(**metric.arguments(prediction))
    leaves, structure = jax.tree.flatten(value)
    numbers = tuple(leaf if isinstance(leaf, bool | int | float) else None for leaf in leaves)
    arrays = tuple(leaf for leaf, number in zip(leaves, numbers, strict=True) if number is None)
    return ExternalValue(arrays, structure, numbers, _keeps_newest(metric.kind, structure, numbers, arrays))


def _keeps_newest(kind: type, structure: Any, numbers: Any, arrays: Any) -> bool:
    """Whether `merge` returns the newer value, rather than the sum: it is tried on two values."""
    filled = lambda number: [np.full(array.shape, number, array.dtype) for array in arrays]
    with jax.ensure_compile_time_eval(), _usual_promotion():
        older, newer = (_with_arrays(structure, numbers, filled(number)) for number in (2, 3))
        merged = jax.tree.leaves(older.merge(newer))
        found = {float(v) for leaf, n in zip(merged, numbers, strict=False) if n is None for v in np.unique(leaf)}
    if len(merged) != len(numbers) or found not in ({5.0}, {3.0}):
        raise ValueError(
            f"External: {kind.__name__}.merge must add the arrays, or return the newer ones, since sums are kept on the device. Compute "
            "this metric after the run, from the outputs that fm.predict returns."
        )
    return found == {3.0}


@contextlib.contextmanager
def _usual_promotion() -> Iterator[None]:
    """JAX's defaults, for the other library's code."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _with_arrays(structure: Any, numbers: Any, arrays: Any) -> Any:
    """The other library's value."""
    each = iter(arrays)
    return structure.unflatten([next(each) if number is None else number for number in numbers])

"""`batch_size`: examples per second of a training step, by the size of its batch."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from fulmen.core import State
from fulmen.core.verbs import setup, train_step
from fulmen.data.arrays import check_arrays, check_positive, count
from fulmen.data.normalize import are_arrays
from fulmen.train.tune.range_test import Search

OUT_OF_MEMORY = (jax.errors.JaxRuntimeError, MemoryError)
"""The errors of a step that does not fit into memory. JAX has no class for this case alone."""

_SMALLEST = 8
_FEWEST = 3  # steps of a measurement
_NO_GAIN = 2  # sizes in sequence without a gain, after which larger ones are not measured


class BatchSizeSearch(Search, eq=False):
    """The result of `batch_size`; `fm.plot` draws it.

    Attributes:
        sizes: the measured batch sizes.
        seconds: the duration of a step, for each size.
        suggestion: the smallest size whose examples per second are within `tolerance` of the best.
        failed: the size that did not fit into memory, or None.
        error: the error of that size.
    """

    title = "Batch sizes"
    columns = ("batch size", "ms per step", "examples/s", "")
    sizes: np.ndarray
    seconds: np.ndarray
    suggestion: int
    failed: int | None = None
    error: Exception | None = None

    @property
    def examples_per_second(self) -> np.ndarray:
        """For each size."""
        return self.sizes / self.seconds

    def rows(self) -> list[tuple[str, ...]]:
        found = zip(self.sizes, self.seconds, self.examples_per_second, strict=True)
        rows = [
            (f"{n}", f"{1e3 * s:.3g}", f"{each:,.0f}", "suggestion" if n == self.suggestion else "") for n, s, each in found
        ]
        return rows + ([] if self.failed is None else [(f"{self.failed}", "", "", f"failed: {type(self.error).__name__}")])


def batch_size(
    system: Any,
    data: Any,
    *,
    sizes: Sequence[int] | None = None,
    optimizer: Any = optax.adam,
    lr: Any = 1e-3,
    seconds: float = 0.3,
    tolerance: float = 0.1,
    **options: Any,
) -> BatchSizeSearch:
    """Search the batch size that trains the most examples per second, by measuring steps of several sizes.

    It ends at a size that does not fit into memory. The measured step is `train_step`, whose memory is that of `fit` and one
    more copy of the state. The speed says nothing about the learning: with another batch size, search the learning rate again.

    Args:
        system: a component that has a loss.
        data: arrays, or a tuple, dict or `Batch` of arrays.
        sizes: the sizes to measure, in increasing order. None: powers of two from 8, up to the number of examples, until two
            in sequence bring no gain.
        optimizer, lr, **options: as for `setup`, such as `microbatches`.
        seconds: the duration of each measurement.
        tolerance: the share of the best speed that the suggestion may lose.

    Returns:
        A `BatchSizeSearch`: `.suggestion`, and a picture by `fm.plot`.

    Raises:
        TypeError: for a state, and for data that is not in memory.
        ValueError: for sizes that are not increasing, or above the number of examples.

    >>> system, data = fm.testing.tiny("classifier")
    >>> found = fm.tune.batch_size(system, data, sizes=[5, 10, 20], seconds=0.01)
    >>> found.sizes
    array([ 5, 10, 20])
    """
    if isinstance(system, State):
        raise TypeError("tune.batch_size takes a component, got a State; write state.system.")
    if not are_arrays(data):
        raise TypeError(f"tune.batch_size needs arrays, of which it takes batches of any size, got {type(data).__name__}.")
    data = check_arrays(data)
    chosen, found = _sizes(sizes, count(data)), dict[int, float]()
    failed: tuple[int | None, Exception | None] = None, None
    for size in chosen:
        try:
            found[size] = _measured(system, data, size, seconds, optimizer=optimizer, lr=lr, **options)
        except OUT_OF_MEMORY as error:
            if not found:
                raise
            failed = size, error
            break
        best = _suggested(found, tolerance)
        if sizes is None and len([larger for larger in found if larger > best]) >= _NO_GAIN:
            break
    return BatchSizeSearch(np.array([*found]), np.array([*found.values()]), _suggested(found, tolerance), *failed)


def _sizes(sizes: Sequence[int] | None, n: int) -> list[int]:
    if sizes is None:
        return [size for size in (_SMALLEST << i for i in range(32)) if size <= n] or [n]
    for size in sizes:
        check_positive("sizes", size)
    if not sizes or [*sizes] != sorted({*sizes}) or sizes[-1] > n:
        raise ValueError(f"sizes must be in increasing order and at most {n}, the number of examples, got {[*sizes]}.")
    return [*map(int, sizes)]


def _measured(system: Any, data: Any, size: int, seconds: float, **options: Any) -> float:
    """The shortest duration of a step with a batch size."""
    batch = jax.tree.map(lambda v: v[:size], data)
    state = setup(system, data, batch_size=size, **options)
    state, _ = jax.block_until_ready(train_step(state, batch))
    durations: list[float] = []
    while len(durations) < _FEWEST or sum(durations) < seconds:
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(train_step(state, batch))
        durations.append(time.perf_counter() - begun)
    return min(durations)  # whatever else the machine does only adds to it


def _suggested(found: dict[int, float], tolerance: float) -> int:
    """The smallest size whose examples per second are within the tolerance of the best."""
    speeds = {size: size / each for size, each in found.items()}
    return next(size for size, speed in speeds.items() if speed >= (1 - tolerance) * max(speeds.values()))

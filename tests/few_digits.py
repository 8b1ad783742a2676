"""A smaller data set in place of scikit-learn's digits, for the tests of the examples, the notebooks and the pages."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


def _few(load: Any, rows: int, return_X_y: bool = False) -> Any:
    digits = load()
    few = type(digits)(data=digits.data[:rows], target=digits.target[:rows])
    return (few.data, few.target) if return_X_y else few


@contextlib.contextmanager
def few_digits(rows: int = 320) -> Iterator[None]:
    """`sklearn.datasets.load_digits` gives a few of its 1,797 images.

    Args:
        rows: how many. 320, split at 0.8, are full batches of 32 and of 64 in both parts.
    """
    try:
        from sklearn import datasets
    except ImportError:
        yield
        return
    load = datasets.load_digits
    datasets.load_digits = functools.partial(_few, load, rows)
    try:
        yield
    finally:
        datasets.load_digits = load

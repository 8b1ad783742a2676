"""A smaller data set in place of scikit-learn's digits, for the tests of the examples and the notebooks."""

from __future__ import annotations

from typing import Any

import pytest

_load = pytest.importorskip("sklearn.datasets").load_digits


def few_digits(return_X_y: bool = False) -> Any:
    """In place of `load_digits`: the first 320 of its 1,797 images, of which most programs make full batches only."""
    digits = _load()
    few = type(digits)(data=digits.data[:320], target=digits.target[:320])
    return (few.data, few.target) if return_X_y else few

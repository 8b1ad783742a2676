"""Confidence intervals of accuracies."""

from typing import Any

import numpy as np


def lower_confidence_bound(successes: Any, n: int, alpha: float) -> np.ndarray:
    """The one-sided lower bound of a probability by Clopper and Pearson, at level 1 − alpha."""
    from scipy.special import betaincinv  # its import takes a quarter of a second

    successes = np.asarray(successes, np.float64)
    return np.where(successes > 0, betaincinv(np.maximum(successes, 1), n - successes + 1, alpha), 0.0)


def confidence_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of Clopper and Pearson for a probability: it contains the truth with probability `level`, at least."""
    tail = (1 - level) / 2
    return float(lower_confidence_bound(successes, n, tail)), 1 - float(lower_confidence_bound(n - successes, n, tail))


def interval_text(successes: int, n: int) -> str:
    """The 95 % interval of an accuracy, as `0.85–0.93`."""
    low, high = confidence_interval(successes, n)
    return f"{low:.2f}–{high:.2f}"

"""Confidence intervals of accuracies."""


def confidence_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of Clopper and Pearson for a probability.

    Args:
        successes: the number of successes.
        n: the number of examples.
        level: the probability with which the interval contains the truth, at least.
    """
    from scipy.special import betaincinv  # its import takes a quarter of a second

    tail = (1 - level) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def interval_text(successes: int, n: int) -> str:
    """The 95 % interval of an accuracy, as `0.85–0.93`."""
    low, high = confidence_interval(successes, n)
    return f"{low:.2f}–{high:.2f}"

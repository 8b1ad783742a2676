"""Learning rates over a run, as functions of the plan."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from fulmen.mode import Plan
from fulmen.tree import Tree, static

__all__ = ["Schedule", "cosine"]


class Schedule(Tree):
    """A function of the plan that gives an optax schedule. Its numbers are data, its lengths come from the plan.

    Subclass it with fields and `__call__(self, plan)`.
    """

    def __call__(self, plan: Plan) -> Any:
        raise NotImplementedError


class Cosine(Schedule):
    """See `cosine`."""

    peak: float
    warmup: float = static(default=0.0)
    end: float = 0.0

    def __call__(self, plan: Plan) -> Any:
        total = length(plan, "cosine")
        warmup = round(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if warmup >= total:
            raise ValueError(f"cosine: a warm-up of {warmup} steps does not fit into a run of {total}.")
        # Of height 1, and scaled outside: the peak is data, and optax's own warm-up looks at its value.
        decay = optax.cosine_decay_schedule(1.0, total - warmup)

        def rate(step: Any) -> Any:
            rising = self.peak * jnp.minimum(step / max(warmup, 1), 1.0)
            falling = self.end + (self.peak - self.end) * decay(jnp.maximum(step - warmup, 0))
            return jnp.where(step < warmup, rising, falling)

        return rate


def cosine(peak: float, *, warmup: float = 0.0, end: float = 0.0) -> Schedule:
    """From `peak` down to `end` along half a cosine over the whole run (Loshchilov and Hutter 2017, arXiv:1608.03983).

    Args:
        peak: the highest learning rate.
        warmup: steps of linear warm-up from 0, or, below 1, their fraction of the run.
        end: the last learning rate.

    >>> round(float(fm.cosine(1.0)(fm.Plan(total_steps=100))(50)), 3)
    0.5
    """
    return Cosine(peak=peak, warmup=warmup, end=end)


def length(plan: Plan, what: str) -> int:
    """The plan's total of steps; raises where it is not known."""
    if plan.total_steps is None:
        raise ValueError(f"{what} spans the run, whose length is not known: give `epochs=` or `steps=` to `setup` or `fit`.")
    return plan.total_steps

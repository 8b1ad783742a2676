"""`plateau`: a learning rate that falls when the loss no longer does."""

from __future__ import annotations

from typing import Any

import optax
import optax.contrib

from fulmen.core.fields import static
from fulmen.core.mode import Plan
from fulmen.optimizers.optimizer import Built, Enclosing, build

__all__ = ["plateau"]


class Plateau(Enclosing):
    """See `plateau`."""

    factor: float = static(default=0.1)
    patience: int = 10
    cooldown: int = 0
    tolerance: float = static(default=1e-4)
    floor: float = static(default=0.0)

    def built(self, system: Any, plan: Plan) -> Built:
        inside = build(self.optimizer, system, plan)
        lowered = optax.contrib.reduce_on_plateau(
            factor=self.factor,
            patience=self.patience,
            rtol=self.tolerance,
            cooldown=self.cooldown,
            accumulation_size=plan.steps_per_epoch or 1,
            min_scale=self.floor,
        )
        return inside.followed_by(lowered, lambda state: state.scale)


def plateau(
    optimizer: Any,
    *,
    factor: float = 0.1,
    patience: int = 10,
    cooldown: int = 0,
    tolerance: float = 1e-4,
    floor: float = 0.0,
) -> Plateau:
    """An optimizer whose steps are scaled down by `factor` when the training loss has not fallen for `patience` epochs.

    The loss is the mean over as many steps as an epoch has. The logged `lr` is the one after scaling.

    Args:
        optimizer: what may be given as an optimizer, such as `optax.adam(1e-3)` or `fm.optimizers.Optimizer(optax.adam, 1e-3)`; a
            constructor takes the `lr=` that is given beside `optimizer=`.
        factor: by what to multiply, between 0 and 1.
        patience: epochs without a fall before the steps are made smaller.
        cooldown: epochs after that in which nothing is counted.
        tolerance: the share of the best loss so far by which a lower one must be lower.
        floor: the smallest scale.

    >>> fm.plateau(fm.optimizers.Optimizer(optax.adam, 1e-3), patience=5)
    Plateau(optimizer=adam(0.001), factor=0.1, patience=5, cooldown=0, tolerance=0.0001, floor=0.0)
    """
    return Plateau(optimizer, factor=factor, patience=patience, cooldown=cooldown, tolerance=tolerance, floor=floor)

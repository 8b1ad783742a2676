"""`plateau`: a learning rate that is reduced when the loss stops falling."""

from typing import Any

import optax
import optax.contrib

from fulmen.core import Plan, static
from fulmen.optimizers.optimizer import Built, Enclosing, build


class Plateau(Enclosing):
    """See `plateau`."""

    factor: float = static(default=0.1)
    patience: int = 10
    cooldown: int = 0
    tolerance: float = static(default=1e-4)
    floor: float = static(default=0.0)

    def built(self, system: Any, plan: Plan) -> Built:
        reduction = optax.contrib.reduce_on_plateau(
            factor=self.factor,
            patience=self.patience,
            rtol=self.tolerance,
            cooldown=self.cooldown,
            accumulation_size=plan.steps_per_epoch or 1,
            min_scale=self.floor,
        )
        return build(self.optimizer, system, plan).followed_by(reduction, lambda state: state.scale)


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

    The loss is the mean over the steps of an epoch. The logged `lr` includes the scale.

    Args:
        optimizer: an optimizer of any form; a constructor gets the `lr=` of `setup` or `fit`.
        factor: factor of each reduction, between 0 and 1.
        patience: number of epochs without an improvement before a reduction.
        cooldown: number of epochs after a reduction that do not count.
        tolerance: the smallest relative improvement of the best loss.
        floor: the smallest scale.

    >>> fm.plateau(fm.optimizers.Optimizer(optax.adam, 1e-3), patience=5)
    Plateau(optimizer=adam(0.001), factor=0.1, patience=5, cooldown=0, tolerance=0.0001, floor=0.0)
    """
    return Plateau(optimizer, factor=factor, patience=patience, cooldown=cooldown, tolerance=tolerance, floor=floor)

"""Optimizers: as values, wrapped by others, and assigned to parameters."""

from fulmen.optimizers.assignment import MissingOptimizerError, groups, warn_of_unreached_ends
from fulmen.optimizers.enclosing import every, plateau, unfreeze
from fulmen.optimizers.layer_rates import depths, layerwise
from fulmen.optimizers.optimizer import Enclosing, FrozenMarker, Optimizer, frozen, is_constructor
from fulmen.optimizers.rate_changes import learning_rate, schedule_is_replaced, with_learning_rate, with_schedule
from fulmen.optimizers.schedule_free import evaluation_weights

__all__ = [
    "MissingOptimizerError", "Optimizer", "depths", "evaluation_weights", "every", "frozen", "layerwise", "plateau",
    "unfreeze",
]  # fmt: skip

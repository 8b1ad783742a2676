"""Optimizers: as values, wrapped by others, and assigned to parameters."""

from fulmen.optimizers.assignment import *
from fulmen.optimizers.layer_rates import *
from fulmen.optimizers.optimizer import *
from fulmen.optimizers.plateau_reduction import *
from fulmen.optimizers.unfreezing import *
from fulmen.optimizers.update_intervals import *

__all__ = ["MissingOptimizerError", "Optimizer", "depths", "every", "frozen", "layerwise", "plateau", "unfreeze"]

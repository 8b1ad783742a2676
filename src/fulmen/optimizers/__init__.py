"""Whose optimizer: optimizers as values, what goes around them, and which parameters each of them has."""

from fulmen.optimizers.assignment import *
from fulmen.optimizers.every import *
from fulmen.optimizers.layerwise import *
from fulmen.optimizers.optimizer import *
from fulmen.optimizers.unfreezing import *
from fulmen.optimizers.update_schedule import *

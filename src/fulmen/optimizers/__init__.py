"""Whose optimizer: optimizers as values, what goes around them, and which parameters each of them has."""

from fulmen.optimizers.assignment import *
from fulmen.optimizers.every import *
from fulmen.optimizers.layerwise import *
from fulmen.optimizers.optimizer import *
from fulmen.optimizers.turns import *
from fulmen.optimizers.unfreezing import *

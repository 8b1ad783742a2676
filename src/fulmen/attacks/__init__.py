"""Attacks: regions, optax chains on the input's gradient, and `perturb`."""

from fulmen.attacks import gradient as gradient
from fulmen.attacks.attack import *
from fulmen.attacks.function import *
from fulmen.attacks.region import *

"""Environments: what an agent acts in, written in JAX."""

from fulmen.environments.cartpole import *
from fulmen.environments.environment import *

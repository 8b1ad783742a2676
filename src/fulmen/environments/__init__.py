"""Environments for agents, written in JAX."""

from fulmen.core.verbs import observe, reset, step
from fulmen.environments.environment import CartPole, Environment, Playing, Transition, begin, play
from fulmen.environments.gymnax_environment import Gymnax

__all__ = ["CartPole", "Environment", "Gymnax", "Playing", "Transition", "begin", "observe", "play", "reset", "step"]

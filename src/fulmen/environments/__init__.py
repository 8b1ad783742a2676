"""Environments for agents, written in JAX."""

from fulmen.core.verbs import observe, reset, step
from fulmen.environments.environment import CartPole, Environment, Playing, Transition, begin, play

__all__ = ["CartPole", "Environment", "Playing", "Transition", "begin", "observe", "play", "reset", "step"]

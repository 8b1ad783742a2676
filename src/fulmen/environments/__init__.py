"""Environments: what an agent acts in, written in JAX."""

from fulmen.core.verbs import observe as observe
from fulmen.core.verbs import reset as reset
from fulmen.core.verbs import step as step
from fulmen.environments.cartpole import CartPole as CartPole
from fulmen.environments.environment import Environment as Environment
from fulmen.environments.environment import Playing as Playing
from fulmen.environments.environment import Transition as Transition
from fulmen.environments.environment import begin as begin
from fulmen.environments.environment import play as play

__all__ = ["CartPole", "Environment", "Playing", "Transition", "begin", "observe", "play", "reset", "step"]

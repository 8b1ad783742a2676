"""Who rests at a state's step."""

from __future__ import annotations

import jax

from fulmen.core.state import State
from fulmen.dispatching.registry import generation
from fulmen.optimizers import Turns, groups

__all__ = ["turns"]


def turns(state: State) -> Turns:
    """Who rests at which step of a run; the same for all states of one structure, whose arrays are not looked at."""
    programs, key = state._structure.programs, ("turns", generation())
    if key not in programs:
        found: list[Turns] = []
        # Not of the state itself: JAX's caches would keep its structure.
        find = lambda state: found.append(Turns(groups(state.system, state.optimizer, state.plan)))
        jax.eval_shape(lambda *arrays: find(State._of(*arrays, state._structure)), state._leaves, state._raw_key, state.step)
        programs[key] = found[0]
    return programs[key]

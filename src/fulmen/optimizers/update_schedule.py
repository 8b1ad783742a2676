"""`UpdateSchedule`: which leaves are not updated in which step of a run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.state import State
from fulmen.dispatching.registry import generation
from fulmen.optimizers.assignment import Group, groups

__all__ = ["NOBODY", "UpdateSchedule", "update_schedule"]

NOBODY: frozenset[str] = frozenset()


class UpdateSchedule:
    """Which leaves rest (are not updated) at which step. A group updated every n steps is updated in the last of them.

    Attributes:
        every: the intervals above 1, each once, in order; empty where everything is updated in every step.
        names: from an interval to the names of the groups that have it.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        groups = [group for group in groups if group.every > 1]
        self.every = sorted({group.every for group in groups})
        self.names = {n: [group.path or "rest" for group in groups if group.every == n] for n in self.every}
        self._paths = [frozenset(p for group in groups if group.every == n for p in group.paths) for n in self.every]
        self._sets: dict[tuple[bool, ...], frozenset[str]] = {}

    def at(self, step: int) -> frozenset[str]:
        """The paths of the leaves that rest at a step, counted from 0. Equal answers are the same object."""
        return self._set(tuple([(step + 1) % n != 0 for n in self.every]))

    def _set(self, rest: tuple[bool, ...]) -> frozenset[str]:
        if rest not in self._sets:
            self._sets[rest] = NOBODY.union(*itertools.compress(self._paths, rest))
        return self._sets[rest]

    def kinds(self) -> list[tuple[bool, ...]]:
        """For every kind of step, which intervals rest in it; first the step in which the most do."""
        # The step before m updates the intervals that divide m: the same ones as the step before their least common multiple.
        some = [c for k in range(len(self.every) + 1) for c in itertools.combinations(self.every, k)]
        return list(dict.fromkeys(tuple(math.lcm(*c) % n != 0 for n in self.every) for c in some))

    def sets(self) -> list[frozenset[str]]:
        """The resting leaves of every kind of step, as `at` gives them."""
        return [self._set(rest) for rest in self.kinds()]

    def index(self, step: Any) -> jax.Array:
        """Which of `sets()` rests at a step that is being traced."""
        rest = jnp.stack([(step + 1) % n != 0 for n in self.every])
        return (np.array(self.kinds()) == rest[None]).all(1).argmax()


def update_schedule(state: State) -> UpdateSchedule:
    """The update schedule of a state. It depends on the state's structure, not on its arrays, and is computed once for it."""
    programs, key = state.structure.programs, ("update schedule", generation())
    if key not in programs:
        found: list[UpdateSchedule] = []
        # Not of the state itself: JAX's caches would keep its structure.
        find = lambda state: found.append(UpdateSchedule(groups(state.system, state.optimizer, state.plan)))
        jax.eval_shape(
            lambda arrays, key, step: find(State.of(arrays, key, step, state.structure)),
            state.arrays,
            state.raw_key,
            state.step,
        )
        programs[key] = found[0]
    return programs[key]

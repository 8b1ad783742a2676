"""`UpdateSchedule`: which leaves are not updated in which step of a run."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import State
from fulmen.dispatching.compiled_code import generation
from fulmen.optimizers.assignment import Group, groups

NOBODY: frozenset[str] = frozenset()


class UpdateSchedule:
    """Which leaves rest (are not updated) in which step. A group with interval n is updated in the last of every n steps.

    Attributes:
        every: the different intervals above 1, in order; empty if every step updates everything.
        names: from an interval to the names of its groups.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        groups = [group for group in groups if group.every > 1]
        self.every = sorted({group.every for group in groups})
        self.names = {n: [group.path or "all others" for group in groups if group.every == n] for n in self.every}
        self._paths = [frozenset(p for group in groups if group.every == n for p in group.paths) for n in self.every]
        self._sets: dict[tuple[bool, ...], frozenset[str]] = {}

    def at(self, step: int) -> frozenset[str]:
        """The paths of the leaves that rest in a step, counted from 0. Equal results are the same object."""
        return self._set(tuple([(step + 1) % n != 0 for n in self.every]))

    def _set(self, rest: tuple[bool, ...]) -> frozenset[str]:
        if rest not in self._sets:
            self._sets[rest] = NOBODY.union(*itertools.compress(self._paths, rest))
        return self._sets[rest]

    def kinds(self) -> list[tuple[bool, ...]]:
        """For every kind of step, which intervals rest in it; the kind in which most rest is first."""
        # Step m − 1 updates the intervals that divide m, so one kind of step exists for every least common multiple.
        some = [c for k in range(len(self.every) + 1) for c in itertools.combinations(self.every, k)]
        return list(dict.fromkeys(tuple(math.lcm(*c) % n != 0 for n in self.every) for c in some))

    def sets(self) -> list[frozenset[str]]:
        """The resting leaves of every kind of step, as in `at`."""
        return [self._set(rest) for rest in self.kinds()]

    def index(self, step: Any) -> jax.Array:
        """The index in `sets()` for a step that may be a tracer."""
        rest = jnp.stack([(step + 1) % n != 0 for n in self.every])
        return (np.array(self.kinds()) == rest[None]).all(1).argmax()


def update_schedule(state: State) -> UpdateSchedule:
    """The update schedule of a state, computed once per structure, since it does not depend on the arrays."""
    programs, key = state.structure.programs, ("update schedule", generation())
    if key not in programs:
        found: list[UpdateSchedule] = []
        # Not a function of the state itself: JAX's caches would keep its structure alive.
        find = lambda state: found.append(UpdateSchedule(groups(state.system, state.optimizer, state.plan)))
        traced = lambda arrays, key, step: find(State.of(arrays, key, step, state.structure))
        jax.eval_shape(traced, state.arrays, state.raw_key, state.step)
        programs[key] = found[0]
    return programs[key]

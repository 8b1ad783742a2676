"""The compiled steps of a run: on flat leaves, those that they change donated; one step or several in a program."""

from __future__ import annotations

import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.state import State
from fulmen.devices.array_layouts import state_layouts
from fulmen.devices.placement import pinned_to, replicated
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.accumulate import Ledger
from fulmen.train.compiled_step import step_program, step_structure, traced_step


class StepPrograms:
    """The programs of a structure, one for each set of optimizer groups that rest, found from the traced step.

    Attributes:
        changing, fixed: the positions of the leaves that a step changes, and of the others.
        timed: whether a step uses the key or its number.
        in_turns: whether the groups of the optimizer are updated in turns.
        ledger: the layout of what a step logs.
    """

    def __init__(self, state: State, raw: Any) -> None:
        self.structure, self.devices, n = step_structure(state.structure), state.devices, len(state.arrays)
        self.key_shape, self.layouts = state.raw_key.shape, None if state.devices is None else state_layouts(state)
        self.schedule = update_schedule(state)
        self.in_turns = bool(self.schedule.every)
        traced = {resting: traced_step(state, raw, resting) for resting in self.schedule.sets()}
        every = [one.jaxpr for one in traced.values()]
        self.changing = [i for i in range(n) if any(each.outvars[i] is not each.invars[i] for each in every)]
        self.fixed = sorted({*range(n)} - {*self.changing})
        # An argument from the host costs microseconds: key and step are passed only to programs that use them.
        self.timed = not all(used_variables(each).isdisjoint(each.invars[n : n + 2]) for each in every)
        self.ledger = Ledger(next(iter(traced.values())).out_info[1])
        self._programs = {resting: self._program(resting, several=False) for resting in traced}

    def at(self, step: int) -> Any:
        """The program of a step: `program(changing, fixed, sums, (key, step) or None, raw)` returns the new leaves and sums."""
        return self._programs[self.schedule.at(step)]

    def of_group(self) -> Any:
        """The program of several steps, which takes a list of batches alike. Only for groups that are not updated in turns."""
        (resting,) = self._programs
        return self._program(resting, several=True)

    def _program(self, resting: frozenset[str], several: bool) -> Any:
        ledger = self.ledger
        layout = tuple(ledger.order), ledger.structure, tuple(ledger.shapes), ledger.dtype
        key, programs = (tuple(self.changing), layout, resting, several), self.structure.programs
        if key not in programs:
            # The structure keeps its programs, which must not keep it alive.
            structure: Any = weakref.ref(self.structure)
            changing, fixed = self.changing, self.fixed
            layouts = None if self.layouts is None else [self.layouts[i] for i in changing]
            devices, unused = self.devices, (np.zeros(self.key_shape, np.uint32), np.int32(0))

            def program(old: list[Any], rest: list[Any], sums: Any, time: Any, raw: Any) -> Any:
                values = dict(zip([*changing, *fixed], [*old, *rest], strict=True))
                leaves = [values[i] for i in range(len(values))]
                new, logs = step_program(structure(), leaves, *(time or unused), raw, resting)
                return [new[i] for i in changing], replicated(ledger.add(sums, logs), devices)

            def group_program(old: list[Any], rest: list[Any], sums: Any, time: Any, raws: Any) -> Any:
                def body(carried: Any, raw: Any) -> Any:
                    old, sums, step = carried
                    new, sums = program(old, rest, sums, time and (time[0], step), raw)
                    return (_strong(new), sums, step + 1), None

                first = time[1] if time else np.int32(0)
                stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *raws)
                (new, sums, _), _ = jax.lax.scan(body, (_strong(old), sums, first), stacked)
                return pinned_to(new, layouts), replicated(sums, devices)

            programs[key] = jax.jit(group_program if several else program, donate_argnums=(0, 2))
        return programs[key]


def _strong(arrays: list[Any]) -> list[Any]:
    """The arrays without JAX's weak types, which a loop does not let change."""
    return [jax.lax.convert_element_type(v, v.dtype) for v in arrays]


def used_variables(jaxpr: Any) -> set[Any]:
    """The variables of a program that its results depend on."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not used.isdisjoint(equation.outvars):
            used.update(v for v in equation.invars if not hasattr(v, "val"))
    return used

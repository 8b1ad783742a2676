"""The compiled step of a run: on flat leaves, those that it changes donated."""

from __future__ import annotations

import weakref
from typing import Any

import jax
import numpy as np

from fulmen.devices.placement import replicated
from fulmen.train.accumulate import Ledger
from fulmen.train.compiled_step import step_program


def used_variables(jaxpr: Any) -> set[Any]:
    """The variables of a program that its results depend on."""
    used = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not used.isdisjoint(equation.outvars):
            used.update(v for v in equation.invars if not hasattr(v, "val"))
    return used


def donating_program(
    structure: Any,
    updated: tuple[int, ...],
    ledger: Ledger,
    key_shape: tuple[int, ...],
    devices: Any,
    resting: frozenset[str],
) -> Any:
    """The step on flat leaves, those that it changes donated, with its logs added to one vector."""
    key = (updated, tuple(ledger.order), ledger.structure, tuple(ledger.shapes), ledger.dtype, resting)
    if key not in structure.programs:
        reference: Any = weakref.ref(structure)

        def program(changing: list[Any], fixed: list[Any], sums: Any, time: Any, raw: Any) -> Any:
            raw_key, step = time if time is not None else unused
            some, rest, chosen = iter(changing), iter(fixed), set(updated)
            leaves = [next(some) if i in chosen else next(rest) for i in range(len(changing) + len(fixed))]
            new, logs = step_program(reference(), leaves, raw_key, step, raw, resting)
            return [new[i] for i in updated], replicated(ledger.add(sums, logs), devices)

        unused = np.zeros(key_shape, np.uint32), np.int32(0)
        structure.programs[key] = jax.jit(program, donate_argnums=(0, 2))
    return structure.programs[key]

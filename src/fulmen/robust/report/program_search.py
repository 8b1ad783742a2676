"""The operations of a traced program on the path from its inputs to its outputs."""

from typing import Any

import jax
import numpy as np

FLAT = {
    "round": "rounding",
    "floor": "rounding down",
    "ceil": "rounding up",
    "sign": "a sign",
    "stop_gradient": "a stopped gradient",
    "to integers": "a conversion to integers",
    "to numbers": "a comparison that is used as a number",
    "between constants": "a choice between constants",
}
"""Operations whose gradient is 0, in words."""

UNRELATED, DEPENDENT, MAXIMUM = range(3)
"""How a value depends on the inputs; MAXIMUM if as the maximum of other values, with a changed shape or type."""

_KEEP_MAXIMA = {
    "broadcast_in_dim",
    "convert_element_type",
    "is_finite",
    "max",
    "pmax",
    "reduce_max",
    "reshape",
    "select_n",
    "squeeze",
    "stop_gradient",
    "transpose",
}
_CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def dependent_operations(program: Any) -> set[str]:
    """The names of the operations on the path from a program's inputs to its outputs.

    A stopped gradient of a maximum is left out: softmax and logsumexp subtract it, which does not change their gradient.
    """
    return _search(program, [DEPENDENT] * len(program.invars), [True] * len(program.outvars))[0]


def flat_operations(names: set[str]) -> str:
    """Those operations whose gradient is 0, in words; empty if there are none."""
    return ", ".join(FLAT[name] for name in sorted(names & FLAT.keys()))


def results_depend(program: Any) -> bool:
    """Whether any result of a program depends on its inputs."""
    return any(_search(program, [DEPENDENT] * len(program.invars), [True] * len(program.outvars))[1])


def _search(program: Any, depends: list[int], used: list[bool]) -> tuple[set[str], list[int]]:
    """The names, and how each of the program's results depends on the inputs.

    `depends` is how each of its inputs depends on the outermost ones, and `used` which results are used.
    """
    from jax.extend.core import jaxprs_in_params  # a slow import

    found: set[str] = set()
    known = {var: how for var, how in zip(program.invars, depends, strict=True) if how}
    how_of = lambda var: UNRELATED if hasattr(var, "val") else known.get(var, UNRELATED)
    for equation, live in zip(program.eqns, _live(program, used), strict=True):
        into, name = [how_of(var) for var in equation.invars], equation.primitive.name
        if not any(into) or not any(live):
            continue
        out, inner = [_result(name, into)] * len(equation.outvars), list(jaxprs_in_params(equation.params))
        below: set[str] = set()
        for body in inner:
            same = len(body.invars) == len(into) and name not in ("scan", "while", "cond")
            fits = same and len(body.outvars) == len(out)
            args = into if same else [DEPENDENT] * len(body.invars)
            names, results = _search(body, args, live if fits else [True] * len(body.outvars))
            below |= names
            out = results if fits else out
        found |= {_kind(equation, name, into)} | (below - FLAT.keys() if name in _CUSTOM else below)
        known.update((var, how) for var, how in zip(equation.outvars, out, strict=True) if how)
    return found, [how_of(var) for var in program.outvars]


def _live(program: Any, used: list[bool]) -> list[list[bool]]:
    """For each equation of a program, which of its results are used."""
    needed = {var for var, is_used in zip(program.outvars, used, strict=True) if is_used and not hasattr(var, "val")}
    found = []
    for equation in reversed(program.eqns):
        live = [var in needed for var in equation.outvars]
        if any(live):
            needed |= {var for var in equation.invars if not hasattr(var, "val")}
        found.append(live)
    return found[::-1]


def _result(name: str, into: list[int]) -> int:
    """How the results of an operation depend on the inputs."""
    if name == "reduce_max" or (name in _KEEP_MAXIMA and all(how != DEPENDENT for how in into)):
        return MAXIMUM
    return DEPENDENT


def _kind(equation: Any, name: str, into: list[int]) -> str:
    """The name of an operation, with those that have a gradient of 0 told apart."""
    if name == "stop_gradient" and into[0] == MAXIMUM:
        return "stopped maximum"
    if name == "select_n" and not any(into[1:]):
        return "between constants"
    if name == "convert_element_type":
        old, new = equation.invars[0].aval.dtype, equation.params["new_dtype"]
        is_bool = [jax.numpy.issubdtype(dtype, np.bool_) for dtype in (old, new)]
        if is_bool == [True, False] and into[0] == DEPENDENT:
            return "to numbers"
        if jax.numpy.issubdtype(old, np.floating) and jax.numpy.issubdtype(new, np.integer):
            return "to integers"
    return name

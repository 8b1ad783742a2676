"""The floating-point operations of a program, from XLA's analysis, with every iteration of its loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval


def count_flops(traced: Any, program: Any) -> float:
    """The floating-point operations of a program; a multiplication and an addition are two.

    Args:
        traced: what `jax.jit(f).trace(…)` returned.
        program: the same, lowered or compiled. Before it is compiled, equal computations count twice.
    """
    jaxpr = _opened(traced.jaxpr)
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _flops(program) + _repeated(used, [("input", i) for i in range(len(used.invars))], {})[0]


def quickly_compiled(lowered: Any) -> Any:
    """A lowered program, compiled for XLA's analysis."""
    # LLVM's passes change none of the values, and take most of the compilation time on a CPU.
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return lowered.compile(compiler_options=fast if jax.default_backend() == "cpu" else None)


def _flops(program: Any) -> float:
    return float((program.cost_analysis() or {}).get("flops", 0.0))


def _repeated(jaxpr: Jaxpr, given: Sequence[Any], known: dict[Any, int]) -> tuple[float, list[Any]]:
    """The operations of all iterations of loops but their first. XLA's analysis counts the body of a loop only once.

    XLA merges equal loops over the same values, such as a model's in its loss and its metrics, so they count once here too
    (value numbering): `given` are the identities of the inputs, those of the outputs are returned too, and `known` collects
    the numbers of the computations so far.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.invars, given, strict=True))
    total = 0.0

    def value(atom: Any) -> Any:
        return str(atom) if isinstance(atom, Literal) else values.get(atom, id(atom))

    for equation in jaxpr.eqns:
        inputs, inside = tuple(map(value, equation.invars)), [*_inside(equation.params)]
        if equation.primitive.name in _CALLS and len(inside) == 1 and len(inside[0].in_avals) == len(inputs):
            more, outputs = _repeated(_opened(inside[0]), inputs, known)
            total += more
        else:
            key = equation.primitive.name, str(equation.params), inputs
            if key not in known:
                known[key] = len(known)
                iterations = equation.params["length"] if equation.primitive.name == "scan" else 1
                total += sum(_further_iterations(inner, iterations) for inner in inside)
            outputs = [(known[key], i) for i in range(len(equation.outvars))]
        values.update(zip(equation.outvars, outputs, strict=True))
    return total, [value(atom) for atom in jaxpr.outvars]


_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")  # calls that do not keep XLA from merging


def _further_iterations(body: ClosedJaxpr, iterations: int) -> float:
    total = iterations * _repeated(_opened(body), [("input", i) for i in range(len(body.in_avals))], {})[0]
    if iterations > 1:
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in body.in_avals]
        total += (iterations - 1) * _flops(quickly_compiled(jax.jit(jaxpr_as_fun(body)).lower(*shapes)))
    return total


def _opened(jaxpr: Any) -> Jaxpr:
    """A jaxpr without its constants; since jax 0.12 there is one class for both."""
    return jaxpr if isinstance(jaxpr, Jaxpr) else jaxpr.jaxpr


def _inside(params: dict[str, Any]) -> Iterator[ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())

"""What a step and an evaluation cost, as XLA counts it for the compiled programs; nothing is computed or allocated."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval

from fulmen.core.mode import Eval
from fulmen.core.prediction import outputs_for
from fulmen.core.state import State
from fulmen.core.structure import pack
from fulmen.core.verbs import as_batch, bind, eval_step, loss, setup
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.inspect.abstract import described
from fulmen.optimizers import MissingOptimizerError
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.compiled_step import step_program

__all__ = ["Cost", "costs"]

_LONG_RUN = 1_000_000  # steps, for schedules of a run whose length was not said


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one compiled program costs.

    Attributes:
        name: what it does: `"training step"`, `"evaluation"`, `"forward pass"`.
        examples: in its batch.
        flops: floating-point operations of one run; a multiplication and an addition are two.
        arguments: bytes of what it is given: the state (or what of it is used) and the batch.
        temporary: bytes of what it needs meanwhile and gives back, beside the state that it moves in its place.
    """

    name: str
    examples: int
    flops: float
    arguments: int
    temporary: int

    @property
    def bytes(self) -> int:
        """What is allocated at most while it runs."""
        return self.arguments + self.temporary


def costs(
    component: Any, data: Any, batch_size: int | None, optimizer: Any, lr: Any, options: dict[str, Any]
) -> tuple[list[Cost], State | None, str]:
    """What a training step and an evaluation cost, or for a model without a loss a forward pass.

    Args:
        component: a component, drawn or not, or a `State`.
        data: as for `fit`, or `jax.ShapeDtypeStruct`s in the arrays' places.
        batch_size: examples in a batch; None is the state's, or 32, and no more than the data has.
        optimizer, lr, options: as for `setup`. Without an optimizer anywhere, plain gradient descent is taken.

    Returns:
        The costs; a state with shapes in its arrays' places, or None for a model without a loss; and a remark.
    """
    state = component if isinstance(component, State) else None
    size = batch_size or (state.plan.batch_size if state is not None else None) or 32
    source = Source.with_first(jax.tree.map(lambda leaf: _stand_in(leaf, size), data))
    data = source.first(source.plan(usual=size))
    raw = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), data)
    n, remark = count(data), ""
    if state is None:
        if not loss.has(component, as_batch(component, data)):
            return [_forward_cost(component, raw, n)], None, remark
        options = {**options, "optimizer": optimizer, "lr": lr, "batch_size": n, "steps": _LONG_RUN}
        try:
            state = _dry(component, data, options)
        except MissingOptimizerError:
            if optimizer is not None:
                raise
            state = _dry(component, data, {**options, "optimizer": optax.sgd(1e-3), "lr": None})
            remark = "The step is one of plain gradient descent, since no optimizer was given."
    return (
        [
            *_step_costs(state, raw, n),
            _cost("evaluation", n, lambda state, raw: eval_step(state, raw), state, raw),
        ],
        state,
        remark,
    )


def _stand_in(leaf: Any, size: int) -> Any:
    """For a shape, an array of zeros that takes no memory, no longer than a batch."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), (min(leaf.shape[0], size), *leaf.shape[1:]) if leaf.shape else ())


def _dry(component: Any, data: Any, options: dict[str, Any]) -> State:
    """What `setup` would return, with shapes in the arrays' places."""
    return jax.eval_shape(lambda: setup(component, data, **options))


def _step_costs(state: State, raw: Any, n: int) -> list[Cost]:
    """Of the steps as `fit` runs them, whose results take the place of the state's arrays; one for each set of movers."""
    schedule, found = update_schedule(state), []
    for resting, kind in zip(schedule.sets(), schedule.kinds(), strict=True):

        def run(leaves: list[Any], key: Any, step: Any, raw: Any, resting: Any = resting) -> Any:
            return step_program(state.structure, leaves, key, step, raw, resting)

        names = [name for every in itertools.compress(schedule.every, kind) for name in schedule.names[every]]
        name = f"training step without {' and '.join(names)}" if names else "training step"
        found.append(_cost(name, n, run, state.arrays, state.raw_key, state.step, raw, donate_argnums=0))
    return found


def _forward_cost(component: Any, raw: Any, n: int) -> Cost:
    leaves, structure = pack(described(component)[0])

    def run(leaves: list[Any], raw: Any) -> Any:
        component = structure.unpack(leaves)
        return outputs_for(bind(component, Eval()), as_batch(component, raw))

    return _cost("forward pass", n, run, leaves, raw)


# As XLA counts


def _cost(name: str, examples: int, function: Any, *args: Any, donate_argnums: Any = ()) -> Cost:
    traced = jax.jit(function, donate_argnums=donate_argnums).trace(*args)
    program = _compiled(traced.lower())
    memory = program.memory_analysis()
    # Of donated arguments the results take the place.
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    jaxpr = _opened(traced.jaxpr)
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    arguments = [("input", i) for i in range(len(used.invars))]
    flops = _flops(program) + _repeated(used, arguments, {})[0]
    return Cost(name, examples, flops, memory.argument_size_in_bytes, temporary)


def _compiled(lowered: Any) -> Any:
    # LLVM's share of compiling changes neither figure, and is most of the time on a CPU.
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return lowered.compile(compiler_options=fast if jax.default_backend() == "cpu" else None)


def _flops(program: Any) -> float:
    return float((program.cost_analysis() or {}).get("flops", 0.0))


def _repeated(jaxpr: Jaxpr, given: Sequence[Any], known: dict[Any, int]) -> tuple[float, list[Any]]:
    """The operations of all rounds of loops but their first, since XLA counts the body of a loop once, however often it runs.

    Equal loops over the same values count once, as XLA merges them, such as a model's in its loss and its metrics. So values
    are numbered by what computes them.

    Args:
        jaxpr: the program.
        given: what its inputs are known as.
        known: the numbers of the computations so far.

    Returns:
        The operations, and what its outputs are known as.
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
                rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
                total += sum(_inner_rounds(inner, rounds) for inner in inside)
            outputs = [(known[key], i) for i in range(len(equation.outvars))]
        values.update(zip(equation.outvars, outputs, strict=True))
    return total, [value(atom) for atom in jaxpr.outvars]


_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")  # and none that keeps XLA from merging


def _inner_rounds(body: ClosedJaxpr, rounds: int) -> float:
    total = rounds * _repeated(_opened(body), [("input", i) for i in range(len(body.in_avals))], {})[0]
    if rounds > 1:
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in body.in_avals]
        total += (rounds - 1) * _flops(_compiled(jax.jit(jaxpr_as_fun(body)).lower(*shapes)))
    return total


def _opened(jaxpr: Any) -> Jaxpr:
    """A jaxpr without its constants; from jax 0.12 on there is one class for both."""
    return jaxpr if isinstance(jaxpr, Jaxpr) else jaxpr.jaxpr


def _inside(params: dict[str, Any]) -> Iterator[ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())

"""The cost of a step and an evaluation, from XLA's analysis of the compiled programs. Nothing is computed or allocated."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval

from fulmen.core import Eval, State, outputs_for, pack
from fulmen.core.leaves import described
from fulmen.core.verbs import as_batch, bind, eval_step, loss, setup
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.optimizers import MissingOptimizerError
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.compiled_step import step_program

_LONG_RUN = 1_000_000  # steps of schedules: the length of the run is unknown


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one compiled program.

    Attributes:
        name: `"training step"`, `"evaluation"` or `"forward pass"`.
        examples: the batch size.
        flops: floating-point operations of one call; a multiplication and an addition are two.
        arguments: bytes of the arguments: the used leaves of the state, and the batch.
        temporary: bytes of intermediate values and results, without the state that is updated in place.
    """

    name: str
    examples: int
    flops: float
    arguments: int
    temporary: int

    @property
    def bytes(self) -> int:
        """The peak memory of a call."""
        return self.arguments + self.temporary


def costs(
    component: Any, data: Any, batch_size: int | None, optimizer: Any, lr: Any, options: dict[str, Any]
) -> tuple[list[Cost], State | None, str]:
    """The costs of a training step and an evaluation, or of a forward pass for a model without a loss.

    Args:
        component: a component with or without arrays, or a `State`.
        data: as for `fit`, or `jax.ShapeDtypeStruct`s in place of arrays.
        batch_size: examples in a batch; None is the state's, or 32, and no more than the data has.
        optimizer, lr, options: as for `setup`. Without any optimizer, the step is plain gradient descent.

    Returns:
        The costs; a state with shapes in place of arrays, or None for a model without a loss; and a remark.
    """
    state = component if isinstance(component, State) else None
    size = batch_size or (state.plan.batch_size if state is not None else None) or 32
    source = Source.with_first(jax.tree.map(lambda leaf: _without_memory(leaf, size), data))
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
            remark = "The step is plain gradient descent, since there is no optimizer."
    return (
        [*_step_costs(state, raw, n), _cost("evaluation", n, lambda state, raw: eval_step(state, raw), state, raw)],
        state,
        remark,
    )


def _without_memory(leaf: Any, size: int) -> Any:
    """For a shape, an array of zeros that takes no memory, of at most `size` rows."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), (min(leaf.shape[0], size), *leaf.shape[1:]) if leaf.shape else ())


def _dry(component: Any, data: Any, options: dict[str, Any]) -> State:
    """The state of `setup`, with shapes in place of arrays."""
    return jax.eval_shape(lambda: setup(component, data, **options))


def _step_costs(state: State, raw: Any, n: int) -> list[Cost]:
    """The costs of the steps of `fit`, which update the state in place: one for each set of parts that are updated together."""
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


def _cost(name: str, examples: int, function: Any, *args: Any, donate_argnums: Any = ()) -> Cost:
    traced = jax.jit(function, donate_argnums=donate_argnums).trace(*args)
    program = _compiled(traced.lower())
    memory = program.memory_analysis()
    # Donated arguments are reused for results.
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    jaxpr = _opened(traced.jaxpr)
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    arguments = [("input", i) for i in range(len(used.invars))]
    flops = _flops(program) + _repeated(used, arguments, {})[0]
    return Cost(name, examples, flops, memory.argument_size_in_bytes, temporary)


def _compiled(lowered: Any) -> Any:
    # LLVM's passes change none of the values, and take most of the compilation time on a CPU.
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return lowered.compile(compiler_options=fast if jax.default_backend() == "cpu" else None)


def _flops(program: Any) -> float:
    return float((program.cost_analysis() or {}).get("flops", 0.0))


def _repeated(jaxpr: Jaxpr, given: Sequence[Any], known: dict[Any, int]) -> tuple[float, list[Any]]:
    """The operations of all iterations of loops but their first. XLA's analysis counts the body of a loop only once.

    XLA merges equal loops over the same values, such as a model's in its loss and its metrics, so they count once here too
    (value numbering).

    Args:
        jaxpr: the program.
        given: the identities of its inputs.
        known: the numbers of the computations so far; changed here.

    Returns:
        The operations, and the identities of the outputs.
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
        total += (iterations - 1) * _flops(_compiled(jax.jit(jaxpr_as_fun(body)).lower(*shapes)))
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

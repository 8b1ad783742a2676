"""The cost of a step and an evaluation, from XLA's analysis of the compiled programs. Nothing is computed or allocated."""

import itertools
from typing import Any

import jax
import numpy as np
import optax

from fulmen.core import Eval, State, outputs_for, pack
from fulmen.core.immutable import Immutable
from fulmen.core.leaves import described
from fulmen.core.verbs import as_batch, bind, eval_step, loss, setup
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.optimizers import MissingOptimizerError
from fulmen.optimizers.update_schedule import update_schedule
from fulmen.train.compiled_step import step_program
from fulmen.train.flop_count import count_flops, quickly_compiled

_LONG_RUN = 1_000_000  # steps of schedules: the length of the run is unknown


class Cost(Immutable):
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

    The arguments are those of `summary`; without any optimizer, the step is plain gradient descent.

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
    program = quickly_compiled(traced.lower())
    memory = program.memory_analysis()
    # Donated arguments are reused for results.
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Cost(name, examples, count_flops(traced, program), memory.argument_size_in_bytes, temporary)

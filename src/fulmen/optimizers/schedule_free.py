"""`evaluation_weights`: the averaged weights that a schedule-free optimizer keeps for evaluations."""

from typing import Any

import jax
import optax.contrib

from fulmen.compose.vectorized import over_states
from fulmen.core import State


def evaluation_weights(state: State) -> Any:
    """The system with the weights to evaluate: of parameters with a schedule-free optimizer the averaged ones.

    `optax.contrib.schedule_free_adamw` and similar optimizers train other weights than those to evaluate (Defazio et al. 2024,
    arXiv:2405.15682). `evaluate`, `predict`, `eval_step`, the validation of `fit` and calls such as `fm.loss(state, batch)` in
    `Eval` mode use this function. The state keeps the trained weights.

    Args:
        state: a `State`.

    Returns:
        The state's system; `state.system` itself if no optimizer is schedule-free.

    >>> system, data = fm.testing.tiny("classifier")
    >>> state = fm.setup(system, data, optimizer=optax.contrib.schedule_free_adamw, lr=1e-3)
    >>> fm.optimizers.evaluation_weights(state).model
    Dense(in_features=4, out_features=3, use_bias=True, weight=f32[4, 3], bias=f32[3])
    """
    return over_states(state.system, state, _averaged)[0].system if _nodes(state) else state.system


def _nodes(state: State) -> list[Any]:
    is_node = lambda v: isinstance(v, optax.contrib.ScheduleFreeState)
    return [v for v in jax.tree.leaves(state.optimizer_state, is_leaf=is_node) if is_node(v)]


def _averaged(state: State) -> tuple[State, None]:
    values, structure = jax.tree.flatten(state.system)
    for node in _nodes(state):
        for i, z in enumerate(structure.flatten_up_to(node.z)):  # None for the parameters of other optimizers
            if hasattr(z, "dtype"):
                with jax.numpy_dtype_promotion("standard"):
                    values[i] = optax.contrib.schedule_free_eval_params(node._replace(z=z), values[i]).astype(
                        values[i].dtype
                    )
    return state.replace(system=structure.unflatten(values)), None

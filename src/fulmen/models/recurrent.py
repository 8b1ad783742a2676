"""Recurrent networks: the cells `GRU` and `LSTM`, and `Scan`, which runs a cell along sequences."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, Model, remake, static
from fulmen.core.verbs import bind, forward, init, initial_carry
from fulmen.dispatching.registry import dispatch
from fulmen.models.input_checks import require_arrays
from fulmen.models.layers import Dense


class Cell(Model):
    """A recurrent cell with gates that are linear in its input and in its last output."""

    in_features: int = static(minimum=1)
    features: int = static(minimum=1)
    inputs: Dense
    recurrent: Dense


class GRU(Cell):
    """A gated recurrent unit: `cell(carry, x)` returns `(carry, y)`, where both are the new output, `(n, features)`.

    With r and z the sigmoids of the first two thirds of `inputs(x) + recurrent(carry)`, and c = tanh(i + r · j), where i and j are
    the last thirds of the two, the output is (1 − z) · c + z · carry. Cho et al. 2014, arXiv:1406.1078, with the reset gate after
    the linear map, as in PyTorch and cuDNN.

    Args:
        in_features: size of the last axis of the input.
        features: size of the output.

    `inputs` and `recurrent` are `Dense` layers with 3 · features outputs.

    >>> cell = fm.init(fm.models.GRU(4, 8), jax.random.key(0))
    >>> carry, y = cell(jnp.zeros((2, 8)), jnp.ones((2, 4)))
    >>> y.shape
    (2, 8)
    """

    def __init__(self, in_features: int, features: int) -> None:
        self.in_features, self.features = in_features, features
        self.inputs, self.recurrent = Dense(in_features, 3 * features), Dense(features, 3 * features)


class LSTM(Cell):
    """Long short-term memory: `cell(carry, x)` returns `(carry, y)`, with a carry `(y, memory)`, both `(n, features)`.

    With i, f, g, o the quarters of `inputs(x) + recurrent(y)`, memory' = σ(f) · memory + σ(i) · tanh(g) and y' = σ(o) · tanh(memory').
    Hochreiter and Schmidhuber 1997, "Long short-term memory". `init` sets the biases of f in `inputs` to 1, so that the
    memory is kept at first (Jozefowicz, Zaremba and Sutskever 2015).

    Args:
        in_features: size of the last axis of the input.
        features: size of the output and of the memory.

    `inputs` and `recurrent` are `Dense` layers with 4 · features outputs.

    >>> cell = fm.init(fm.models.LSTM(4, 8), jax.random.key(0))
    >>> (y, memory), same = cell((jnp.zeros((2, 8)), jnp.zeros((2, 8))), jnp.ones((2, 4)))
    >>> y.shape, memory.shape
    ((2, 8), (2, 8))
    """

    def __init__(self, in_features: int, features: int) -> None:
        self.in_features, self.features = in_features, features
        self.inputs, self.recurrent = Dense(in_features, 4 * features), Dense(features, 4 * features, use_bias=False)


class Scan(Model):
    """A cell run along sequences: `(n, length, …)` to `(n, length, …)`, by `jax.lax.scan`.

    `scan(xs)` starts with `fm.models.initial_carry` and returns the outputs. `scan(xs, carry)` starts with a given carry and
    returns `(carry, ys)`, the last carry and the outputs. In training, a `Dropout` in the cell draws a new mask in each step.

    Args:
        cell: a model with `forward(cell, carry, x)` that returns `(carry, y)`, such as `GRU` or `LSTM`.
        reverse: whether to run from the end to the start.
        unroll: the number of steps in one iteration of the loop.

    >>> net = fm.models.Chain(fm.models.Scan(fm.models.GRU(4, 8)), fm.models.Dense(8, 1))
    >>> net = fm.init(net, jax.random.key(0))
    >>> net(jnp.ones((2, 10, 4))).shape
    (2, 10, 1)
    >>> carry, ys = net[0](jnp.ones((2, 10, 4)), jnp.zeros((2, 8)))
    >>> carry.shape, ys.shape
    ((2, 8), (2, 10, 8))
    """

    cell: Component
    reverse: bool = False
    unroll: int = static(minimum=1, default=1)


@dispatch
def init(cell: LSTM, key):
    fresh = init.invoke(Component, object)(cell, key)
    forget = jnp.arange(4 * cell.features) // cell.features == 1
    bias = jnp.where(forget, jnp.ones_like(fresh.inputs.bias), fresh.inputs.bias)
    return remake(fresh, {"inputs": remake(fresh.inputs, {"bias": bias})})


@dispatch
def initial_carry(cell: GRU, x):
    return _zeros(cell, x)


@dispatch
def initial_carry(cell: LSTM, x):
    return _zeros(cell, x), _zeros(cell, x)


def _zeros(cell: Cell, x: Any) -> jax.Array:
    (weight,) = require_arrays(cell.recurrent, "weight")
    return jnp.zeros((*x.shape[:-1], cell.features), weight.dtype)


@dispatch
def forward(cell: GRU, carry, x):
    inputs, recurrent = forward(cell.inputs, x), forward(cell.recurrent, carry)
    features = cell.features
    r, z = jnp.split(jax.nn.sigmoid(inputs[..., : 2 * features] + recurrent[..., : 2 * features]), 2, -1)
    candidate = jnp.tanh(inputs[..., 2 * features :] + r * recurrent[..., 2 * features :])
    y = (1 - z) * candidate + z * carry
    return y, y


@dispatch
def forward(cell: LSTM, carry, x):
    y, memory = carry
    i, f, g, o = jnp.split(forward(cell.inputs, x) + forward(cell.recurrent, y), 4, -1)
    memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
    y = jax.nn.sigmoid(o) * jnp.tanh(memory)
    return (y, memory), y


@dispatch
def bind(scan: Scan, mode):
    # `forward` binds the cell in each step, with other random keys.
    return remake(scan, {"mode": mode.over(scan.mode)})


@dispatch
def forward(scan: Scan, xs):
    xs = _sequences(scan, xs)
    return _scanned(scan, xs, initial_carry(scan.cell, jax.tree.map(lambda v: v[:, 0], xs)))[1]


@dispatch
def forward(scan: Scan, xs, carry):
    return _scanned(scan, _sequences(scan, xs), carry)


def _sequences(scan: Scan, xs: Any) -> Any:
    xs = jax.tree.map(jnp.asarray, xs)
    for v in jax.tree.leaves(xs):
        if v.ndim < 2 or not v.shape[1]:
            raise ValueError(f"Scan takes sequences (n, length, …) of at least one step, got {v.shape}.")
    return xs


def _scanned(scan: Scan, xs: Any, carry: Any) -> Any:
    mode = None if scan.mode is None else scan.mode.at("cell")

    def step(carry: Any, now: Any) -> Any:
        i, x = now
        return forward(scan.cell if mode is None else bind(scan.cell, mode.fold(i)), carry, x)

    by_step = jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), xs)
    numbers = jnp.arange(jax.tree.leaves(by_step)[0].shape[0], dtype=jnp.uint32)
    carry, ys = jax.lax.scan(step, carry, (numbers, by_step), reverse=scan.reverse, unroll=scan.unroll)
    return carry, jax.tree.map(lambda v: jnp.swapaxes(v, 0, 1), ys)

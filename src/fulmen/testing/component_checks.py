"""`check_component` and `check_layer`: assertions on systems, models and layers."""

import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm
from fulmen.compose.example_means import per_example
from fulmen.core import Batch, Component, Model, Train
from fulmen.core.leaves import BUFFER, PARAMETER, drawn, leaves
from fulmen.core.verbs import as_batch, loss, setup, train_step
from fulmen.data.arrays import count
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch
from fulmen.testing.equality import bits, require_close, same
from fulmen.train.step import training_loss


def check_component(component: Any, data: Any, *, optimizer: Any = optax.sgd, lr: Any = 0.1) -> None:
    """Check everything that training relies on, for a system or a model with a loss.

    `fm.check` finds no error (its warnings become Python warnings). The loss is the same with and without jit, and for the
    same key. A step gives finite values, changes parameters or buffers if there are any, and does not change its arguments.
    The tree can be flattened and unflattened with any leaves. If the component is per example, an evaluation with a padded
    last batch equals one on all data at once. A saved state is loaded bit for bit (if `safetensors` is installed).

    Args:
        component: a component with or without arrays.
        data: as for `fit`, at least two examples. Of a source that makes its batches, the first is used.
        optimizer, lr: as in `setup`; `optimizer=None, lr=None` for those that the component configures.

    Raises:
        AssertionError: if a property does not hold.
    """
    if not any(leaf.role == PARAMETER for leaf in drawn(component)):
        optimizer = lr = None
    source = Source.with_first(data)
    data = source.data if source.in_memory else source.first(source.plan())
    report = fm.check(component, data, optimizer=optimizer, lr=lr)
    assert report.ok, f"fm.check found errors.\n{report}"
    for found in report.warnings:
        warnings.warn(f"fm.check({report.name}): {found.what} ({found.where}): {found.advice}", stacklevel=2)
    n = count(data)
    state = setup(component, data, optimizer=optimizer, lr=lr, batch_size=n)
    _check_tree(state.system)
    _check_loss(state, data)
    _check_step(state, data)
    if per_example(state.system) and n > 1 and not getattr(data, "repeats_examples", False):  # such data is not evaluated
        whole, parts = (fm.evaluate(state, data, batch_size=size) for size in (n, n - 1))
        for name, value in whole.items():
            require_close(value, parts[name], f"evaluate: {name!r} of all {n} examples at once, and with a padded batch")
    if importlib.util.find_spec("safetensors") is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            fm.save(path, state)
            assert same(bits(fm.load(path, like=state)), bits(state)), "the loaded state differs from the saved one."


def _check_tree(component: Any) -> None:
    values, structure = jax.tree.flatten(component)
    again = structure.unflatten(values)
    assert jax.tree.structure(again) == structure, "flattening and unflattening changes the structure."
    assert same(bits(component), bits(again)), "flattening and unflattening changes values."
    try:
        structure.unflatten([object()] * len(values))
    except Exception as error:
        raise AssertionError(
            f"unflattening must accept any leaves, since JAX uses placeholders while tracing ({error}): write checks in `validate`."
        ) from error


def _check_loss(state: Any, raw: Any) -> None:
    value = lambda state, raw: training_loss(state.system, raw, Train(jax.random.key(1)))
    before = bits((state, raw))
    compiled = jax.jit(value)
    plain = value(state, raw)
    assert same(before, bits((state, raw))), "a call changed the component or the data: verbs are pure."
    again = value(state, raw)
    assert same(bits(plain), bits(again)), f"the loss is {plain}, and {again} again for the same key: use only `mode.key`."
    require_close(plain, compiled(state, raw), "the loss without jit and with it")


def _check_step(state: Any, raw: Any) -> None:
    after, logs = train_step(state, raw)
    assert np.isfinite(logs["loss"]), f"the loss of a step is {logs['loss']}."
    assert same(bits(after), bits(train_step(state, raw)[0])), "the same step twice gives two different states."
    pairs = zip(leaves(state.system), leaves(after.system), strict=True)
    moving = [(old.value, new.value) for old, new in pairs if old.role in (PARAMETER, BUFFER)]
    assert all(np.isfinite(new).all() for _, new in moving), "parameters or buffers after a step are not finite."
    assert not moving or any((old != new).any() for old, new in moving), "a step changes no parameter and no buffer."


class Inputs(Batch):
    """The inputs of a layer."""

    inputs: tuple[jax.Array, ...]


class Probe(Model):
    """A layer with a loss: a weighted sum of its outputs, with different weights so that every output counts."""

    layer: Component


@dispatch
def as_batch(probe: Probe, raw: dict):
    return Inputs(tuple(raw.values()))


@dispatch
def loss(probe: Probe, batch: Inputs):
    outputs = jax.tree.leaves(probe.layer(*batch.inputs))
    for out in outputs:
        assert jnp.issubdtype(out.dtype, jnp.inexact), f"the layer's outputs are {out.dtype}, which has no gradient."
    weighted = [jnp.mean(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype)) for out in outputs]
    return sum(v.astype(jnp.float32) for v in weighted)


def check_layer(layer: Any, *inputs: Any) -> None:
    """Check a layer, or a model without a loss, as `check_component` does, with a loss of its outputs.

    Args:
        layer: with or without arrays.
        *inputs: the arguments of `forward`: arrays of at least two examples, batch axis first.

    Raises:
        AssertionError: if a property does not hold.

    >>> fm.testing.check_layer(fm.models.Dense(3, 2), jnp.eye(3))
    """
    check_component(Probe(layer), {f"input {i}": np.asarray(each) for i, each in enumerate(inputs)})

"""What every layer, objective, attack and system has to keep to, as assertions."""

from __future__ import annotations

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
from fulmen.compose.example_means import per_example, total_loss
from fulmen.core.batch import Batch
from fulmen.core.component import Component, Model
from fulmen.core.leaves import BUFFER, PARAMETER, drawn, leaves
from fulmen.core.mode import Train
from fulmen.core.prediction import Prediction
from fulmen.core.verbs import as_batch, augment, bind, loss, perturb, project, setup, train_step
from fulmen.data.arrays import check_arrays, count
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch
from fulmen.testing.tiny_systems import tiny

__all__ = ["check_attack", "check_component", "check_layer", "check_objective", "check_source"]


def check_component(component: Any, data: Any, *, optimizer: Any = optax.sgd, lr: Any = 0.1) -> None:
    """Check a system, or a model with a loss of its own, for all that training relies on.

    `fm.check` finds no error (its warnings are given as Python's). The loss is the same without jit and with it, and again
    for the same key. A step gives finite numbers, moves parameters or buffers where there are any, and leaves what it was
    given as it was. The tree can be flattened and built again of anything. An evaluation whose last batch is padded agrees
    with one of all the data at once, if the component says that it is per example. What is saved is loaded bit for bit
    (where the package `safetensors` is installed).

    Args:
        component: drawn, or a description.
        data: as for `fit`; a few examples, at least two. Of a source that makes its batches, the first is taken.
        optimizer, lr: as in `setup`; `optimizer=None, lr=None` for what the component configures itself.

    Raises:
        AssertionError: saying what does not hold.
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
    if per_example(state.system) and n > 1 and not getattr(data, "repeats_examples", False):  # which is for training alone
        whole, parts = (fm.evaluate(state, data, batch_size=size) for size in (n, n - 1))
        for name, value in whole.items():
            _require_close(value, parts[name], f"evaluate: {name!r} of all {n} examples at once, and with a padded batch")
    if importlib.util.find_spec("safetensors") is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            fm.save(path, state)
            assert _same(_bits(fm.load(path, like=state)), _bits(state)), "what was saved is not what is loaded."


def _check_tree(component: Any) -> None:
    values, structure = jax.tree.flatten(component)
    again = structure.unflatten(values)
    assert jax.tree.structure(again) == structure, "flattened and built again it has another structure."
    assert _same(_bits(component), _bits(again)), "flattened and built again it has other values."
    try:
        structure.unflatten([object()] * len(values))
    except Exception as error:
        raise AssertionError(
            f"it cannot be built of anything but arrays, as jax does while tracing ({error}): leave checks to `validate`."
        ) from error


def _check_loss(state: Any, raw: Any) -> None:
    def value(component: Any, raw: Any) -> Any:
        mode = Train(jax.random.key(1))
        batch = augment(component, as_batch(component, raw), mode.at("augment"))
        return total_loss(bind(component, mode), batch)

    before = _bits((state, raw))
    compiled = jax.jit(lambda state, raw: value(state.system, raw))
    plain = value(state.system, raw)
    assert _same(before, _bits((state, raw))), "the component or the data was changed by a call: verbs are pure."
    again = value(state.system, raw)
    assert _same(_bits(plain), _bits(again)), f"the loss is {plain}, and {again} again for the same key: draw by `mode.key`."
    _require_close(plain, compiled(state, raw), "the loss without jit and with it")


def _check_step(state: Any, raw: Any) -> None:
    after, logs = train_step(state, raw)
    assert np.isfinite(logs["loss"]), f"the loss of a step is {logs['loss']}."
    assert _same(_bits(after), _bits(train_step(state, raw)[0])), "the same step twice gives two different states."
    moving = [
        (old.value, new.value)
        for old, new in zip(leaves(state.system), leaves(after.system), strict=True)
        if old.role in (PARAMETER, BUFFER)
    ]
    assert all(np.isfinite(new).all() for _, new in moving), "a step gives parameters or buffers that are not finite."
    assert not moving or any((old != new).any() for old, new in moving), "a step moves no parameter and no buffer."


# Layers


class Inputs(Batch):
    """What a layer is called with."""

    inputs: tuple[jax.Array, ...]


class Probe(Model):
    """A layer with a loss: a sum of its outputs, each with a weight of its own, so that all of them matter."""

    layer: Component


@dispatch
def as_batch(probe: Probe, raw: dict):
    return Inputs(tuple(raw.values()))


@dispatch
def loss(probe: Probe, batch: Inputs):
    outputs = jax.tree.leaves(probe.layer(*batch.inputs))
    for out in outputs:
        assert jnp.issubdtype(out.dtype, jnp.inexact), f"the layer's outputs are of type {out.dtype}, and have no gradient."
    weighed = [jnp.mean(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype)) for out in outputs]
    return sum(v.astype(jnp.float32) for v in weighed)


def check_layer(layer: Any, *inputs: Any) -> None:
    """Check a layer, or a model without a loss, as `check_component` does, with a loss made of its outputs.

    Args:
        layer: drawn, or a description that `init` draws.
        *inputs: what `forward` takes: arrays of at least two examples, batch axis first.

    Raises:
        AssertionError: saying what does not hold.

    >>> fm.testing.check_layer(fm.models.Dense(3, 2), jnp.eye(3))
    """
    check_component(Probe(layer), {f"input {i}": np.asarray(each) for i, each in enumerate(inputs)})


# Objectives


def check_objective(objective: Any, system: Any = None, data: Any = None) -> None:
    """Check an objective by itself, and as one more term of a system, as `check_component` does.

    It gives a number or one per example, and a gradient that is finite and not 0 everywhere. If it says `per_example`, half
    of the examples alone have the same values.

    Args:
        objective: an `fm.Objective`.
        system, data: one with a field `objective`, and its data; by default the tiny classifier.

    Raises:
        AssertionError: saying what does not hold.

    >>> fm.testing.check_objective(fm.MSE(), *fm.testing.tiny("regressor"))
    """
    system, data = _given(system, data)
    component = fm.init(fm.replace(system, objective=objective), jax.random.key(0))
    batch = as_batch(component, check_arrays(data))
    n, half = len(batch), len(batch) // 2
    outputs = fm.forward(component, batch.x)
    value = jnp.asarray(loss(objective, Prediction(component.model, outputs, batch)))
    assert value.shape in ((), (n,)), (
        f"the objective gives shape {value.shape}; a number or one per example, ({n},), was expected."
    )
    if objective.per_example:
        first = loss(objective, Prediction(component.model, outputs[:half], batch[:half]))
        _require_close(
            value[:half] if value.ndim else value,
            first,
            "the values of the first half of the examples, and of that half alone",
        )
    found = fm.differentiate(component, batch, Train(jax.random.key(1)))[1]
    slopes = [np.asarray(leaf.value) for leaf in leaves(found)]
    assert all(np.isfinite(slope).all() for slope in slopes), "the gradient of the objective is not finite."
    assert any(slope.any() for slope in slopes), "the gradient of the objective is 0 everywhere."
    check_component(fm.replace(system, objective=system.objective + objective), data)


# Attacks


def check_attack(attack: Any, system: Any = None, data: Any = None) -> None:
    """Check an attack on a system, and `Adversarial` with it, as `check_component` does.

    The attacked batch has the clean one's type, shapes and targets, and lies in the region. It is the same again for the
    same key, and each example's point is the same whatever other examples there are.

    Args:
        attack: an `fm.Attack`.
        system, data: what to attack; by default the tiny classifier, whose inputs are in [0, 1].

    Raises:
        AssertionError: saying what does not hold.
    """
    system, data = _given(system, data)
    state = setup(system, data, optimizer=optax.sgd, lr=0.1)
    batch = as_batch(system, check_arrays(data))
    batch = fm.replace(batch, index=np.arange(len(batch), dtype=np.int32))
    before, key = _bits((attack, state, batch)), jax.random.key(1)
    run = jax.jit(lambda attack, state, batch, key: perturb(attack, state, batch, key))
    attacked = run(attack, state, batch, key)
    assert type(attacked) is type(batch), f"a {type(batch).__name__} became a {type(attacked).__name__}."
    shapes = [jax.tree.map(lambda v: (v.shape, str(v.dtype)), dict(x=each.x)) for each in (batch, attacked)]
    assert shapes[0] == shapes[1], f"the inputs were {shapes[0]['x']}, and are {shapes[1]['x']}."
    rest = [_bits(fm.replace(each, x=None)) for each in (batch, attacked)]
    assert _same(*rest), "something else than x was changed."
    assert np.isfinite(attacked.x).all(), "the attacked inputs are not finite."
    inside = project(attack.region, attacked.x, jnp.asarray(batch.x))
    _require_close(attacked.x, inside, f"the attacked inputs, and their nearest points in {attack.region}")
    assert _same(_bits(attacked), _bits(run(attack, state, batch, key))), "the same key gives another point."
    some = run(attack, state, batch[3:7], key)
    _require_close(attacked.x[3:7], some.x, "examples 3 to 6 attacked among others, and by themselves")
    assert _same(before, _bits((attack, state, batch))), "the attack, the state or the batch was changed by a call."
    check_component(fm.Adversarial(system, attack), data)


# Data


def check_source(data: Any, *, batch_size: int | None = None) -> None:
    """Check data of one's own type, of which `batches` gives the epochs.

    Two epochs can be read, their batches alike and finite. There are as many as `steps_per_epoch` says, if it says so. Begun
    in its midst, if `batches` takes `start`, an epoch has the batches that it has there.

    Args:
        data: a source; no iterator, which could be read but once.
        batch_size: examples in a batch, for data that is cut.

    Raises:
        AssertionError: saying what does not hold; and what reading raises.

    >>> fm.testing.check_source([(jnp.ones((2, 3)), jnp.arange(2)) for _ in range(3)])
    """
    source = Source.of(data)
    assert not source.is_iterator, f"{source.name} can be read but once: give a function that makes it."
    plan = source.plan(batch_size, epochs=2, seed=0)
    declared, plan = plan.steps_per_epoch, fm.replace(plan, steps_per_epoch=None)
    whole, _ = ([*source.read(plan, number, depth=0)] for number in range(2))
    n = len(whole)
    assert declared in (None, n), f"{source.name} has {n} batches, and declares {declared}: see `steps_per_epoch`."
    for start in {1, n - 1} & {*range(1, n)} if source.reader.seeks() else ():
        rest = [*source.read(plan, 0, start, depth=0)]
        same = len(rest) == n - start and all(_same(_bits(a), _bits(b)) for a, b in zip(rest, whole[start:]))
        assert same, f"{source.name} gives other batches from batch {start} on when it is begun there."


# Comparing


def _given(system: Any, data: Any) -> tuple[Any, Any]:
    if (system is None) != (data is None):
        raise TypeError("system and data were expected together, or neither of them.")
    return tiny("classifier") if system is None else (system, data)


def _bits(tree: Any) -> list[np.ndarray]:
    """Copies of the leaves as they are now."""
    found = [v for v in jax.tree.leaves(tree) if hasattr(v, "dtype") or isinstance(v, int | float | complex)]
    return [np.array(jax.random.key_data(v) if _is_key(v) else v) for v in found]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b)
    )


def _require_close(a: Any, b: Any, what: str) -> None:
    """Equal to half of the digits that the less precise of the two has."""
    a, b = np.asarray(a), np.asarray(b)
    kinds = [v.dtype for v in (a, b) if jnp.issubdtype(v.dtype, jnp.floating)]
    tolerance = float(max(jnp.finfo(kind).eps for kind in kinds) ** 0.5) if kinds else 0.0
    np.testing.assert_allclose(
        b.astype(np.float64),
        a.astype(np.float64),
        rtol=max(tolerance, 1e-4),
        atol=max(tolerance, 1e-4) * 0.1,
        err_msg=f"{what}, differ.",
    )

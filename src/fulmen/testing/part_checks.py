"""`check_objective`, `check_attack` and `check_source`: assertions on the parts of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm
from fulmen.core import Prediction, Train
from fulmen.core.leaves import leaves
from fulmen.core.verbs import as_batch, loss, perturb, project, setup
from fulmen.data.arrays import check_arrays
from fulmen.data.source import Source
from fulmen.testing.component_checks import check_component
from fulmen.testing.equality import bits, require_close, same
from fulmen.testing.tiny_systems import tiny


def check_objective(objective: Any, system: Any = None, data: Any = None) -> None:
    """Check an objective alone, and as an additional term of a system, as `check_component` does.

    It gives one number, or one per example, and a gradient that is finite and not 0 everywhere. If it has `per_example`, the
    values of the first half of the examples do not depend on the other half.

    Args:
        objective: an `fm.Objective`.
        system, data: a system with a field `objective`, and its data; None for the tiny classifier.

    Raises:
        AssertionError: if a property does not hold.

    >>> fm.testing.check_objective(fm.MSE(), *fm.testing.tiny("regressor"))
    """
    system, data = _system_and_data(system, data)
    component = fm.init(fm.replace(system, objective=objective), jax.random.key(0))
    batch = as_batch(component, check_arrays(data))
    n, half = len(batch), len(batch) // 2
    outputs = fm.forward(component, batch.x)
    value = jnp.asarray(loss(objective, Prediction(component.model, outputs, batch)))
    assert value.shape in ((), (n,)), (
        f"the objective must give one number or one per example, ({n},), got shape {value.shape}."
    )
    if objective.per_example:
        first = loss(objective, Prediction(component.model, outputs[:half], batch[:half]))
        whole = value[:half] if value.ndim else value
        require_close(whole, first, "the values of the first half of the examples, and of that half alone")
    gradient = jax.jit(fm.differentiate)(component, batch, Train(jax.random.key(1)))[1]
    slopes = [np.asarray(leaf.value) for leaf in leaves(gradient)]
    assert all(np.isfinite(slope).all() for slope in slopes), "the gradient of the objective is not finite."
    assert any(slope.any() for slope in slopes), "the gradient of the objective is 0 everywhere."
    check_component(fm.replace(system, objective=system.objective + objective), data)


def check_attack(attack: Any, system: Any = None, data: Any = None) -> None:
    """Check an attack on a system, and `Adversarial` with it, as `check_component` does.

    The attacked batch has the type, shapes and targets of the clean one, and is in the region. It is the same for the same
    key, and the result for an example does not depend on the other examples.

    Args:
        attack: an `fm.Attack`.
        system, data: the system to attack, and its data; None for the tiny classifier, whose inputs are in [0, 1].

    Raises:
        AssertionError: if a property does not hold.
    """
    system, data = _system_and_data(system, data)
    state = setup(system, data, optimizer=optax.sgd, lr=0.1)
    batch = as_batch(system, check_arrays(data))
    batch = fm.replace(batch, index=np.arange(len(batch), dtype=np.int32))
    before, key = bits((attack, state, batch)), jax.random.key(1)
    run = jax.jit(lambda attack, state, batch, key: perturb(attack, state, batch, key))
    attacked = run(attack, state, batch, key)
    assert type(attacked) is type(batch), f"the attack must return a {type(batch).__name__}, got {type(attacked).__name__}."
    shapes = [jax.tree.map(lambda v: (v.shape, str(v.dtype)), each.x) for each in (batch, attacked)]
    assert shapes[0] == shapes[1], f"the attacked inputs must have shape and type {shapes[0]}, got {shapes[1]}."
    rest = [bits(fm.replace(each, x=None)) for each in (batch, attacked)]
    assert same(*rest), "the attack must not change fields other than x."
    assert np.isfinite(attacked.x).all(), "the attacked inputs are not finite."
    inside = project(attack.region, attacked.x, jnp.asarray(batch.x))
    require_close(attacked.x, inside, f"the attacked inputs, and their nearest points in {attack.region}")
    assert same(bits(attacked), bits(run(attack, state, batch, key))), "the same key gives different results."
    some = run(attack, state, batch[3:7], key)
    require_close(attacked.x[3:7], some.x, "examples 3 to 6 attacked with others, and by themselves")
    assert same(before, bits((attack, state, batch))), "a call changed the attack, the state or the batch."
    check_component(fm.Adversarial(system, attack), data)


def check_source(data: Any, *, batch_size: int | None = None) -> None:
    """Check data of a user-defined type with a method of `batches`.

    Two epochs can be read; their batches have one structure, and are finite. Their number is that of `steps_per_epoch`, if it
    gives one. If `batches` takes `start`, an epoch that begins at a later batch has the same batches from there on.

    Args:
        data: a source that can be iterated more than once.
        batch_size: examples in a batch, for data that is cut into batches.

    Raises:
        AssertionError: if a property does not hold. Errors from reading are raised as they are.

    >>> fm.testing.check_source([(jnp.ones((2, 3)), jnp.arange(2)) for _ in range(3)])
    """
    source = Source.of(data)
    assert not source.is_iterator, f"{source.name} can be iterated only once: give a function that makes it."
    plan = source.plan(batch_size, epochs=2, seed=0)
    declared, plan = plan.steps_per_epoch, fm.replace(plan, steps_per_epoch=None)
    whole, _ = ([*source.read(plan, number, depth=0)] for number in range(2))
    n = len(whole)
    assert declared in (None, n), f"{source.name} has {n} batches, and declares {declared}: see `steps_per_epoch`."
    for start in {1, n - 1} & {*range(1, n)} if source.reader.seeks() else ():
        rest = [*source.read(plan, 0, start, depth=0)]
        equal = len(rest) == n - start and all(same(bits(a), bits(b)) for a, b in zip(rest, whole[start:]))
        assert equal, f"{source.name} gives different batches when an epoch is read from batch {start} on."


def _system_and_data(system: Any, data: Any) -> tuple[Any, Any]:
    if (system is None) != (data is None):
        raise TypeError("system and data must be given together, or neither of them.")
    return tiny("classifier") if system is None else (system, data)

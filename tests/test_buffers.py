"""`record`: state that is no parameter, moved by a training step and by nothing else."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch, record


class Uses(fm.Model):
    """Its loss is a function of it."""

    weight: jax.Array
    buffer: fm.Buffer
    function: Callable


@dispatch
def loss(model: Uses, batch):
    return model.function(model)


BATCH = fm.Unlabeled(np.zeros((1, 1), np.float32))
NEW = jnp.float32(0.1)


def differentiated(function, value=0.0):
    """The buffer after a step, its gradient, and the weight's."""
    model = Uses(jnp.float32(1.0), fm.Buffer(jnp.asarray(value)), function)
    _, gradients, moved, _ = fm.differentiate(model, BATCH, fm.Train(jax.random.key(0)))
    assert gradients.buffer.value is None if isinstance(gradients.buffer, fm.Buffer) else gradients.buffer is None
    return moved.buffer.value, gradients.weight


def scan(model):
    return jax.lax.scan(lambda c, _: (record(c, model.buffer, NEW), None), model.weight, None, length=25)[0]


def vmap(model):
    return jax.vmap(lambda x: record(x * model.weight, model.buffer, x))(jnp.arange(8.0)).sum()


def loop(model):
    def body(i, c):
        return record(c, model.buffer, NEW)

    return jax.lax.fori_loop(0, 25, body, model.weight)


def remat(model):
    return jax.checkpoint(lambda buffer, w: record(w, buffer, NEW))(model.buffer, model.weight)


def remat_in_scan(model):
    step = jax.checkpoint(lambda c, _: (record(c, model.buffer, NEW), None))
    return jax.lax.scan(step, model.weight, None, length=5)[0]


def nested(model):
    """What reads the buffer between two uses sees its old value."""
    first = record(model.weight, model.buffer, model.buffer.value + 1)
    return record(first, model.buffer, model.buffer.value + 3)


PROPERTIES = {
    "one use": (lambda m: record(m.weight, m.buffer, NEW), 0.0, 0.1),
    "25 uses": (lambda m: sum(record(m.weight, m.buffer, NEW) for _ in range(25)), 0.0, 0.1),
    "scan": (scan, 0.0, 0.1),
    "fori_loop": (loop, 0.0, 0.1),
    "remat": (remat, 0.0, 0.1),
    "remat in scan": (remat_in_scan, 0.0, 0.1),
    "per example": (vmap, 0.0, 3.5),
    "a loss scaled by 1024": (lambda m: 1024 * record(m.weight, m.buffer, NEW), 0.0, 0.1),
    "a loss scaled by 0": (lambda m: 0 * record(m.weight, m.buffer, NEW), 0.0, 0.1),
    "only read": (lambda m: (m.weight - m.buffer.value) ** 2, 0.3, 0.3),
    "two uses": (nested, 1.0, 3.0),
    "the loss does not depend on it": (lambda m: m.weight + 0 * len([record(m.weight, m.buffer, NEW)]), 0.2, 0.2),
    "a parameter's value": (lambda m: record(m.weight**2, m.buffer, m.weight * 5), 0.0, 5.0),
    "jit inside": (lambda m: jax.jit(lambda w, b: record(w, b, NEW))(m.weight, m.buffer), 0.0, 0.1),
    "cond": (lambda m: jax.lax.cond(m.weight > 0, lambda w: record(w, m.buffer, NEW), lambda w: w, m.weight), 0.2, 0.1),
    "cond, the other way": (
        lambda m: jax.lax.cond(m.weight < 0, lambda w: record(w, m.buffer, NEW), lambda w: w, m.weight),
        0.2,
        0.2,
    ),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", PROPERTIES)
def test_what_a_buffer_becomes(name, jit):
    function, before, after = PROPERTIES[name]
    run = jax.jit(lambda: differentiated(function, before)) if jit else lambda: differentiated(function, before)
    np.testing.assert_allclose(run()[0], np.float32(after), rtol=1e-6)


def test_it_is_bit_for_bit_what_was_recorded():
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    moved, _ = differentiated(lambda m: record(m.weight, m.buffer, jnp.asarray(values)), np.ones_like(values))
    np.testing.assert_array_equal(moved, values)
    kept, _ = differentiated(lambda m: m.weight, values)
    np.testing.assert_array_equal(kept, values)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bfloat16, jnp.float16, jnp.bool_])
def test_a_buffer_keeps_its_type(dtype):
    def count(m):
        return record(m.weight, m.buffer, (m.buffer.value.astype(jnp.int32) + 1).astype(dtype))

    moved, _ = differentiated(count, jnp.asarray(7, jnp.int32).astype(dtype))
    assert moved.dtype == dtype
    assert moved == jnp.asarray(8, jnp.int32).astype(dtype)


def test_a_buffer_with_many_numbers_or_a_tree_of_them():
    value = {"mean": jnp.zeros(3), "count": jnp.int32(3)}
    model = Uses(
        jnp.float32(1.0),
        fm.Buffer(value),
        lambda m: record(m.weight, m.buffer, {"mean": jnp.arange(3.0), "count": m.buffer.value["count"] + 1}),
    )
    _, _, moved, _ = fm.differentiate(model, BATCH, fm.Train(jax.random.key(0)))
    np.testing.assert_array_equal(moved.buffer.value["mean"], np.arange(3.0))
    assert moved.buffer.value["count"] == 4


def test_the_gradient_is_untouched():
    def plain(m):
        return jnp.sin(m.weight) * 3

    _, gradient = differentiated(lambda m: record(jnp.sin(m.weight), m.buffer, m.weight * 100) * 3)
    _, expected = differentiated(plain)
    assert gradient == expected


def test_outside_a_training_step_it_is_the_identity():
    buffer = fm.Buffer(NEW)
    y = jnp.float32(2.0)
    assert record(y, buffer, NEW + 1) is y
    value, tangent = jax.jvp(lambda x: record(x, buffer, x), (1.0,), (1.0,))
    assert (value, tangent) == (1.0, 1.0)
    assert jax.hessian(lambda x: record(x**2, buffer, x))(1.0) == 2.0


class Norm(fm.Model):
    """Counts its calls in training, and remembers the last mean."""

    weight: jax.Array
    mean: fm.Buffer
    calls: fm.Buffer


def norm():
    return Norm(jnp.ones(2), fm.Buffer(jnp.zeros(2)), fm.Buffer(jnp.int32(0)))


@dispatch
def forward(model: Norm, x):
    y = x * model.weight[None]
    y = record(y, model.mean, x.mean(0))
    return record(y, model.calls, model.calls.value + 1)


@dispatch
def loss(model: Norm, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.x), batch.y)


DATA = (np.random.default_rng(1).normal(size=(32, 2)).astype(np.float32), np.arange(32, dtype=np.int32) % 2)


@pytest.mark.parametrize("make", [norm, lambda: fm.Classifier(norm(), fm.CrossEntropy())], ids=["model", "system"])
def test_training_moves_buffers(make):
    state = fm.setup(make(), DATA, optimizer=optax.sgd(0.1), seed=0)

    def model(state):
        return getattr(state.system, "model", state.system)

    for step in range(1, 4):
        batch = tuple(v[8 * step : 8 * step + 8] for v in DATA)
        state, _ = fm.train_step(state, batch)
        assert model(state).calls.value == step
        np.testing.assert_allclose(model(state).mean.value, batch[0].mean(0), rtol=1e-6)


def test_an_attack_in_a_training_step_leaves_buffers_alone():
    """Its gradient goes through the same `record`, on the clean batch: of that nothing stays."""
    system = fm.Adversarial(fm.Classifier(norm(), fm.CrossEntropy()), fm.FGSM(fm.LinfBall(5.0)))
    state = fm.setup(system, DATA, optimizer=optax.sgd(0.1), seed=0)
    batch = fm.Labeled(*(v[:8] for v in DATA))
    attacked = fm.augment(state.system, batch, fm.Train(jax.random.key(0)))
    assert (attacked.x != batch.x).all()
    state, _ = fm.train_step(state, batch)
    assert state.system.system.model.calls.value == 1
    np.testing.assert_allclose(state.system.system.model.mean.value, attacked.x.mean(0), rtol=1e-5)


def test_frozen_buffers_stay():
    class Two(fm.System):
        one: Norm
        two: fm.Frozen

    state = fm.setup(Two(norm(), fm.Frozen(norm())), DATA, optimizer=optax.sgd(0.1), seed=0)
    state, _ = fm.train_step(state, tuple(v[:8] for v in DATA))
    assert state.system.one.calls.value == 1
    assert state.system.two.part.calls.value == 0
    np.testing.assert_array_equal(state.system.two.part.mean.value, 0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda m: record(m.weight, m.buffer, jnp.ones(3)),
            ValueError,
            r"new must have the buffer's shape \(\), got \(3,\)",
        ),
        (lambda m: record(m.weight, m.weight, NEW), TypeError, "buffer must be a fm.Buffer, got a"),
        (
            lambda m: m.weight + record(jnp.int32(3), m.buffer, NEW),
            TypeError,
            "y must be floating-point numbers .* got int32",
        ),
    ],
    ids=["shape", "no buffer", "integers"],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        differentiated(call)


class Sometimes(fm.Model):
    """It records where its number says so."""

    when: jax.Array
    weight: jax.Array
    mean: fm.Buffer


@dispatch
def forward(model: Sometimes, x):
    x = x * model.weight
    recorded = lambda x: record(x, model.mean, x.mean(0))
    return jax.lax.cond(jax.lax.stop_gradient(model.when) > 0, recorded, lambda x: x, x)


class Deep(fm.Model):
    blocks: fm.models.Stacked


@dispatch
def loss(model: Deep, batch):
    return model.blocks(batch.x).sum(1)


@pytest.mark.parametrize("unroll", [False, True], ids=["scanned", "unrolled"])
def test_a_block_of_a_stack_that_does_not_record_keeps_its_buffer(unroll):
    block = Sometimes(jnp.ones(()), jnp.ones(()), fm.Buffer(jnp.full(2, 9.0)))
    stack = fm.models.Stacked(block, 3, unroll=unroll)
    stack = fm.replace(
        stack,
        {
            "blocks.when": jnp.array([1.0, 0.0, 1.0]),
            "blocks.weight": jnp.array([1.0, 2.0, 3.0]),
            "blocks.mean.value": jnp.full((3, 2), 9.0),
        },
    )
    state = fm.setup(Deep(stack), DATA[0], optimizer=optax.sgd(0.0))
    state, _ = fm.train_step(state, DATA[0])
    mean = DATA[0].mean(0)
    expected = np.stack([mean, np.full(2, 9.0), 6 * mean])
    np.testing.assert_allclose(state.system.blocks.blocks.mean.value, expected, rtol=1e-5)

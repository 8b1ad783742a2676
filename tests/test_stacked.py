"""`Stacked`: as a loop or unrolled, with remat or without, it is the same blocks in a list."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import close, train

import fulmen as fm
from fulmen import dispatch
from fulmen.models import BatchNorm, Dense, Dropout, LayerNorm, Stacked

N, WIDTH = 2, 4
OPTIONS = {
    "loop": {},
    "unrolled": {"unroll": True},
    "loop, remat": {"remat": True},
    "unrolled, remat": {"unroll": True, "remat": True},
}
ways = pytest.mark.parametrize("way", list(OPTIONS))


class Block(fm.Model):
    """Two kinds of randomness, one of them with the mode handed on by hand, and running statistics."""

    dense: Dense
    norm: BatchNorm
    drop: Dropout
    last: Dropout


@dispatch
def forward(block: Block, x, mode):
    return x + fm.forward(block.last, block.drop(jnp.tanh(block.norm(block.dense(x)))), mode)


class Listed(fm.Model):
    """What a stack stands for."""

    blocks: list[fm.Component]


@dispatch
def forward(model: Listed, x, *inputs):
    for block in model.blocks:
        x = fm.forward(block, x, *inputs)
    return x


class Top(fm.Model):
    """The stack inside another model, with a loss."""

    body: fm.Component
    head: Dense


@dispatch
def forward(top: Top, x):
    return top.head(top.body(x))


@dispatch
def loss(top: Top, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(top(batch.x), batch.y)


def block():
    return Block(Dense(WIDTH, WIDTH), BatchNorm(WIDTH), Dropout(0.3), Dropout(0.2))


def make(way):
    body = Listed([block() for _ in range(N)]) if way == "list" else Stacked(block(), N, **OPTIONS[way])
    return Top(body, Dense(WIDTH, 3))


def data(n=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, WIDTH)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32)


def stacked(tree):
    """The arrays of a list of blocks, as a stack has them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree)


@functools.cache
def after_steps(way, steps=2):
    """The state, the logs and the outputs of a few training steps."""
    state = fm.setup(make(way), data(), optimizer=optax.sgd(0.5), seed=0)
    losses = []
    for _ in range(steps):
        state, logs = fm.train_step(state, data())
        losses.append(float(logs["loss"]))
    return state, losses, np.asarray(jax.jit(fm.forward)(state.system, data()[0]))


@functools.cache
def differentiated(way):
    """A training step's loss and gradients, with respect to the parameters."""
    component = fm.init(make(way), jax.random.key(0))
    run = jax.jit(lambda component: fm.differentiate(component, fm.Labeled(*data()), train(7))[:3])
    return run(component)


def test_initial_arrays_equal_those_of_a_list(key):
    stack, listed = (fm.init(make(way), key).body for way in ("loop", "list"))
    close(stack.blocks.dense.weight, stacked([b.dense.weight for b in listed.blocks]))
    assert stack.blocks.norm.mean.value.shape == (N, WIDTH)
    assert stack.blocks.drop.rate == 0.3
    assert len({float(w[0, 0]) for w in stack.blocks.dense.weight}) == N


@ways
def test_loss_and_gradients_equal_those_of_a_list(way):
    """The loss holds the masks: with others it would be another number."""
    value, gradients, moved = differentiated(way)
    expected, listed, expected_moved = differentiated("list")
    close(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: close(a, b), gradients.body.blocks, stacked(listed.body.blocks))
    close(gradients.head.weight, listed.head.weight)
    for name in ("mean", "variance"):
        each = [getattr(b.norm, name).value for b in expected_moved.body.blocks]
        close(getattr(moved.body.blocks.norm, name).value, np.stack(each))
        assert np.ptp(np.stack(each), 0).min() > 1e-4  # each block's own


@pytest.mark.parametrize("way", ["loop", "unrolled, remat"])
def test_training_equals_that_of_a_list(way):
    state, losses, outputs = after_steps(way)
    listed, expected, expected_outputs = after_steps("list")
    close(losses, expected)
    close(outputs, expected_outputs, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: close(a, b, rtol=1e-4, atol=1e-5),
        state.system.body.blocks.norm.mean.value,
        jnp.stack([b.norm.mean.value for b in listed.system.body.blocks]),
    )


@ways
def test_dropout_masks_equal_those_of_a_list(way):
    """All ones through dropouts alone: what is left of them says which fell."""
    x = jnp.ones((64, 4))
    stack = fm.forward(Stacked(Dropout(0.2), N, **OPTIONS[way]), x, train(3))
    listed = fm.forward(Listed([Dropout(0.2) for _ in range(N)]), x, train(3))
    np.testing.assert_array_equal(stack == 0, listed == 0)
    close(stack, listed)
    once = fm.forward(Stacked(Dropout(0.2), 1, **OPTIONS[way]), x, train(3))
    assert (stack == 0).mean() > 1.5 * (once == 0).mean()  # the blocks' masks differ


def test_one_block():
    stack = fm.init(Stacked(block(), N), jax.random.key(0))
    x = data()[0]
    bound = fm.bind(stack, train(5))
    by_hand = functools.reduce(lambda x, block: block(x), bound, x)
    close(bound(x), by_hand)
    close(stack(x), functools.reduce(lambda x, block: block(x), stack, x))
    assert len(stack) == len(list(stack)) == N
    close(stack[-1].dense.weight, stack.blocks.dense.weight[N - 1])
    with pytest.raises(IndexError):
        stack[N]


def test_some_blocks(key):
    stack = fm.init(fm.models.Stacked(fm.models.Dense(4, 4), 3), key)
    x = jnp.ones((2, 4))
    np.testing.assert_allclose(stack[1:](x), stack[2](stack[1](x)), rtol=1e-6)
    assert (len(stack[:2]), len(stack[::-1]), type(stack[:2])) == (2, 3, fm.models.Stacked)


def test_nested_stacks():
    x = jnp.ones((8, 3))
    make = lambda **options: Stacked(Stacked(Dropout(0.3), 2, **options), 3, **options)
    listed = Listed([Listed([Dropout(0.3) for _ in range(2)]) for _ in range(3)])
    expected = fm.forward(listed, x, train(1))
    close(fm.forward(make(), x, train(1)), expected)
    close(fm.forward(make(unroll=True), x, train(1)), expected)


class Scaled(fm.Model):
    factor: jax.Array
    plus: float


@dispatch
def forward(layer: Scaled, x, shift):
    return x * layer.factor + layer.plus + shift


def test_given_arrays_are_repeated_and_numbers_shared():
    stack = Stacked(Scaled(jnp.float32(2.0), 1.0), 2)
    assert stack.blocks.factor.shape == (2,)
    assert float(stack(jnp.float32(1.0), 0.5)) == 2 * (2 * 1 + 1.5) + 1.5
    each = fm.replace(stack, {"blocks.plus": jnp.array([1.0, 10.0])})
    assert float(each(jnp.float32(1.0), 0.5)) == 2 * (2 * 1 + 1.5) + 10.5


class Clipped(fm.Model):
    """Its weights are kept within a distance of 0, together, and a random number is written down after each step."""

    weight: jax.Array
    noise: jax.Array


@dispatch
def after_update(layer: Clipped, batch, mode):
    size = jnp.sqrt((layer.weight**2).sum())
    return fm.replace(layer, weight=layer.weight / size, noise=jax.random.normal(mode.key))


def test_after_update_runs_for_each_block():
    weights = [jnp.full(3, i + 1.0) for i in range(2)]
    listed = Listed([Clipped(w, jnp.float32(0)) for w in weights])
    stack = fm.replace(Stacked(Clipped(jnp.zeros(3), jnp.float32(0)), 2), {"blocks.weight": jnp.stack(weights)})
    after, expected = (fm.after_update(m, None, train()) for m in (stack, listed))
    close(after.blocks.weight, np.full((2, 3), 3**-0.5))
    close(after.blocks.noise, jnp.stack([b.noise for b in expected.blocks]), rtol=0, atol=0)


@pytest.mark.parametrize("way", ["loop", "unrolled"])
def test_bad_input(way, key):
    with pytest.raises(ValueError, match=r"Stacked\.n must be at least 1, got 0"):
        fm.validate(Stacked(LayerNorm(3), 0))
    stack = fm.init(Stacked(LayerNorm(3), 2), key)
    with pytest.raises(ValueError, match=r"blocks.weight must have a leading axis of size 2.*got shape \(3, 3\)"):
        fm.validate(fm.replace(stack, {"blocks.weight": jnp.ones((3, 3))}))
    wide = fm.init(Stacked(Dense(3, 4), 2, **OPTIONS[way]), key)
    with pytest.raises(ValueError, match=r"Stacked\(Dense, 2\): .*of its input, float32\[1, 3\], got"):
        wide(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="this Dense has no weight yet"):
        Stacked(Dense(3, 3), 2, **OPTIONS[way])(jnp.ones((1, 3)))

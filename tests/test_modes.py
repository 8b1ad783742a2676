"""The mode in the tree: randomness deep inside, however the call is made."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import bind, dispatch, forward
from fulmen.core.component_methods import unbind
from fulmen.core.leaves import components
from fulmen.core.tree import remake


class Drop(fm.Model):
    """Zeros half of its input in training: where the bits of its key are 0."""

    keep: float = 0.5


@dispatch
def forward(layer: Drop, x):
    return x


@dispatch
def forward(layer: Drop, x, mode: fm.Train):
    return dropped(mode.key, x, layer.keep)


@jax.jit
def dropped(key, x, keep):
    bits = jax.random.key_data(key)[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None] & 1
    return jnp.where(jnp.resize(bits, x.shape) == 1, x / keep, 0)


class Block(fm.Model):
    drop: Drop


class Middle(fm.Model):
    blocks: list[Block]
    named: dict[str, Drop]


class Net(fm.Model):
    """Three levels, none of whose methods names a mode."""

    middle: Middle
    last: tuple[Drop, ...]


@dispatch
def forward(block: Block, x):
    return block.drop(x)


@dispatch
def forward(middle: Middle, x):
    return jnp.stack([block(x) for block in middle.blocks] + [drop(x) for drop in middle.named.values()])


@dispatch
def forward(net: Net, x):
    return jnp.concatenate([net.middle(x), jnp.stack([drop(x) for drop in net.last])])


class Remat(Net):
    """With each block under `jax.checkpoint`."""


# `jax.checkpoint` remembers what it traced by the function and its arguments, so there is one of each for all calls.
remat = {"bound": jax.checkpoint(lambda layer, x: layer(x)), "by hand": jax.checkpoint(lambda *args: forward(*args))}


@dispatch
def forward(net: Remat, x):
    layers = [*net.middle.blocks, *net.middle.named.values(), *net.last]
    return jnp.stack([remat["bound"](layer, x) for layer in layers])


class ByHand(Net):
    """Names the mode, and hands it on."""


@dispatch
def forward(net: ByHand, x, mode):
    middle = [forward(layer, x, mode) for layer in [*net.middle.blocks, *net.middle.named.values()]]
    return jnp.stack([*middle, *(forward(layer, x, mode) for layer in net.last)])


class RematByHand(Net):
    pass


@dispatch
def forward(net: RematByHand, x, mode):
    layers = [*net.middle.blocks, *net.middle.named.values(), *net.last]
    return jnp.stack([remat["by hand"](layer, x, mode) for layer in layers])


def make(kind=Net, blocks=1):
    return kind(Middle([Block(Drop()) for _ in range(blocks)], {"a": Drop()}), (Drop(),))


X = jnp.ones(64)
call = jax.jit(forward)
KINDS = [Net, Remat, ByHand, RematByHand]
CALLS = {
    "eager": lambda net, x, mode: forward(net, x, mode),
    "bound": lambda net, x, mode: bind(net, mode)(x),
    "bound twice": lambda net, x, mode: forward(bind(bind(net, mode), mode), x, mode),
    "jit": jax.jit(lambda net, x, mode: forward(net, x, mode)),
    "jit of the verb": lambda net, x, mode: call(net, x, mode),
    "jit of a bound net": lambda net, x, mode: call(bind(net, mode), x),
    "jit of a bound net and a mode": lambda net, x, mode: call(bind(net, mode), x, mode),
    "remat of all": lambda net, x, mode: jax.checkpoint(lambda net, x: forward(net, x, mode))(net, x),
    "jit of remat": jax.jit(jax.checkpoint(lambda net, x, mode: forward(net, x, mode))),
}


@pytest.fixture(scope="module")
def masks():
    """The masks of `make()` under the key 0."""
    return forward(make(), X, fm.Train(jax.random.key(0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CALLS)
def test_masks_are_the_same_however_they_are_called(kind, call, masks):
    train = fm.Train(jax.random.key(0))
    np.testing.assert_array_equal(CALLS[call](make(kind), X, train), masks)
    np.testing.assert_array_equal(CALLS[call](make(kind), X, fm.Eval()), np.ones_like(masks))
    np.testing.assert_array_equal(CALLS[call](make(kind), X, train), masks)


@pytest.mark.parametrize("kind", [Remat, RematByHand])
@pytest.mark.parametrize("order", ["train evaluate gradient", "evaluate gradient train", "gradient train evaluate"])
def test_in_whatever_order_they_are_called(kind, order, masks, monkeypatch):
    monkeypatch.setitem(remat, "bound", jax.checkpoint(lambda layer, x: layer(x)))  # which has traced nothing yet
    monkeypatch.setitem(remat, "by hand", jax.checkpoint(lambda *args: forward(*args)))
    net, train = make(kind), fm.Train(jax.random.key(0))
    calls = {
        "train": lambda: np.testing.assert_array_equal(forward(net, X, train), masks),
        "evaluate": lambda: np.testing.assert_array_equal(forward(net, X), np.ones_like(masks)),
        "gradient": lambda: np.testing.assert_array_equal(jax.grad(lambda x: forward(net, x, train).sum())(X), masks.sum(0)),
    }
    for name in order.split():
        calls[name]()


def test_layers_steps_and_seeds(masks):
    assert 0.3 < (masks == 0).mean() < 0.7
    for a, b in itertools.combinations(masks, 2):
        assert (a != b).any()
    again = forward(make(), X, fm.Train(jax.random.key(0), step=7))
    np.testing.assert_array_equal(again, masks)  # the step's number draws nothing
    other = forward(make(), X, fm.Train(jax.random.key(1)))
    assert all((a != b).any() for a, b in zip(masks, other))


def test_raw_keys_do_as_well(masks):
    np.testing.assert_array_equal(forward(make(), X, fm.Train(jax.random.PRNGKey(0))), masks)
    np.testing.assert_array_equal(jax.jit(forward)(make(), X, fm.Train(jax.random.PRNGKey(0))), masks)


def test_another_layer_changes_nobodys_masks(masks):
    more = forward(make(blocks=2), X, fm.Train(jax.random.key(0)))
    np.testing.assert_array_equal(np.delete(more, 1, 0), masks)


def test_a_mode_without_randomness_is_one_program():
    count = []

    @jax.jit
    def run(net, x, mode):
        count.append(1)
        return forward(net, x, mode)

    for seed in range(3):
        run(make(), X, fm.Train(jax.random.key(seed)))
        run(bind(make(), fm.Train(jax.random.key(seed))), X, fm.Eval())
    assert len(count) == 2


# What is bound


class Keys(fm.Model):
    """Gives its own key and another one, in each verb."""


@dispatch
def forward(model: Keys, x, mode):
    return mode.key, mode.at("another").key


@dispatch
def loss(model: Keys, batch, mode):
    return mode.key, mode.at("another").key


@dispatch
def metrics(model: Keys, batch, mode):
    return mode.key, mode.at("another").key


class Holder(fm.System):
    one: Keys
    two: Keys


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_each_verb_draws_for_itself(key):
    net = bind(Holder(Keys(), Keys()), fm.Train(key))
    found = [key for verb in (forward, fm.loss, fm.metrics) for part in (net.one, net.two) for key in verb(part, 1)]
    assert len(set(map(bits, [*found, net.one.mode.key, net.two.mode.key]))) == 14
    assert bits(forward(net.one, 1)[0]) == bits(found[0])


def test_within_a_verb_another_draws_for_itself_too(key):
    class Asks(fm.Model):
        pass

    @dispatch
    def forward(model: Asks, x, mode):
        return mode.key

    @fm.loss.dispatch
    def _(model: Asks, batch, mode):
        return mode.key, forward(model, batch, mode), forward(model, batch)

    own, handed, bound = fm.loss(Asks(), 1, fm.Train(key))
    assert bits(handed) == bits(bound) != bits(own)


def test_binding_the_same_changes_nothing(key):
    train = fm.Train(key)
    once = bind(make(), train)
    twice = bind(once, train)
    assert all(a is b for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice)))
    copied = bind(once, fm.Train(jnp.copy(key)))
    assert jax.tree.structure(copied) == jax.tree.structure(once)
    for (_, a), (_, b) in zip(components(once), components(copied)):
        assert bits(a.mode.key) == bits(b.mode.key)


def test_a_part_that_is_bound_again_with_another_key_is_bound_anew(key):
    net = bind(make(), fm.Train(key))
    other = fm.Train(jax.random.key(5))
    again, fresh = bind(net.middle, other), bind(make().middle, other)
    for (_, a), (_, b) in zip(components(again), components(fresh), strict=True):
        assert bits(a.mode.key) == bits(b.mode.key)


def test_the_outermost_mode_counts(key):
    net = bind(make(), fm.Train(key))
    np.testing.assert_array_equal(forward(net, X, fm.Eval()), np.ones((3, 64)))
    assert {type(part.mode) for _, part in components(bind(net, fm.Eval()))} == {fm.Eval}


def test_unbinding():
    net = make()
    again = unbind(bind(net, fm.Train(jax.random.key(0))))
    assert jax.tree.structure(again) == jax.tree.structure(net)
    assert all(part.mode is None for _, part in components(unbind([bind(net, fm.Eval())])[0]))


def test_a_layer_used_twice(key):
    class Twice(fm.Model):
        drop: Drop

    @dispatch
    def forward(model: Twice, x, mode: fm.Train):
        same = [forward(model.drop, x), model.drop(x), forward(model.drop, x, mode)]
        other = [forward(model.drop, x, fm.Train(jax.random.fold_in(mode.key, i))) for i in range(2)]
        return jnp.stack([*same, *other])

    for call in (forward, jax.jit(forward)):
        a, b, c, d, e = call(Twice(Drop()), X, fm.Train(key))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert (a != d).any()
        assert (d != e).any()


def test_a_layer_that_is_made_in_a_call_gets_the_mode_by_hand(key):
    class Makes(fm.Model):
        pass

    @dispatch
    def forward(model: Makes, x, mode: fm.Train):
        return forward(Drop(), x, mode), Drop()(x)

    dropped, left = forward(Makes(), X, fm.Train(key))
    assert (dropped == 0).any()
    np.testing.assert_array_equal(left, X)


# Frozen


class Picks(fm.Model):
    """Draws in evaluation too."""


@dispatch
def forward(model: Picks, x, mode: fm.Eval):
    return jax.random.uniform(mode.key)


class Careful(fm.Eval):
    pass


def test_below_frozen_is_evaluated(key):
    system = bind(fm.Frozen(Middle([Block(fm.Frozen(Drop()))], {"a": Drop()})), fm.Train(key))
    assert type(system.mode) is fm.Train
    assert {type(part.mode) for path, part in components(system) if path} == {fm.Eval}
    np.testing.assert_array_equal(system(X), np.ones((2, 64)))
    np.testing.assert_array_equal(forward(fm.Frozen(make()), X, fm.Train(key)), np.ones((3, 64)))
    careful = bind(fm.Frozen(Drop()), Careful(key))
    assert type(careful.part.mode) is Careful


def test_what_is_frozen_at_two_places_draws_differently(key):
    both = bind(Middle([fm.Frozen(Picks()), fm.Frozen(Picks())], {}), fm.Train(key))
    assert float(both.blocks[0](X)) != float(both.blocks[1](X))
    again = bind(both, fm.Train(key))
    assert float(again.blocks[0](X)) == float(both.blocks[0](X))


# Transformations


def test_scan_over_blocks_with_a_leading_axis(key):
    class Stacked(fm.Model):
        block: Block
        n: int

    @fm.bind.dispatch
    def _(stacked: Stacked, mode: fm.Mode):
        own = mode.over(stacked.mode)
        if own.root is None:
            return remake(stacked, {"mode": own, "block": bind(stacked.block, own)})
        keys = jax.random.split(own.key, stacked.n)
        inside = jax.vmap(lambda block, key: bind(block, remake(own, {"root": key, "salt": None})))(stacked.block, keys)
        return remake(stacked, {"mode": own, "block": inside})

    @dispatch
    def forward(stacked: Stacked, x):
        return jax.lax.scan(lambda x, block: (x, block(x)), x, stacked.block, length=stacked.n)[1]

    many = Stacked(Block(Drop(jnp.full(3, 0.5))), 3)
    train = fm.Train(key)
    masks = forward(many, X, train)
    np.testing.assert_array_equal(jax.jit(forward)(many, X, train), masks)
    assert all((a != b).any() for a, b in itertools.combinations(masks, 2))
    np.testing.assert_array_equal(forward(many, X), np.ones((3, 64)))


def test_scan_over_steps_and_over_a_bound_tree(key):
    net = make()

    def step(carried, i):
        bound = bind(carried, fm.Train(jax.random.fold_in(key, i), i))
        return bound, bound(X)

    last, masks = jax.lax.scan(step, bind(net, fm.Train(key, jnp.int32(0))), jnp.arange(3))
    for i in range(3):
        np.testing.assert_array_equal(masks[i], forward(net, X, fm.Train(jax.random.fold_in(key, i))))
    assert jax.tree.structure(last) == jax.tree.structure(bind(net, fm.Train(key)))


def test_cond_over_bound_trees(key):
    net, keys = make(), jax.random.split(key)
    choose = jax.jit(lambda p: jax.lax.cond(p, lambda: bind(net, fm.Train(keys[0])), lambda: bind(net, fm.Train(keys[1]))))
    for i, p in enumerate((True, False)):
        np.testing.assert_array_equal(choose(p)(X), forward(net, X, fm.Train(keys[i])))


def test_vmap_over_keys_and_examples(key):
    net, keys = make(), jax.random.split(key, 3)
    many = jax.vmap(lambda key: forward(net, X, fm.Train(key)))(keys)
    for each, one in zip(keys, many):
        np.testing.assert_array_equal(forward(net, X, fm.Train(each)), one)
    shared = jax.vmap(bind(net, fm.Train(key)))(jnp.stack([X, 2 * X]))
    np.testing.assert_array_equal(shared[1], 2 * shared[0])


# In training


class Fraction(fm.Model):
    """Its loss is the fraction that was dropped."""

    net: Net
    weight: fm.Parameter


@dispatch
def loss(model: Fraction, batch):
    return (model.net(batch.x) == 0).mean() + 0 * model.weight.value


@dispatch
def metrics(model: Fraction, batch):
    return {"dropped": fm.Mean((model.net(batch.x) == 0).mean())}


def test_training_drops_and_evaluation_does_not():
    x = np.ones((16, 8), np.float32)

    def start(seed):
        model = Fraction(make(), fm.Parameter(jnp.float32(1.0)))
        return fm.setup(model, x, optimizer=optax.sgd(0.0), seed=seed)

    state = start(0)
    fractions = []
    for _ in range(3):
        state, logs = fm.train_step(state, x)
        fractions.append(float(logs["loss"]))
        assert float(fm.evaluate(state, x)["dropped"]) == 0.0
    assert all(0.3 < f < 0.7 for f in fractions)
    assert len(set(fractions)) == 3
    _, logs = fm.train_step(start(0), x)
    assert float(logs["loss"]) == fractions[0]
    _, logs = fm.train_step(start(1), x)
    assert float(logs["loss"]) != fractions[0]


# Bad input


@pytest.mark.parametrize("key", [0, None, "key"])
def test_a_key_that_is_none(key):
    with pytest.raises(TypeError, match=r"Train.key must be a random key.*jax.random.key\(0\)"):
        fm.Train(key)

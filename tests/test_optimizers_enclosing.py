"""What goes around an optimizer: layer-wise rates, a later beginning, plateaus; and optax's MultiSteps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.optimizers import depths, layerwise, unfreeze

m = fm.models


def drawn(model):
    """The model with shapes in the place of its arrays."""
    return jax.eval_shape(lambda key: fm.init(model, key), jax.random.key(0))


def layers(model):
    """From a parameter's path to how far below the last layer it is, without the names of arrays."""
    return {path.rpartition(".")[0]: np.asarray(below).tolist() for path, below in depths(drawn(model)).items()}


# Depths


class Own(fm.Model):
    """A model of somebody's own: what is in a list is one layer each, and fields follow each other."""

    scale: jax.Array
    embedding: m.Embedding
    body: list[fm.Component]
    norm: m.LayerNorm
    head: m.Dense


class Said(Own):
    pass


@dispatch
def layer_order(model: Said):
    return [("embedding", "body.0"), "head"]


class Blocks(fm.Model):
    """Two maps side by side."""

    one: m.Dense
    two: m.Dense


def own(kind=Own):
    return kind(
        jnp.ones(4), m.Embedding(5, 4), [Blocks(m.Dense(4, 4), m.Dense(4, 4)), m.Dense(4, 4)], m.LayerNorm(4), m.Dense(4, 3)
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (m.MLP(4, 4, 4, 3), {"layers.0": 2, "layers.2": 1, "layers.4": 0}),
        (m.Dense(4, 3), {"": 0}),
        # a normalization is of the layer before it, or of the first
        (
            m.Chain(m.LayerNorm(4), m.Dense(4, 4), m.LayerNorm(4), m.Dense(4, 4)),
            {"layers.0": 1, "layers.1": 1, "layers.2": 1, "layers.3": 0},
        ),
        # a chain in a chain counts its own
        (
            m.Chain(m.Chain(m.Dense(4, 4), m.Dense(4, 4)), m.Dense(4, 4)),
            {"layers.0.layers.0": 2, "layers.0.layers.1": 1, "layers.1": 0},
        ),
        (
            m.Chain(m.Dense(4, 4), m.Stacked(m.Chain(m.Dense(4, 4), m.LayerNorm(4)), 3), m.Dense(4, 4)),
            {
                "layers.0": 4,
                "layers.1.blocks.layers.0": [3, 2, 1],
                "layers.1.blocks.layers.1": [3, 2, 1],
                "layers.2": 0,
            },
        ),
        (own(), {"": 3, "embedding": 3, "body.0.one": 2, "body.0.two": 2, "body.1": 1, "norm": 1, "head": 0}),
        (own(Said), {"": 0, "embedding": 1, "body.0.one": 1, "body.0.two": 1, "body.1": 0, "norm": 0, "head": 0}),
        # each model of a system by itself
        (
            fm.Classifier(m.Chain(m.Dense(4, 4), m.Dense(4, 3)), fm.CrossEntropy()),
            {"model.layers.0": 1, "model.layers.1": 0},
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_depths(model, expected):
    assert layers(model) == expected


def test_depths_of_a_transformer_and_a_resnet():
    found = layers(m.Transformer(50, length=16, features=8, heads=2, layers=3))
    assert (found["tokens"], found["positions"], found["norm"]) == (3, 3, 0)
    assert {str(v) for k, v in found.items() if k.startswith("blocks")} == {"[2, 1, 0]"}
    found = layers(m.ResNet(m.BasicBlock, (1, 2), classes=10, widths=(4, 8), stem="cifar"))
    lowest = {place: {b for path, b in found.items() if path.startswith(place)} for place in ("stem", "head")}
    blocks = [
        {b for path, b in found.items() if path.startswith(f"stages.layers.{i}")} for i in ("0.layers.0", "1.layers.0")
    ]
    assert (lowest, blocks) == ({"stem": {4}, "head": {0}}, [{3}, {2}])
    assert {b for path, b in found.items() if path.startswith("stages.layers.1.layers.1")} == {1}


# Layer-wise rates


def steps_taken(optimizer, model, **options):
    """How far each parameter goes in the first step of sign descent: its learning rate."""
    state = fm.setup(model, (np.zeros((4, 4), np.float32), np.zeros(4, np.int32)), optimizer=optimizer, **options)
    gradients = jax.tree.map(jnp.ones_like, state.system)
    after = fm.apply_gradients(state, gradients)
    return {
        new.path: np.asarray(old.value - new.value)
        for old, new in zip(fm.leaves(state.system), fm.leaves(after.system), strict=True)
        if old.role == "parameter"
    }


class Deep(fm.Model):
    """A first layer, blocks along an axis, a head."""

    first: m.Dense
    blocks: m.Stacked
    head: m.Dense


@dispatch
def forward(deep: Deep, x):
    return deep.head(deep.blocks(deep.first(x)))


@dispatch
def loss(deep: Deep, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(deep(batch.x), batch.y)


def deep():
    return Deep(m.Dense(4, 4), m.Stacked(m.Dense(4, 4), 3), m.Dense(4, 3))


def test_layerwise_decays_towards_the_input():
    found = steps_taken(layerwise(optax.sign_sgd, decay=0.5), deep(), lr=0.1)
    np.testing.assert_allclose(found["head.weight"], 0.1, rtol=1e-4)
    for block, factor in enumerate([0.125, 0.25, 0.5]):
        np.testing.assert_allclose(found["blocks.blocks.weight"][block], 0.1 * factor, rtol=1e-4)
        np.testing.assert_allclose(found["blocks.blocks.bias"][block], 0.1 * factor, rtol=1e-4)
    np.testing.assert_allclose(found["first.bias"], 0.1 * 0.0625, rtol=1e-4)


def test_layerwise_in_groups_counts_the_layers_of_the_whole_model():
    optimizer = {"": layerwise(optax.sign_sgd(0.1), decay=0.5), "head": optax.sign_sgd(0.3)}
    found = steps_taken(optimizer, deep())
    np.testing.assert_allclose(found["head.weight"], 0.3, rtol=1e-4)
    np.testing.assert_allclose(found["blocks.blocks.weight"][2], 0.05, rtol=1e-4)
    np.testing.assert_allclose(found["first.weight"], 0.1 * 0.0625, rtol=1e-4)


def test_layerwise_decays_the_decay_of_weights_with_the_rate():
    optimizer = layerwise(fm.optimizers.Optimizer(optax.adamw, 0.1, weight_decay=0.5, mask=fm.objectives.kernels), decay=0.5)
    state = fm.setup(deep(), data(), optimizer=optimizer)
    after = fm.apply_gradients(state, jax.tree.map(jnp.zeros_like, state.system))
    for path, factor in (("head", 1), ("first", 0.0625)):
        old, new = (fm.get(s.system, f"{path}.weight") for s in (state, after))
        np.testing.assert_allclose(new, old * (1 - 0.05 * factor), rtol=1e-5)


def test_layerwise_with_a_decay_of_one_changes_nothing():
    plain, scaled = (fm.setup(deep(), data(), optimizer=o, lr=0.1) for o in (optax.adam, layerwise(optax.adam, decay=1.0)))
    a, b = (fm.train_step(state, data())[0].system for state in (plain, scaled))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ValueError, match=rf"decay must be above 0 and at most 1, got {decay}"):
        layerwise(optax.adam(0.1), decay=decay)


def test_a_layer_order_that_names_a_missing_part():
    class Wrong(Net):
        pass

    @dispatch
    def layer_order(model: Wrong):
        return ["layr"]

    with pytest.raises(KeyError, match="no 'layr' in Wrong, which has: layer"):
        fm.setup(Wrong(Linear(4, 3)), data(), optimizer=layerwise(optax.adam(0.1), decay=0.5))


# A later start


def bits(tree):
    return [np.asarray(v).tobytes() for v in jax.tree.leaves(tree)]


@pytest.mark.parametrize("at", [4, 0.5])
def test_parameters_and_moments_do_not_change_before_unfreezing(at):
    optimizer = {"one": optax.adamw, "two": unfreeze(optax.adamw, at=at)}
    state = fm.setup(pair(), data(32), optimizer=optimizer, lr=0.1, weight_decay=0.5, epochs=4, batch_size=16)
    begun = bits(state.system.two), bits(state.optimizer_state[1].inner)
    run = list(itertools.islice(fm.steps(state, data(32), epochs=4), 5))
    for now, logs in run[:4]:
        assert (bits(now.system.two), bits(now.optimizer_state[1].inner)) == begun
        assert float(logs["lr/two"]) == 0.0 and float(logs["lr/one"]) == pytest.approx(0.1)
    assert bits(run[0][0].system.one) != bits(state.system.one)
    after, logs = run[4]
    assert not set(bits(after.system.two)) & set(begun[0])
    assert float(logs["lr/two"]) == pytest.approx(0.1)
    # It begins as if it were the first step: Adam's first one is as long as the learning rate, beside the decay.
    moved = after.system.two.layer.bias - run[3][0].system.two.layer.bias
    np.testing.assert_allclose(np.abs(moved), 0.1, rtol=1e-3)


def test_a_schedule_in_unfreeze_spans_the_rest_of_the_run():
    optimizer = {"one": optax.sgd, "two": unfreeze(optax.sgd, at=0.5)}
    state = fm.setup(pair(), data(32), optimizer=optimizer, lr=fm.cosine(1.0), epochs=4, batch_size=16)
    rates = np.asarray(
        [[float(logs[f"lr/{name}"]) for name in ("one", "two")] for _, logs in fm.steps(state, data(32), epochs=4)]
    )
    steps = np.arange(8)
    np.testing.assert_allclose(rates[:, 0], 0.5 * (1 + np.cos(np.pi * steps / 8)), rtol=1e-5)
    np.testing.assert_allclose(rates[4:, 1], 0.5 * (1 + np.cos(np.pi * steps[:4] / 4)), rtol=1e-5)
    assert not rates[:4, 1].any()
    # and the same rates are applied
    taken = []
    for _ in range(6):
        after = fm.apply_gradients(state, jax.tree.map(jnp.ones_like, state.system))
        taken.append(np.mean(state.system.two.layer.bias - after.system.two.layer.bias))
        state = after
    np.testing.assert_allclose(taken, rates[:6, 1], rtol=1e-4)


def test_unfreezing_continues_with_a_state():
    optimizer = {"one": optax.sgd(0.1), "two": unfreeze(optax.sgd(0.1), at=2)}
    state = fm.setup(pair(), data(16), optimizer=optimizer, epochs=3, batch_size=16)
    first, _ = fm.fit(state, data(16), epochs=2, progress=False)
    assert bits(first.system.two) == bits(state.system.two)
    second, _ = fm.fit(first, data(16), epochs=1, progress=False)
    assert bits(second.system.two) != bits(state.system.two)


@pytest.mark.parametrize(
    ("options", "at", "message"),
    [
        ({}, 0.5, "unfreeze needs the length of the run: give `steps="),
        ({"steps": 10}, 1.0, "unfreeze: `at` must be below the length of the run, 10.* whole run.*got 1.0"),
        ({"steps": 10}, 1.5, "`at` must be .*got 1.5"),
        ({"steps": 10}, 10, "unfreeze: `at` must be below the length of the run, 10.*got 10"),
        ({"steps": 10}, -1, r"`at` must be a number of steps \(an int\) or a fraction .*, got -1"),
    ],
)
def test_a_start_out_of_range(options, at, message):
    with pytest.raises(ValueError, match=message):
        fm.setup(net(), data(), optimizer=unfreeze(optax.sgd(0.1), at=at), **options)


# The inner optimizer


def by_batch_size(plan: fm.Plan):
    return fm.optimizers.Optimizer(optax.adam, 0.1 * plan.batch_size / 16)


@pytest.mark.parametrize("around", [fm.plateau, lambda o: layerwise(o, decay=0.5), lambda o: unfreeze(o, at=1)])
@pytest.mark.parametrize(
    ("inside", "options"),
    [
        (optax.inject_hyperparams(optax.adam)(0.1), {}),
        (optax.adam, {"lr": 0.1, "b1": 0.5}),
        (fm.optimizers.Optimizer(optax.adam, 0.1), {}),
        (by_batch_size, {}),
        (fm.plateau(fm.optimizers.Optimizer(optax.adam, 0.1)), {}),
    ],
    ids=["transformation", "constructor", "value", "plan", "plateau"],
)
def test_the_inner_optimizer_may_have_any_form(around, inside, options):
    state = fm.setup(net(), data(16), optimizer=around(inside), steps=8, **options)
    after, logs = fm.train_step(fm.train_step(state, data(16))[0], data(16))
    assert float(logs["lr"]) == pytest.approx(0.1)
    assert bits(after.system) != bits(state.system)


def test_an_inner_value_that_is_not_an_optimizer():
    with pytest.raises(TypeError, match=r"optax constructor or transformation, got 'adam'.*optax.adam"):
        fm.setup(net(), data(), optimizer=layerwise("adam", decay=0.5))
    with pytest.raises(TypeError, match="adam needs a learning rate"):
        fm.setup(net(), data(), optimizer=layerwise(optax.adam, decay=0.5))
    for optimizer in (fm.plateau(0.01), fm.optimizers.every(2, 0.01), unfreeze(0.01, at=2), {"one": fm.plateau(0.01)}):
        for options in ({}, {"lr": 0.01}):
            with pytest.raises(TypeError, match=r"the optimizer in \w+ must be .*, got 0.01; write optax.adam.*lr=0.01"):
                fm.setup(net(), data(), optimizer=optimizer, **options)
    with pytest.raises(TypeError, match=r"lr must be a number.*Plateau.*optimizer=fm.plateau\(optax.adam\), lr=1e-2"):
        fm.setup(net(), data(), optimizer=optax.adam, lr=fm.plateau(0.01), steps=4)
    with pytest.raises(TypeError, match="lr: there is no optimizer constructor"):
        fm.setup(net(), data(), optimizer=layerwise(optax.adam(0.1), decay=0.5), lr=0.1)


@pytest.mark.parametrize(
    ("inside", "rate"),
    [
        (fm.optimizers.Optimizer(optax.sgd, 0.25), 0.25),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=0.25), 0.25),
        (fm.optimizers.Optimizer(optax.sgd, fm.schedules.linear(0.25)), 0.125),
    ],
    ids=["value", "injected", "schedule"],
)
def test_the_logged_rate_of_a_plateau_is_the_one_after_scaling(inside, rate):
    x, y = data(16)
    state = fm.setup(net(), (0 * x, y * 0), optimizer=fm.plateau(inside, factor=0.5, patience=1, tolerance=0.99), steps=4)
    rates = [float(logs["lr"]) for _, logs in fm.steps(state, (0 * x, y * 0), steps=3)]
    assert rates[0] == pytest.approx(0.25)
    # Neither the second step nor the third is better, and each makes its own step half as long.
    assert rates[2] == pytest.approx(rate * 0.25)


# optax.MultiSteps


def test_multisteps_accumulates_as_optax_does():
    state = fm.setup(net(), data(16), optimizer=optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2))
    first, _ = fm.train_step(state, data(16))
    assert bits(first.system) == bits(state.system)
    second, _ = fm.train_step(first, data(16))
    plain, _ = fm.train_step(fm.setup(net(), data(16), optimizer=optax.sgd(0.1)), data(16))
    for a, b in zip(jax.tree.leaves(second.system), jax.tree.leaves(plain.system), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_multisteps_in_a_group_and_around_one():
    optimizer = {
        "one": optax.MultiSteps(optax.adam(0.1), 2),
        "two": layerwise(optax.MultiSteps(optax.adam(0.1), 2), decay=0.5),
    }
    state, _ = fm.fit(Pair(net(), net()), data(32), optimizer=optimizer, epochs=2, batch_size=16, progress=False)
    assert [int(s.gradient_step) for s in (state.optimizer_state[0], state.optimizer_state[1][0])] == [2, 2]

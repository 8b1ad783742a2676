"""Parameters in groups by path and by pattern, and weight decay that leaves out what is no kernel."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import configure_optimizers, dispatch, init
from fulmen.optimizers import groups

PLAN = fm.Plan(steps_per_epoch=4, epochs=2, total_steps=8, batch_size=16)
SGD, ADAM, LION = optax.sgd(0.1), optax.adam(0.1), optax.lion(0.1)


class Stack(fm.Model):
    """Layers in a list, and a head."""

    layers: list[Linear]
    head: Linear


@dispatch
def forward(stack: Stack, x):
    for layer in stack.layers:
        x = layer(x)
    return stack.head(x)


@dispatch
def loss(stack: Stack, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(stack(batch.x), batch.y)


def by_epoch(plan: fm.Plan):
    return {"": optax.sgd(1.0 / plan.epochs)}


def stack():
    return Stack([Linear(4, 4), Linear(4, 4)], Linear(4, 3))


def grouped(component, hand=None):
    """From each group's path to the paths of its members."""
    component = fm.init(component, jax.random.key(0))
    paths = [leaf.path for leaf in fm.leaves(component)]
    return {g.path: [paths[i] for i in g.members] for g in groups(component, hand, PLAN)}


def arrays(*layers):
    return [f"{layer}.{array}" for layer in layers for array in ("weight", "bias")]


@pytest.mark.parametrize(
    ("hand", "expected"),
    [
        (
            {"layers.0": fm.frozen, "layers.1": SGD, "head": ADAM},
            {"layers.1": arrays("layers.1"), "head": arrays("head")},
        ),
        # the empty path is all the rest, at the root and in a dict in a dict
        ({"": SGD, "head.bias": ADAM}, {"": [*arrays("layers.0", "layers.1"), "head.weight"], "head.bias": ["head.bias"]}),
        (
            {"layers": {"": SGD, "1": ADAM}, "head": fm.frozen},
            {"layers": arrays("layers.0"), "layers.1": arrays("layers.1")},
        ),
        # the longest path wins, whatever the order
        (
            {"layers.1.bias": fm.frozen, "layers": SGD, "layers.1": ADAM, "": LION},
            {"layers": arrays("layers.0"), "layers.1": ["layers.1.weight"], "": arrays("head")},
        ),
        # patterns: one group each
        (
            {"": fm.frozen, "**.bias": SGD},
            {"**.bias": ["layers.0.bias", "layers.1.bias", "head.bias"]},
        ),
        (
            {"layers.*": SGD, "layers.1": ADAM, "head": fm.frozen},
            {"layers.*": arrays("layers.0"), "layers.1": arrays("layers.1")},
        ),
        # a path precedes patterns, also for what is below it
        ({"layers": fm.frozen, "**": SGD}, {"**": arrays("head")}),
        (
            {"layers": SGD, "**.bias": fm.frozen, "**": ADAM},
            {"layers": arrays("layers.0", "layers.1"), "**": ["head.weight"]},
        ),
        ({"layers.0": SGD, "**": ADAM}, {"layers.0": arrays("layers.0"), "**": arrays("layers.1", "head")}),
        ({"": fm.frozen, "*.weight": SGD}, {"*.weight": ["head.weight"]}),
        ({"": fm.frozen, "lay*.*.weight": SGD}, {"lay*.*.weight": ["layers.0.weight", "layers.1.weight"]}),
        ({"layers": {"*": {"bias": SGD}}, "": ADAM}, {"layers.*.bias": ["layers.0.bias", "layers.1.bias"]}),
        ({"**": SGD}, {"**": arrays("layers.0", "layers.1", "head")}),
        (by_epoch, {"": arrays("layers.0", "layers.1", "head")}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
def test_groups_by_path(hand, expected):
    found = grouped(stack(), hand)
    assert {path: sorted(members) for path, members in found.items() if path in expected} == {
        path: sorted(members) for path, members in expected.items()
    }
    assert set(found) - set(expected) <= {""}


class ByPath(fm.System):
    one: Stack
    two: Stack


class Bare(Stack):
    """Has an optimizer of its own."""


@dispatch
def configure_optimizers(system: ByPath):
    return {"one.layers.0": SGD, "**.head": ADAM, "two": LION}


@dispatch
def configure_optimizers(stack: Bare):
    return {"": SGD, "head": ADAM}


def test_a_methods_dict_may_have_paths():
    assert grouped(ByPath(stack(), Bare([], Linear(4, 3))), {"one.layers.1": SGD}) == {
        "one.layers.0": arrays("one.layers.0"),
        "one.layers.1": arrays("one.layers.1"),
        "**.head": arrays("one.head"),
        "two": arrays("two.head"),
    }
    # What the parent names has no say of its own; a part that the parent does not name has.
    assert grouped(ByPath(Bare([Linear(4, 4), Linear(4, 4)], Linear(4, 3)), Bare([Linear(4, 4)], Linear(4, 3)))) == {
        "one.layers.0": arrays("one.layers.0"),
        "one": arrays("one.layers.1"),
        "**.head": arrays("one.head"),
        "two": arrays("two.layers.0", "two.head"),
    }


def test_the_argument_precedes_methods_and_longer_paths_win():
    system = ByPath(stack(), stack())
    assert grouped(system, {"one": SGD, "one.head": LION, "two": fm.frozen}) == {
        "one": arrays("one.layers.0", "one.layers.1"),
        "one.head": arrays("one.head"),
    }


@pytest.mark.parametrize(
    ("hand", "error", "words"),
    [
        ({"layer.0": SGD}, ValueError, ["'layer.0'", "Stack has no such path", "did you mean 'layers.0'"]),
        ({"hed": SGD}, ValueError, ["'hed'", "no such field", "did you mean 'head'"]),
        ({"head": {"weigt": SGD}}, ValueError, ["'head.weigt'", "did you mean 'head.weight'"]),
        ({"layers.7": SGD}, ValueError, ["'layers.7'", "'layers.0'"]),
        ({"zzz": SGD}, ValueError, ["'zzz'", "it has: layers, head"]),
        ({"**.scale": SGD}, ValueError, ["'**.scale'", "matches no parameter of Stack; there are: layers, layers.0, "]),
        ({"**.biases": SGD}, ValueError, ["'**.biases'", "matches no parameter of Stack; did you mean '**.bias'?"]),
        ({"layer.*.weight": SGD}, ValueError, ["'layer.*.weight'", "did you mean 'layers.*.weight'?"]),
        ({"**": SGD, "head.*": ADAM}, ValueError, ["'head.*'", "'head.weight'", "first pattern counts", "move 'head.*'"]),
        ({"head": SGD, "": SGD, "head.*": ADAM}, ValueError, ["'head.*'", "paths name all", "'head.weight'", "leave out"]),
        ({"head": {"bias": SGD}, "head.bias": ADAM}, ValueError, ["two optimizers", "'head.bias'"]),
        ({"layers": SGD}, ValueError, ["no optimizer for 'head.weight'", "the key '' is for all other parameters"]),
        ({"head": "adam"}, TypeError, ["'head'", "str", "optax transformation"]),
        ({"head": optax.adam}, TypeError, ["adam", "for 'head'", "lr="]),
        ({"": SGD, "head.n": ADAM}, ValueError, ["'head.n'", "no parameter to train"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else None,
)
def test_bad_groups(hand, error, words):
    with pytest.raises(error) as caught:
        grouped(stack(), hand)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_an_optimizer_for_a_frozen_part():
    with pytest.raises(ValueError, match="'one', where there is no parameter to train"):
        grouped(Pair(fm.Frozen(net()), net()), {"one": SGD, "two": SGD})
    assert set(grouped(Pair(fm.Frozen(net()), net()), {"one": fm.frozen, "two": SGD})) == {"two"}


def test_groups_have_separate_updates_and_log_their_rates():
    state = fm.setup(
        stack(),
        data(),
        optimizer={"": fm.frozen, "layers.0": fm.optimizers.Optimizer(optax.sgd, 0.5), "**.bias": optax.sgd},
        lr=0.25,
    )
    after, logs = fm.train_step(state, data())
    moved = {
        new.path: not np.array_equal(old.value, new.value)
        for old, new in zip(fm.leaves(state.system), fm.leaves(after.system), strict=True)
    }
    assert moved == {path: "layers.0" in path or "bias" in path for path in moved}
    assert {k: float(v) for k, v in logs.items() if k.startswith("lr")} == {"lr/layers.0": 0.5, "lr/**.bias": 0.25}


def test_one_pattern_is_one_group_with_one_norm():
    clip = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    state = fm.setup(stack(), data(), optimizer={"": fm.frozen, "**.bias": clip})
    after, _ = fm.train_step(state, data())
    moved = jax.tree.map(lambda a, b: a - b, state.system, after.system)
    assert float(optax.tree.norm(moved)) == pytest.approx(1e-3, rel=1e-4)


def test_a_learning_rate_that_no_optimizer_in_the_dict_uses():
    with pytest.raises(TypeError, match=r"lr: there is no optimizer constructor.*write optimizer=optax.adam, lr=1e-3"):
        fm.setup(pair(), data(), optimizer={"one": SGD, "two": {"layer": ADAM}}, lr=1e-3)
    with pytest.raises(TypeError, match=r"weight_decay is no option of `setup`: write optimizer=optax.adamw"):
        fm.setup(pair(), data(), optimizer={"": SGD}, weight_decay=0.1)
    with pytest.raises(TypeError, match=r"lrr is no option.*did you mean 'lr'"):
        fm.setup(pair(), data(), optimizer={"": optax.adam}, lrr=0.1)


# Weight decay


m = fm.models


class Everything(fm.Model):
    """One of each layer, and none is used: gradients are zero, so that what moves is decayed."""

    dense: fm.models.Dense
    conv: fm.models.Conv
    batch_norm: fm.models.BatchNorm
    layer_norm: fm.models.LayerNorm
    rms_norm: fm.models.RMSNorm
    group_norm: fm.models.GroupNorm
    embedding: fm.models.Embedding
    blocks: fm.models.Stacked
    nested: fm.models.Stacked


@dispatch
def loss(model: Everything, batch):
    return jnp.zeros(len(batch))


@functools.cache
def everything():
    model = Everything(
        m.Dense(4, 3),
        m.Conv(2, 3),
        m.BatchNorm(3),
        m.LayerNorm(4),
        m.RMSNorm(4),
        m.GroupNorm(2, 4),
        m.Embedding(5, 4),
        m.Stacked(m.TransformerBlock(4, heads=2), 3),
        m.Stacked(m.Stacked(m.Chain(m.Dense(4, 4), m.LayerNorm(4), m.RMSNorm(4)), 2), 2),
    )
    shapes = jax.eval_shape(lambda key: init.invoke(fm.Component, object)(model, key), jax.random.key(0))
    return jax.tree.map(lambda v: np.full(v.shape, 0.5, v.dtype), shapes)


@dispatch
def init(model: Everything, key):
    return model  # nothing has to be drawn for this


DECAYED = [
    "dense.weight",
    "conv.weight",
    "embedding.weight",
    "blocks.blocks.attention.qkv.weight",
    "blocks.blocks.attention.out.weight",
    "blocks.blocks.mlp.layers.0.weight",
    "blocks.blocks.mlp.layers.2.weight",
    "nested.blocks.blocks.layers.0.weight",
]


def decayed(state):
    """What a step has moved, each by the same factor."""
    after, _ = fm.train_step(state, data(16))
    factors = {}
    for old, new in zip(fm.leaves(state.system), fm.leaves(after.system), strict=True):
        if old.role == "parameter":
            (factor,) = np.unique(np.round(np.asarray(new.value) / np.asarray(old.value), 5))
            factors[old.path] = float(factor)
    return {path: factor for path, factor in factors.items() if factor != 1}


@pytest.mark.parametrize("optimizer", [optax.adamw, optax.lion, optax.lamb], ids=lambda o: o.__name__)
def test_weight_decay_excludes_biases_and_norms(optimizer):
    options = {"lr": 0.1, "weight_decay": 0.5, "mask": fm.objectives.kernels}
    state = fm.setup(everything(), data(16), optimizer=optimizer, **options)
    found = decayed(state)
    assert sorted(found) == sorted(DECAYED)
    if optimizer is not optax.lamb:  # which scales the decay as well
        assert found == {path: pytest.approx(0.95) for path in DECAYED}
    # A number, so that no bias stays by chance: without the mask all is decayed.
    assert len(decayed(fm.setup(everything(), data(16), optimizer=optimizer, lr=0.1, weight_decay=0.5))) > 2 * len(DECAYED)


def test_weight_decay_in_groups():
    optimizer = {
        "": fm.optimizers.Optimizer(optax.adamw, 0.1, weight_decay=0.5, mask=fm.objectives.kernels),
        "blocks": fm.optimizers.Optimizer(optax.adamw, 0.1, weight_decay=0.1, mask=fm.objectives.kernels),
        "embedding": optax.adamw(0.1, weight_decay=0.5),
        "nested": fm.frozen,
        "*.bias": optax.adamw(0.1, weight_decay=1.0),
    }
    found = decayed(fm.setup(everything(), data(16), optimizer=optimizer))
    biases = {path: pytest.approx(0.9) for path in found if re.fullmatch(r"[^.]+\.bias", path)}
    assert len(biases) == 5
    assert found == biases | {
        "dense.weight": pytest.approx(0.95),
        "conv.weight": pytest.approx(0.95),
        "embedding.weight": pytest.approx(0.95),
        **{path: pytest.approx(0.99) for path in DECAYED if path.startswith("blocks")},
    }


def test_a_number_in_a_group_is_found_by_its_path():
    state = fm.setup(net(), data(), optimizer={"layer.weight": optax.adamw, "": optax.sgd(0.1)}, lr=0.1, weight_decay=0.5)
    assert isinstance(state.system, Net)
    changed = fm.replace(state, {"optimizer.layer.weight.numbers.weight_decay": 0.25})
    assert float(changed.optimizer["layer.weight"].numbers["weight_decay"]) == 0.25

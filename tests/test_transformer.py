"""`Transformer` and `generate`: GPT-2's count, agreement with PyTorch's layer, what sees what, sampling, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import cast, close, train
from recorded import agrees

import fulmen as fm
from fulmen import dispatch
from fulmen.models import RMSNorm, Transformer, TransformerBlock, generate, gpt2

SIZES = {"vocabulary": 11, "length": 6, "features": 8, "heads": 2, "layers": 2}
forward_jit = jax.jit(fm.forward)


@functools.cache
def model(**options):
    """With some numbers where `init` would draw: drawing compiles a program per shape."""
    rng = np.random.default_rng(0)
    net = Transformer(**SIZES, **options)
    shapes = jax.eval_shape(fm.init, net, jax.random.key(0))
    drawn = lambda leaf: jnp.asarray((0.3 * rng.normal(size=leaf.value.shape)).astype(np.float32))
    arrays = {leaf.path: drawn(leaf) for leaf in fm.leaves(shapes) if leaf.role == "parameter"}
    return fm.replace(net, arrays)


def tokens(n=2, length=6, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocabulary"], (n, length)).astype(np.int32)


def test_a_block_agrees_with_pytorch():
    dense = {"mlp.layers.0": "linear1", "mlp.layers.2": "linear2", "attention_norm": "norm1", "mlp_norm": "norm2"}
    weights = {f"{path}.{kind}": f"layer.{theirs}.{kind}" for path, theirs in dense.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        weights[f"attention.qkv.{kind}"] = f"layer.self_attn.in_proj_{kind}"
        weights[f"attention.out.{kind}"] = f"layer.self_attn.out_proj.{kind}"
    agrees("transformer_block", TransformerBlock(8, 2), weights)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (gpt2(), 124_439_808),
        (gpt2(layers=24, features=1024, heads=16), 354_823_168),
        (gpt2(rotary=True), 124_439_808 - 1024 * 768),
    ],
    ids=["small", "medium", "rotary"],
)
def test_gpt2_has_the_published_count(net, count):
    """Nothing is allocated."""
    drawn = jax.eval_shape(fm.init, net, jax.random.key(0))
    assert fm.count_parameters(drawn) == count
    seen = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
    assert jax.eval_shape(fm.forward, drawn, seen).shape == (2, 1024, 50257)


def test_the_embedding_is_tied():
    """Its gradient comes from both ends: of the tokens that are read, and of all that might be next."""
    net, x = model(), np.zeros((1, 2), np.int32)
    gradient = jax.jit(jax.grad(lambda net: jax.nn.log_softmax(net(x))[0, 0, 3]))(net).tokens.weight
    assert (np.abs(gradient).sum(-1) > 0).all()
    paths = [leaf.path for leaf in fm.leaves(net)]
    assert [path for path in paths if "tokens" in path] == ["tokens.weight"]


def test_initialization_is_that_of_gpt2():
    net = jax.jit(lambda key: fm.init(Transformer(400, 100, 64, 2, 8), key))(jax.random.key(0))
    for path in ("tokens.weight", "positions.weight"):
        assert abs(float(fm.get(net, path).std()) / 0.02 - 1) < 0.05
    inner = net.blocks.blocks
    close(inner.attention.out.weight.std() * 4, 64**-0.5, rtol=0.05)
    close(inner.mlp[2].weight.std() * 4, 256**-0.5, rtol=0.05)
    close(inner.mlp[0].weight.std(), 64**-0.5, rtol=0.05)


@pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
def test_outputs_do_not_depend_on_later_tokens(rotary):
    net, x = model(rotary=rotary), tokens()
    changed = x.copy()
    changed[:, 4] = (x[:, 4] + 1) % SIZES["vocabulary"]
    before, after = forward_jit(net, x), forward_jit(net, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(before[:, 4:] - after[:, 4:]).max(-1) > 1e-6).all()
    # Each place is told from the others: of twice the same token the answers differ once something else came before.
    swapped = forward_jit(net, x[:, [1, 0, 2, 3, 4, 5]])
    assert np.abs(swapped[:, 2:] - before[:, 2:]).max() > 1e-6


def test_options_change_nothing():
    """The dropout's masks neither; of gradients see the tests of `Stacked`."""
    net, x = model(dropout=0.3), tokens()
    y = forward_jit(net, x, train())
    close(forward_jit(fm.replace(net, {"blocks.unroll": True, "blocks.remat": True}), x, train()), y)
    assert (np.abs(forward_jit(net, x, train(1)) - y) > 1e-3).mean() > 0.9


@pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
def test_half_precision_is_kept(rotary):
    net = cast(model(rotary=rotary, dropout=0.3), jnp.bfloat16)
    assert jax.eval_shape(fm.forward, net, tokens(), train()).dtype == jnp.bfloat16


def test_parts_can_be_replaced():
    """Any component with the same shapes: RMSNorm in the place of LayerNorm."""
    norms = {path: RMSNorm(8) for path in ("norm", "blocks.blocks.attention_norm", "blocks.blocks.mlp_norm")}
    net = fm.replace(Transformer(**SIZES), norms)
    drawn = jax.eval_shape(fm.init, net, jax.random.key(0))
    assert fm.count_parameters(drawn) == fm.count_parameters(model()) - 8 * (2 * 2 + 1)
    assert jax.eval_shape(fm.forward, drawn, tokens()).shape == (2, 6, 11)


class Counting(fm.Model):
    """Trains a transformer to say the next token."""

    net: Transformer


@dispatch
def loss(model: Counting, batch: fm.Unlabeled):
    logits = model.net(batch.x[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.x[:, 1:]).mean(-1)


@functools.cache
def counting():
    """A model that has learned to count modulo 11."""
    data = (np.arange(11)[:, None] + np.arange(7)) % 11
    state = fm.setup(
        Counting(Transformer(11, 6, 8, 2, 1, rotary=True, unroll=True)),
        data.astype(np.int32),
        optimizer=optax.adam,
        lr=1e-2,
        seed=0,
    )
    losses = []
    for _ in range(80):
        state, logs = fm.train_step(state, data.astype(np.int32))
        losses.append(float(logs["loss"]))
    return state.system.net, losses


def test_it_learns_and_generates():
    """Beyond its length too: then it sees the last tokens only."""
    net, losses = counting()
    assert losses[0] > 2
    assert losses[-1] < 0.1
    drawn = generate(net, jnp.array([[3], [8]]), 20, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(drawn, (np.array([[3], [8]]) + np.arange(21)) % 11)


def test_sampling_follows_the_probabilities():
    net, start = model(), jnp.tile(jnp.asarray(tokens(1, 4)), (2000, 1))
    for temperature in (1.0, 0.05):
        logits = np.asarray(forward_jit(net, start[:1]))[0, -1] / temperature
        drawn = np.asarray(generate(net, start, 1, jax.random.key(1), temperature))[:, -1]
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert np.abs(np.bincount(drawn, minlength=11) / 2000 - expected).max() < 0.04  # three standard deviations
    again = [generate(net, start, 1, jax.random.key(k)) for k in (1, 1, 2)]
    np.testing.assert_array_equal(again[0], again[1])
    assert (again[0] != again[2]).any()
    np.testing.assert_array_equal(again[0][:, :4], start)


LENGTH = r"sequences of at most 6 tokens, got \(2, 7\): write tokens\[:, :6\]"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: model()(tokens(length=7)), ValueError, LENGTH),
        (lambda: forward_jit(model(rotary=True), tokens(length=7)), ValueError, LENGTH),
        (lambda: fm.validate(Transformer(**SIZES), fm.Unlabeled(tokens(length=7))), ValueError, LENGTH),
        (lambda: model()(tokens() + 5), ValueError, "takes tokens from 0 to 10, got 15"),
        (lambda: fm.validate(Transformer(**SIZES), fm.Unlabeled(tokens() - 1)), ValueError, "from 0 to 10, got -1"),
        (lambda: model()(tokens()[0]), ValueError, r"takes tokens \(n, length\), got \(6,\)"),
        (lambda: model()(tokens().astype(np.float32)), TypeError, "takes integer tokens, got float32"),
        (lambda: generate(model(), tokens() + 5, 2, jax.random.key(0)), ValueError, "from 0 to 10, got 15"),
        (lambda: generate(model(), tokens()[:, :0], 2, jax.random.key(0)), ValueError, "at least one per sequence"),
        (lambda: generate(model(), tokens(), -1, jax.random.key(0)), ValueError, "n must be at least 0, got -1"),
        (
            lambda: fm.setup(Counting(Transformer(11, 6, 8, 3, 2)), tokens(), optimizer=optax.adam, lr=1e-3),
            ValueError,
            "heads",
        ),
    ],
    ids=[
        "length",
        "length, rotary",
        "length of data",
        "token",
        "token in data",
        "one sequence",
        "floats",
        "generate",
        "nothing",
        "fewer than none",
        "heads",
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

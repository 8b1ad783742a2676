"""A small GPT learns a text, as the same network does that is written by hand in plain JAX and optax."""

import json.decoder
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen.metric_types import BitsPerCharacter
from fulmen.models import Transformer
from fulmen.systems import LanguageModel

LENGTH, FEATURES, HEADS, LAYERS, BATCH, STEPS, RATE = 16, 32, 2, 2, 16, 120, 2**-8
EPSILON = float(np.float32(1e-5))  # numbers of models are single, also among double arrays


def text():
    """Python's licence, which comes with most installations, or else the source of a module, which comes with all."""
    licence = Path(os.__file__).with_name("LICENSE.txt")
    return (licence if licence.exists() else Path(json.decoder.__file__)).read_text("utf-8")


@pytest.fixture(scope="module")
def data():
    """Windows of the text, with tokens by character, to train on and to be judged by, and the number of characters."""
    characters, tokens = np.unique(list(text()[:8000]), return_inverse=True)
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int32), LENGTH + 1)
    return windows[:6000:3].copy(), windows[6500::LENGTH].copy(), len(characters)


# By hand


def normalized(x, norm):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + EPSILON)
    return scaled * norm["weight"][None, None] + norm["bias"][None, None]


def linear(x, layer):
    return x @ layer["weight"] + layer["bias"][None, None]


def logits(parameters, tokens):
    n, length = tokens.shape
    x = parameters["tokens"][tokens] + parameters["positions"][None, :length]
    for block in parameters["blocks"]:
        joint = linear(normalized(x, block["norm_1"]), block["qkv"]).reshape(n, length, 3, HEADS, FEATURES // HEADS)
        query, key, value = joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]
        scores = jnp.einsum("nqhf,nkhf->nhqk", query, key) / math.sqrt(FEATURES // HEADS)
        scores = jnp.where(np.tri(length, dtype=bool)[None, None], scores, -jnp.inf)
        seen = jnp.einsum("nhqk,nkhf->nqhf", jax.nn.softmax(scores), value).reshape(n, length, FEATURES)
        x = x + linear(seen, block["out"])
        x = x + linear(jax.nn.gelu(linear(normalized(x, block["norm_2"]), block["up"])), block["down"])
    return normalized(x, parameters["norm"]) @ parameters["tokens"].T


def mean_loss(parameters, windows):
    each = optax.softmax_cross_entropy_with_integer_labels(logits(parameters, windows[:, :-1]), windows[:, 1:])
    return each.mean()


def by_hand(model):
    """The model's arrays as a plain dict."""
    both = lambda layer: {"weight": layer.weight, "bias": layer.bias}
    names = {"norm_1": "attention_norm", "norm_2": "mlp_norm"}
    blocks = []
    for block in model.blocks:
        norms = {ours: both(getattr(block, theirs)) for ours, theirs in names.items()}
        maps = {"qkv": block.attention.qkv, "out": block.attention.out, "up": block.mlp[0], "down": block.mlp[2]}
        blocks.append({**norms, **{name: both(layer) for name, layer in maps.items()}})
    ends = {"tokens": model.tokens.weight, "positions": model.positions.weight, "norm": both(model.norm)}
    return {**ends, "blocks": blocks}


def train_by_hand(parameters, windows):
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(parameters, moments, batch):
        gradients = jax.grad(mean_loss)(parameters, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            changes, moments = optimizer.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, changes), moments

    moments = optimizer.init(parameters)
    epochs = math.ceil(STEPS / math.ceil(len(windows) / BATCH))
    for batch, _ in zip(fm.batches(windows, batch_size=BATCH, seed=0, epochs=epochs), range(STEPS), strict=False):
        parameters, moments = step(parameters, moments, batch)
    return parameters


@pytest.fixture(scope="module")
def runs(data):
    """Bits per character on the held-out text before training, after `fit` and after training by hand; the last two's logits.

    In double precision: in single, what rounding does grows over the steps to 0.3 %, in whatever order one adds up. (JAX's
    attention has a softmax in single precision all the same.)
    """
    windows, held_out, vocabulary = data
    with jax.enable_x64(True):
        system = LanguageModel(Transformer(vocabulary, LENGTH, FEATURES, HEADS, LAYERS), metrics=BitsPerCharacter())
        before = fm.setup(system, windows, optimizer=optax.adam, lr=RATE, batch_size=BATCH, steps=STEPS)
        after, _ = fm.fit(before, windows, steps=STEPS, batch_size=BATCH, seed=0, progress=False)
        parameters = train_by_hand(by_hand(before.system.model), windows)
        bits = [fm.evaluate(state, held_out)["bits_per_character"] for state in (before, after)]
        outputs = np.asarray(jax.jit(logits)(parameters, held_out[:, :-1]))
        each = np.log(np.exp(outputs).sum(-1)) - np.take_along_axis(outputs, held_out[:, 1:, None], -1)[..., 0]
        bits.append(each.mean() / math.log(2))
        return bits, fm.predict(after, held_out), outputs


def test_it_learns(data, runs):
    first, last, _ = runs[0]
    assert first == pytest.approx(math.log2(data[2]), abs=0.2)  # as by guessing
    assert last < 0.7 * first


def test_it_learns_what_it_would_by_hand(runs):
    (_, last, last_by_hand), outputs, outputs_by_hand = runs
    assert last == pytest.approx(last_by_hand, rel=1e-6)
    np.testing.assert_allclose(outputs, outputs_by_hand, atol=1e-3)

"""`LanguageModel` and `Tokens`: what is learned of sequences, padded or not, and what they say of data that does not fit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fulmen as fm
from fulmen import dispatch
from fulmen.metric_types import BitsPerCharacter
from fulmen.models import Embedding, Transformer
from fulmen.systems import LanguageModel, Tokens

VOCABULARY, LENGTH, PAD = 11, 7, 0
SIZES = {"vocabulary": VOCABULARY, "length": LENGTH - 1, "features": 8, "heads": 2, "layers": 1}


class Bigrams(fm.Model):
    """The logits of the next token are a row of a table: a model whose every number can be checked by hand."""

    table: Embedding


@dispatch
def forward(model: Bigrams, tokens):
    return model.table(tokens)


UNTRAINED = Bigrams(Embedding(VOCABULARY, VOCABULARY))


class Confidence(fm.Objective):
    """A term of a user's, for outputs `(n, classes)`: it keeps logits small."""

    per_example = True


@dispatch
def loss(term: Confidence, prediction):
    return (prediction.outputs**2).mean(-1)


class Text(fm.Batch):
    """A batch type of a user's."""

    text: jax.Array


def ragged(n=20, seed=0):
    """Sequences of 2 to 7 tokens, padded at their ends."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (n, LENGTH)).astype(np.int32)
    return np.where(np.arange(LENGTH)[None] < rng.integers(2, LENGTH + 1, n)[:, None], tokens, PAD)


@functools.cache
def bigrams():
    table = np.random.default_rng(1).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
    return Bigrams(Embedding(VOCABULARY, VOCABULARY, jnp.asarray(table)))


def each_token(tokens, counts=lambda i, t: True, smoothing=0.0):
    """The cross-entropy of every token that counts, one by one, in double precision."""
    table, found = np.asarray(bigrams().table.weight, np.float64), []
    for i, sequence in enumerate(tokens):
        for t in range(1, len(sequence)):
            if counts(i, t):
                z = table[sequence[t - 1]]
                log_probabilities = z - np.log(np.exp(z).sum())
                found.append(-(1 - smoothing) * log_probabilities[sequence[t]] - smoothing * log_probabilities.mean())
    return np.array(found)


def test_the_loss_is_the_mean_over_all_tokens():
    tokens = ragged()
    full = each_token(tokens)
    np.testing.assert_allclose(np.mean(jax.jit(fm.loss)(LanguageModel(bigrams()), tokens)), full.mean(), rtol=1e-5)
    real = each_token(tokens, lambda i, t: tokens[i, t] != PAD)
    assert len(real) < len(full)
    system = LanguageModel(bigrams(), pad=PAD)
    np.testing.assert_allclose(fm.eval_step(_state(system), tokens)["loss"].compute(), real.mean(), rtol=1e-5)


@functools.cache
def _state(system):
    return fm.setup(system, ragged(), optimizer=optax.sgd, lr=1.0)


METRICS = (fm.metric_types.Perplexity(), fm.Accuracy(), BitsPerCharacter())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([4, 7, 9]), batch_size=st.sampled_from([1, 4]))
def test_an_evaluation_is_exact_over_ragged_sequences_and_batches(seed, n, batch_size):
    tokens = ragged(n, seed)
    real = each_token(tokens, lambda i, t: tokens[i, t] != PAD)
    found = fm.evaluate(LanguageModel(bigrams(), pad=PAD, metrics=METRICS), tokens, batch_size=batch_size)
    table = np.asarray(bigrams().table.weight)
    right = [table[s[t - 1]].argmax() == s[t] for s in tokens for t in range(1, LENGTH) if s[t] != PAD]
    assert found["loss"] == pytest.approx(real.mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(real.mean()), rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(real.mean() / math.log(2), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right), rel=1e-6)


def test_the_gradient_is_that_of_the_mean_over_real_tokens():
    """A step of gradient descent at rate 1, against the gradient written out; a sequence of padding alone moves nothing."""
    tokens = np.concatenate([ragged(), np.full((1, LENGTH), PAD, np.int32)])

    def by_hand(table):
        each = optax.softmax_cross_entropy_with_integer_labels(table[tokens[:, :-1]], tokens[:, 1:])
        real = tokens[:, 1:] != PAD
        return jnp.where(real, each, 0).sum() / float(real.sum())

    before = _state(LanguageModel(bigrams(), pad=PAD))
    after, logs = fm.train_step(before, tokens)
    table = before.system.model.table.weight
    value, gradient = jax.jit(jax.value_and_grad(by_hand))(table)
    np.testing.assert_allclose(logs["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(table - after.system.model.table.weight, gradient, atol=1e-6)


def test_padding_changes_nothing():
    """Neither more of it, nor which token it is."""
    tokens = ragged()
    system = LanguageModel(bigrams(), pad=PAD, metrics=METRICS)
    longer = np.pad(tokens, ((0, 0), (0, 5)), constant_values=PAD)
    found, of_longer = (fm.evaluate(system, v) for v in (tokens, longer))
    assert of_longer == pytest.approx(found, rel=1e-6)
    other = np.where(tokens == PAD, 3, tokens)
    masked = fm.evaluate(LanguageModel(bigrams(), metrics=METRICS), Tokens(other, tokens != PAD))
    assert masked == pytest.approx(found, rel=1e-6)


def test_a_mask_leaves_out_prompts():
    tokens = ragged()
    mask = np.arange(LENGTH)[None].repeat(len(tokens), 0) >= np.arange(len(tokens))[:, None] % 5
    expected = each_token(tokens, lambda i, t: mask[i, t]).mean()
    found = fm.evaluate(LanguageModel(bigrams()), Tokens(tokens, mask), batch_size=8)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    with_pad = fm.evaluate(LanguageModel(bigrams(), pad=PAD), Tokens(tokens, mask))
    assert with_pad["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pad", [None, PAD], ids=["whole", "padded"])
def test_a_sequences_weight_is_its_tokens(pad):
    tokens, weight = ragged(), np.arange(20, dtype=np.float32)
    counts = lambda i, t: pad is None or tokens[i, t] != pad
    each = each_token(tokens, counts)
    weights = [weight[i] for i in range(20) for t in range(1, LENGTH) if counts(i, t)]
    found = fm.evaluate(LanguageModel(bigrams(), pad=pad), fm.Unlabeled(tokens, weight=weight), batch_size=8)
    assert found["loss"] == pytest.approx(np.average(each, weights=weights), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-5)


def test_terms_and_their_sums():
    tokens, model = ragged(), bigrams()
    objective = fm.CrossEntropy(smoothing=0.1) + 1e-2 * fm.L2() + 0.5 * Confidence()
    found = fm.evaluate(LanguageModel(model, objective, pad=PAD), tokens, batch_size=8)
    real = tokens[:, 1:] != PAD
    table = np.asarray(model.table.weight)
    expected = {
        "loss/cross_entropy": each_token(tokens, lambda i, t: real[i, t - 1], 0.1).mean(),
        "loss/l2": 0.5e-2 * (table**2).sum(),
        "loss/confidence": 0.5 * (table**2).mean(-1)[tokens[:, :-1]][real].mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_tokens_of_any_integer_type(dtype):
    system = LanguageModel(bigrams(), pad=PAD)
    assert fm.evaluate(system, ragged().astype(dtype)) == fm.evaluate(system, ragged())


def test_bytes_use_all_of_their_type():
    """A vocabulary of 256 in 8 bits: no index may overflow."""
    model = Bigrams(Embedding(256, 256, jnp.eye(256)))
    found = fm.evaluate(LanguageModel(model, metrics=fm.Accuracy()), np.full((2, 5), 255, np.uint8))
    assert found == pytest.approx({"loss": math.log(255 + math.e) - 1, "accuracy": 1.0}, rel=1e-6)


def test_it_is_part_of_a_system():
    class Two(fm.System):
        small: LanguageModel
        padded: LanguageModel

    tokens = ragged()
    two = Two(LanguageModel(bigrams()), LanguageModel(bigrams(), pad=PAD))
    found = fm.evaluate(two, tokens)
    assert found["loss/small/cross_entropy"] == pytest.approx(each_token(tokens).mean(), rel=1e-5)
    assert found["loss/padded/cross_entropy"] == pytest.approx(
        each_token(tokens, lambda i, t: tokens[i, t] != PAD).mean(), rel=1e-5
    )
    frozen = fm.evaluate(fm.Frozen(LanguageModel(bigrams(), pad=PAD)), tokens, batch_size=8)
    assert frozen == fm.evaluate(LanguageModel(bigrams(), pad=PAD), tokens, batch_size=8)


# A whole run


@functools.cache
def transformer_run():
    """A transformer with dropout that learns to count; sequences end at different places."""
    counting = (np.arange(64)[:, None] + np.arange(LENGTH)) % (VOCABULARY - 1) + 1
    data = np.where(np.arange(LENGTH)[None] < np.arange(64)[:, None] % 6 + 2, counting, PAD).astype(np.int32)
    net = Transformer(**SIZES, dropout=0.1, unroll=True)
    system = LanguageModel(net, fm.CrossEntropy() + 1e-5 * fm.L2(), metrics=METRICS, pad=PAD)
    state, history = fm.fit(
        system, data, optimizer=optax.adam, lr=2e-2, batch_size=16, epochs=15, validation=data, progress=False
    )
    return state, history, data


def test_it_is_checked():
    system = LanguageModel(UNTRAINED, metrics=METRICS, pad=PAD)
    report = fm.check(system, ragged(), optimizer=optax.adam, lr=1e-2)
    assert report.ok and not report.warnings, report


def test_it_learns():
    state, history, data = transformer_run()
    assert history["perplexity"][0] > 5 > 2 > history["validation/perplexity"][-1]
    found = fm.evaluate(state, data, batch_size=7)
    assert found["accuracy"] > 0.9
    again = {name: history[f"validation/{name}"][-1] for name in found}
    assert found == pytest.approx(again, rel=1e-5)
    drawn = fm.models.generate(state.system.model, jnp.array([[3]]), 5, jax.random.key(0), temperature=0.0)
    np.testing.assert_array_equal(drawn, [[3, 4, 5, 6, 7, 8]])


def test_predictions_follow_the_inputs():
    """`predict` gives the logits after each token but the last; what follows a token does not change them."""
    state, _, data = transformer_run()
    outputs = fm.predict(state, data[:5])
    assert outputs.shape == (5, LENGTH - 1, VOCABULARY)
    np.testing.assert_allclose(outputs, jax.jit(fm.forward)(state, data[:5, :-1]), atol=1e-5)
    prediction = jax.jit(fm.predictions)(state, data[:5])[""]
    np.testing.assert_allclose(prediction.outputs, outputs.reshape(-1, VOCABULARY), atol=1e-5)
    np.testing.assert_array_equal(prediction.batch.y, data[:5, 1:].reshape(-1))


def test_summary_explain_and_loss_tree():
    state, _, data = transformer_run()
    assert "model.blocks.blocks.attention.qkv.weight" in str(fm.summary(state))
    assert "losses(LanguageModel, Tokens)" in str(fm.explain(fm.loss, state.system, fm.as_batch(state.system, data)))
    small = fm.replace(state.system, model=bigrams())
    assert list(fm.loss_tree(small, data).children) == ["cross_entropy", "l2"]


# Bad input


def setup(tokens, system=None, **changes):
    system = LanguageModel(Transformer(**{**SIZES, **changes})) if system is None else system
    return fm.setup(system, tokens, optimizer=optax.adam, lr=1e-3)


WRONG = {
    "heads": (
        lambda: setup(ragged(), heads=3),
        ValueError,
        "heads must divide features, got 3 heads for 8 features",
    ),
    "too long": (
        lambda: setup(np.ones((2, 9), np.int32)),
        ValueError,
        r"sequences must have at most 7 tokens, since its model has length 6 .* got \(2, 9\)\. .* length=8\.",
    ),
    "too long, in a step": (
        lambda: fm.train_step(setup(ragged()), np.ones((2, 9), np.int32)),
        ValueError,
        r"sequences of at most 6 tokens, got \(2, 8\)",
    ),
    "out of range": (lambda: setup(ragged() + 5), ValueError, "takes tokens from 0 to 10, got 15"),
    "out of range, predicted": (
        lambda: fm.predict(setup(ragged()), ragged() + 5),
        ValueError,
        "takes tokens from 0 to 10, got 15",
    ),
    "out of range, predicted by members in a wrapper": (
        lambda: fm.predict(
            jax.jit(fm.init)(
                fm.systems.SemiSupervised(fm.Population(LanguageModel(Transformer(**SIZES)), 2)), jax.random.key(0)
            ),
            ragged() + 5,
        ),
        ValueError,
        "takes tokens from 0 to 10, got 15",
    ),
    "last token out of range": (
        lambda: setup(np.array([[1, 2, 11]])),
        ValueError,
        r"LanguageModel \(its model has logits of 11 tokens\) takes tokens from 0 to 10, got 11",
    ),
    "negative": (lambda: setup(ragged() - 1), ValueError, "takes tokens from 0 to 10, got -1"),
    "one token": (
        lambda: setup(np.ones((4, 1), np.int32)),
        ValueError,
        r"tokens must have a length of at least 2, .* got \(4, 1\)",
    ),
    "floats": (
        lambda: setup(ragged().astype(np.float32)),
        TypeError,
        r"tokens must be integers, got float32\. Write tokens\.astype\(np\.int32\)",
    ),
    "one text": (
        lambda: setup(ragged()[0]),
        ValueError,
        r"tokens must .* got \(7,\)\. Cut one long text into windows: tokens\[",
    ),
    "pairs": (
        lambda: setup((ragged()[:, :-1], ragged()[:, 1:])),
        TypeError,
        "LanguageModel must be tokens .* without targets, got a Labeled batch",
    ),
    "batch type": (lambda: setup(Text(ragged())), TypeError, r"as_batch\(system: LanguageModel, raw: Text\)"),
    "nothing to learn": (
        lambda: setup(np.full((2, 5), PAD), LanguageModel(Transformer(**SIZES), pad=PAD)),
        ValueError,
        r"the data has no targets \(pad=0\)",
    ),
    "pad beyond": (
        lambda: setup(ragged(), LanguageModel(Transformer(**SIZES), pad=11)),
        ValueError,
        "pad must be a token from 0 to 10, since the model has 11 logits, got 11",
    ),
    "pad below": (
        lambda: setup(ragged(), LanguageModel(Transformer(**SIZES), pad=-100)),
        ValueError,
        r"pad must be at least 0, got -100; write fm\.systems\.Tokens\(tokens, mask\)",
    ),
    "mask of ones": (
        lambda: Tokens(ragged(), np.ones((20, 7), np.int32)),
        ValueError,
        r"mask must be booleans .* got int32 \(20, 7\)\. Write mask\.astype",
    ),
    "mask of targets": (
        lambda: Tokens(ragged(), np.ones((20, 6), bool)),
        ValueError,
        r"mask must be .* shape, \(20, 7\), got bool \(20, 6\)",
    ),
    "tokens of text": (lambda: Tokens(["a", "b"]), TypeError, "tokens must be an array of integers .* got a list"),
    "no logits": (
        lambda: setup(ragged(), LanguageModel(fm.models.Chain(Embedding(11, 8), lambda x: x[:, 0]))),
        ValueError,
        r"must return logits \(n, length, vocabulary\) for tokens \(20, 6\), got \(20, 8\)",
    ),
    "objective": (
        lambda: setup(ragged(), LanguageModel(Transformer(**SIZES), fm.CrossEntropy(class_weights=jnp.ones(3)))),
        ValueError,
        r"class_weights must have one number per class, \(11,\)",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_bad_input(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()

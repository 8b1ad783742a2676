"""VAE and VQ-VAE against the formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm

X = 1 / (1 + np.exp(-data(10)[0]))
SGD = optax.sgd(0.1)


def linear(layer, x):
    return np.asarray(x) @ np.asarray(layer.weight) + np.asarray(layer.bias)


def posterior(vae):
    h = linear(vae.encoder, X)
    return h[:, :2], h[:, 2:]


@pytest.mark.parametrize("objective", [fm.BinaryCrossEntropy(), 0.5 * fm.MSE()], ids=["bernoulli", "normal"])
def test_the_bound(objective):
    vae = fm.init(fm.VAE(Linear(4, 4), Linear(2, 4), objective, beta=0.7), jax.random.key(0))
    mode = fm.Train(jax.random.key(3))
    entries = fm.losses(vae, fm.Unlabeled(X), mode)
    mean, log_variance = posterior(vae)
    kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(1)
    np.testing.assert_allclose(entries["kl"], 0.7 * kl, rtol=1e-5)
    # The noise is each example's own.
    key = fm.bind(vae, mode).mode.at("code").key
    noise = np.stack([jax.random.normal(jax.random.fold_in(key, i), (2,)) for i in range(len(X))])
    outputs = linear(vae.decoder, mean + np.exp(log_variance / 2) * noise)
    if isinstance(objective, fm.BinaryCrossEntropy):
        p = 1 / (1 + np.exp(-outputs))
        expected = -(X * np.log(p) + (1 - X) * np.log(1 - p)).sum(1)
    else:
        expected = 0.5 * ((outputs - X) ** 2).sum(1)
    np.testing.assert_allclose(entries["reconstruction"], expected, rtol=1e-5)
    again = fm.losses(vae, fm.Unlabeled(X), fm.Train(jax.random.key(4)))["reconstruction"]
    assert (np.asarray(again) != np.asarray(entries["reconstruction"])).all()


def test_gradients_go_through_the_draw():
    vae = fm.init(fm.VAE(Linear(4, 4), Linear(2, 4), beta=0.0), jax.random.key(0))
    slopes = jax.jit(fm.differentiate)(vae, fm.Unlabeled(X), fm.Train(jax.random.key(3)))[1]
    assert (np.asarray(slopes.encoder.weight) != 0).all()


def test_outputs_are_at_the_mean_and_samples_are_decoded_noise():
    state = fm.setup(fm.VAE(Linear(4, 4), Linear(2, 4)), X, optimizer=SGD)
    vae, key = state.system, jax.random.key(1)
    np.testing.assert_allclose(fm.predict(state, X), linear(vae.decoder, posterior(vae)[0]), atol=1e-5)
    noise = jax.random.normal(key, (7, 2))
    for of in (state, vae, fm.EMA(vae)):
        np.testing.assert_allclose(fm.sample(of, key, (7, 2)), linear(vae.decoder, noise), atol=1e-5)


def test_an_evaluation_does_not_depend_on_the_batches():
    state = fm.setup(fm.VAE(Linear(4, 4), Linear(2, 4)), X, optimizer=SGD)
    one, other = (fm.evaluate(state, X, batch_size=size) for size in (10, 4))
    assert one == pytest.approx(other, rel=1e-5)


def test_the_codebook_is_a_running_mean():
    layer = fm.models.Quantizer(codes=5, features=2, decay=0.8, epsilon=1e-3)
    state = fm.setup(fm.systems.VQVAE(Linear(4, 2), layer, Linear(2, 4), commitment=0.3), X, optimizer=SGD, batch_size=10)
    for _ in range(3):
        vqvae = state.system
        count, total = (np.asarray(b.value) for b in (vqvae.quantizer.count, vqvae.quantizer.total))
        smooth = (count + 1e-3) / (count.sum() + 5e-3) * count.sum()
        codebook = total / smooth[:, None]
        np.testing.assert_allclose(vqvae.quantizer.codebook, codebook, rtol=1e-5)
        z = linear(vqvae.encoder, X)
        code = ((z[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        assert (np.asarray(vqvae.quantizer.nearest(jnp.asarray(z))) == code).all()
        e = codebook[code]
        reconstruction, commitment = ((linear(vqvae.decoder, e) - X) ** 2).mean(), 0.3 * ((z - e) ** 2).mean()
        share = np.bincount(code, minlength=5) / len(code)
        used = np.exp(-sum(p * np.log(p) for p in share if p))

        def by_hand(weight, bias, vqvae=vqvae, e=e):
            z = X @ weight + bias[None]
            through = z + jax.lax.stop_gradient(e - z)
            outputs = through @ vqvae.decoder.weight + vqvae.decoder.bias[None]
            return ((outputs - X) ** 2).mean() + 0.3 * ((z - e) ** 2).mean()

        slope = jax.jit(jax.grad(by_hand))(vqvae.encoder.weight, vqvae.encoder.bias)
        before = np.asarray(vqvae.encoder.weight)
        evaluated = fm.evaluate(state, X, batch_size=4)
        state, logs = fm.train_step(state, X)
        np.testing.assert_allclose(logs["loss"], reconstruction + commitment, rtol=1e-5)
        np.testing.assert_allclose(logs["codes"], used, rtol=1e-5)
        np.testing.assert_allclose(evaluated["codes"], used, rtol=1e-5)  # in batches, the last one padded
        np.testing.assert_allclose(state.system.encoder.weight, before - 0.1 * np.asarray(slope), atol=1e-6)
        chosen = np.eye(5)[code]
        np.testing.assert_allclose(state.system.quantizer.count.value, 0.8 * count + 0.2 * chosen.sum(0), rtol=1e-5)
        np.testing.assert_allclose(
            state.system.quantizer.total.value, 0.8 * total + 0.2 * chosen.T @ z, rtol=1e-4, atol=1e-5
        )
    assert fm.count_parameters(state.system) == 22  # the two linear layers'


def test_the_codebook_moves_in_training_only():
    state = fm.setup(fm.systems.VQVAE(Linear(4, 2), fm.models.Quantizer(5, 2), Linear(2, 4)), X, optimizer=SGD)
    attacked = fm.perturb(fm.FGSM(fm.LinfBall(0.1)), state, X, jax.random.key(0))
    assert 0 < np.abs(attacked.x - X).max() <= 0.1001
    slopes = jax.jit(fm.differentiate)(state.system, fm.Unlabeled(X), fm.Eval(jax.random.key(0)))
    np.testing.assert_array_equal(slopes[2].quantizer.total.value, state.system.quantizer.total.value)


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (lambda: fm.VAE(Linear(4, 3), Linear(1, 4)), r"\(n, 2 · latent\)"),
        (lambda: fm.VAE(Linear(4, 4), Linear(2, 3)), "the shape of the model's outputs"),
        (lambda: fm.VAE(Linear(4, 4), Linear(2, 4), beta=-1.0), "beta"),
        (lambda: fm.VAE(Linear(4, 4), Linear(2, 4), Linear(4, 4)), "reconstruction must be an Objective, got Linear"),
        (lambda: fm.systems.VQVAE(Linear(4, 2), Linear(2, 2), Linear(2, 4)), r"fm\.models\.Quantizer\(512, 64\)"),
        (
            lambda: fm.systems.VQVAE(Linear(4, 3), fm.models.Quantizer(5, 2), Linear(2, 4)),
            r"Quantizer\(5, 2\) takes \(…, 2\)",
        ),
        (lambda: fm.systems.VQVAE(Linear(4, 2), fm.models.Quantizer(0, 2), Linear(2, 4)), r"Quantizer\.codes"),
    ],
)
def test_bad_input(system, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fm.setup(system(), X, optimizer=SGD)


def test_a_draw_needs_a_key():
    vae = fm.init(fm.VAE(Linear(4, 4), Linear(2, 4)), jax.random.key(0))
    with pytest.raises(ValueError, match="VAE draws at random and needs a mode with a key"):
        fm.losses(vae, fm.Unlabeled(X))

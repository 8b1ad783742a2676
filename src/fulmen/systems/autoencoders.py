"""`VAE` and `VQVAE`: autoencoders with continuous and with discrete codes; and `sample` of a state."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.example_keys import example_keys
from fulmen.core import Component, Labeled, Mergeable, Prediction, State, System, at_least_float32, hyper, short
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.verbs import forward, loss, losses, metrics, sample, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.vector_tables import Quantizer
from fulmen.objectives import MSE, BinaryCrossEntropy, Objective


class VAE(System):
    """A variational autoencoder: −ELBO = −E log p(x | z) + β KL(q(z | x) ‖ N(0, 1)), in nats for each example.

    z = mean + standard deviation · noise is drawn with a separate key for each example, in training and in evaluations;
    `forward` returns the outputs at the mean. Kingma and Welling 2014, arXiv:1312.6114; β from Higgins et al. 2017, "beta-VAE".

    Args:
        encoder: from x to the mean and the logarithm of the variance of z: `(n, 2 · latent)`, or two arrays.
        decoder: from z, `(n, latent)`, to outputs of the shape of x.
        reconstruction: −log p(x | z), as an objective that is the mean over the numbers of an example; the VAE uses their sum.
            `BinaryCrossEntropy()` is for x in [0, 1] with logits as outputs, `0.5 * MSE()` for a normal distribution with
            variance 1.
        beta: β, the weight of the KL term.

    >>> vae = fm.VAE(fm.models.MLP(64, 32, 2 * 2), fm.models.MLP(2, 32, 64))
    >>> state = fm.setup(vae, jnp.ones((6, 64)), optimizer=optax.adam, lr=1e-3)
    >>> sorted(fm.evaluate(state, jnp.ones((6, 64))))
    ['loss', 'loss/kl', 'loss/reconstruction']
    >>> jax.nn.sigmoid(fm.sample(state, jax.random.key(0), (10, 2))).shape
    (10, 64)
    """

    encoder: Component
    decoder: Component
    reconstruction: Objective = BinaryCrossEntropy()
    beta: float = hyper(minimum=0, default=1.0)

    @property
    def per_example(self) -> bool:
        """Whether the reconstruction is per example."""
        return self.reconstruction.per_example


@dispatch
def forward(vae: VAE, x):
    return forward(vae.decoder, _posterior(vae, x)[0])


@dispatch
def losses(vae: VAE, batch):
    mean, log_variance = _posterior(vae, batch.x)
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(example_keys(vae, batch, "code"))
    z = mean + jnp.exp(log_variance / 2) * noise
    each = loss(vae.reconstruction, Prediction(vae.decoder, forward(vae.decoder, z), Labeled(z, batch.x)))
    mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
    kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).reshape(len(mean), -1).sum(1) / 2
    beta = jnp.asarray(vae.beta).astype(kl.dtype)
    return {"reconstruction": batch.x[0].size * each, "kl": beta * kl}


def _posterior(vae: VAE, x: Any) -> tuple[jax.Array, jax.Array]:
    """The mean and the logarithm of the variance of z."""
    found: Any = forward(vae.encoder, x)
    if isinstance(found, tuple) and len(found) == 2:
        return found[0], found[1]
    shape = getattr(found, "shape", ())
    if len(shape) < 2 or shape[-1] % 2:
        raise ValueError(
            "VAE.encoder must return the means and the logarithms of the variances, as (n, 2 · latent) or as two arrays, got "
            f"{short(found)}."
        )
    moments = jnp.split(jnp.asarray(found), 2, axis=-1)
    return moments[0], moments[1]


@dispatch
def sample(vae: VAE, key, shape):
    return forward(vae.decoder, jax.random.normal(key, shape))


@dispatch
def sample(state: State, key, shape):
    return sample(state.system, key, shape)


class CodeUsage(Mergeable):
    """The effective number of codes in use: the exponential of their entropy, from 1 to the number of codes.

    Args:
        counts: `(codes,)`, how often each code was used.

    >>> float(fm.systems.CodeUsage(jnp.array([5.0, 5.0, 0.0])).compute().round(3))
    2.0
    """

    counts: jax.Array

    def compute(self) -> Any:
        share = self.counts / self.counts.sum()
        return jnp.exp(-(share * jnp.log(jnp.where(share > 0, share, 1))).sum())


class VQVAE(System):
    """A vector-quantized autoencoder: reconstruction + β ‖z − e‖², where e is the nearest codebook vector to z, without gradient.

    The quantizer updates the codebook as a running mean. The metric `codes` is the effective number of codes in use. Van den
    Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937.

    Args:
        encoder: from x to z, `(n, …, features)`.
        quantizer: a `fm.models.Quantizer`.
        decoder: from the codes' vectors, of the shape of z, to outputs of the shape of x.
        reconstruction: an objective.
        commitment: β, the weight of the distance between z and its code.

    >>> vqvae = fm.systems.VQVAE(fm.models.MLP(64, 8), fm.models.Quantizer(32, 8), fm.models.MLP(8, 64))
    >>> state = fm.setup(vqvae, jnp.ones((6, 64)), optimizer=optax.adam, lr=1e-3)
    >>> state, logs = fm.train_step(state, jnp.ones((6, 64)))
    >>> sorted(logs)
    ['codes', 'loss', 'loss/commitment', 'loss/reconstruction', 'lr']
    """

    encoder: Component
    quantizer: Quantizer
    decoder: Component
    reconstruction: Objective = MSE()
    commitment: float = hyper(minimum=0, default=0.25)

    @property
    def per_example(self) -> bool:
        """Whether the reconstruction is per example."""
        return self.reconstruction.per_example


@dispatch
def forward(vqvae: VQVAE, x):
    return forward(vqvae.decoder, forward(vqvae.quantizer, forward(vqvae.encoder, x)))


@dispatch
def losses(vqvae: VQVAE, batch):
    z = forward(vqvae.encoder, batch.x)
    e = forward(vqvae.quantizer, z)
    outputs = forward(vqvae.decoder, e)
    distance = at_least_float32(z - jax.lax.stop_gradient(e)).reshape(len(z), -1)
    commitment = jnp.asarray(vqvae.commitment).astype(distance.dtype) * (distance**2).mean(1)
    each = loss(vqvae.reconstruction, Prediction(vqvae.decoder, outputs, Labeled(e, batch.x)))
    return {"reconstruction": each, "commitment": commitment}


@dispatch
def metrics(vqvae: VQVAE, batch):
    code = vqvae.quantizer.nearest(forward(vqvae.encoder, batch.x))
    weight = jnp.ones(len(code)) if batch.weight is None else jnp.asarray(batch.weight)
    chosen = jax.nn.one_hot(code.reshape(len(code), -1), vqvae.quantizer.codes).sum(1)
    return {"codes": CodeUsage(weight @ chosen)}


@dispatch
def validate(autoencoder: VAE | VQVAE, batch):
    like = output_shapes(evaluated, autoencoder, batch.x)
    validate(autoencoder.reconstruction, Prediction(autoencoder.decoder, like, Labeled(batch.x, batch.x)))

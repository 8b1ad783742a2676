"""`VQVAE`: an autoencoder with discrete codes."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core import Component, Labeled, Mergeable, Prediction, System, at_least_float32, hyper
from fulmen.core.output_shapes import evaluated, output_shapes
from fulmen.core.verbs import forward, loss, losses, metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.quantizer import Quantizer
from fulmen.objectives import MSE, Objective


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
def validate(vqvae: VQVAE, batch):
    like = output_shapes(evaluated, vqvae, batch.x)
    validate(vqvae.reconstruction, Prediction(vqvae.decoder, like, Labeled(batch.x, batch.x)))

"""The divergence of predicted probabilities from a reference, which TRADES and VAT maximise by the input and minimise by training."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.compose.defence import logits
from fulmen.core import Attacked, Batch, Prediction, System, at_least_float32, hyper
from fulmen.core.verbs import losses
from fulmen.dispatching.registry import dispatch


def divergence(reference: jax.Array, outputs: jax.Array) -> jax.Array:
    """KL(p ‖ q) = Σ_c p_c (log p_c − log q_c) in nats, `(n,)`, from two arrays of logits `(n, classes)`."""
    p, q = jax.nn.log_softmax(at_least_float32(reference)), jax.nn.log_softmax(at_least_float32(outputs))
    return (jax.nn.softmax(at_least_float32(reference)) * (p - q)).sum(1)


def total_divergence(reference: dict[str, Prediction], found: dict[str, Prediction]) -> jax.Array:
    """The sum of the divergences of a system's classifiers, `(n,)`."""
    return jnp.stack([divergence(reference[path].outputs, prediction.outputs) for path, prediction in found.items()]).sum(0)


class _Reference(Batch):
    """The reference logits, by the classifier's path."""

    logits: dict[str, jax.Array] = hyper()


class Divergence(System):
    """A system to attack without labels: its loss is the divergence of its probabilities from a reference.

    Args:
        system: a system with a classifier in it.
    """

    per_example: ClassVar[bool] = True

    system: Any


def with_reference(batch: Any, reference: dict[str, Prediction]) -> Attacked:
    """The batch that `Divergence` takes: examples, and the reference predictions."""
    return Attacked(batch, _Reference({path: p.outputs for path, p in reference.items()}, weight=batch.weight))


@dispatch
def losses(system: Divergence, batch):
    found, reference = logits(system, system.system, batch.batch), batch.clean.logits
    return {path or "kl": divergence(reference[path], p.outputs) for path, p in found.items()}

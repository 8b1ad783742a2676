"""`TRADES` and `MART`, which train on the divergence of predicted probabilities; the divergence is `VAT`'s too."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fulmen.compose.defence import logits, unrecorded, validate_logits
from fulmen.core import Attacked, Batch, Eval, Prediction, System, at_least_float32, hyper, still
from fulmen.core.verbs import bind, defence_losses, loss, losses, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack, Clean
from fulmen.robust.attacks.attack_runs import last_point
from fulmen.robust.certified.ibp import integer_labels
from fulmen.robust.defences.adversarial import AttackTrained


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

    Its batches are `Attacked`, with the `_Reference` as the clean part.

    Args:
        system: a system with a classifier in it.
    """

    per_example: ClassVar[bool] = True

    system: Any


@dispatch
def losses(system: Divergence, batch):
    found, reference = logits(system, system.system, batch.batch), batch.clean.logits
    return {path or "kl": divergence(reference[path], p.outputs) for path, p in found.items()}


class TRADES(AttackTrained):
    """Training for a trade-off between accuracy and robustness: loss(x) + β KL(p(x) ‖ p(x′)).

    The attack finds x′ by maximising the divergence; the clean logits are computed once. The divergences of several classifiers
    in the system are added up. Zhang et al. 2019, arXiv:1901.08573.

    Args:
        system: one with a classifier in it, at any depth, and any loss.
        attack: the attack, or an `AttackSchedule`. An objective of the attack replaces the divergence. It must start at random,
            since the gradient of the divergence at x is 0: in the paper at x + 0.001 · N(0, I), here
            `fm.PGD(…, start=Gaussian(0.001))`; a plain `fm.PGD(…)` starts anywhere in the ball.
        beta: β, the weight of the divergence.

    >>> from fulmen.robust.defences import TRADES, Gaussian
    >>> attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.02, steps=10, start=Gaussian(0.001))
    >>> TRADES(fm.Classifier(fm.models.MLP(64, 32, 10)), attack).beta
    6.0
    """

    beta: float = hyper(minimum=0, default=6.0)

    def attacked(self, attack: Attack, batch: Any, key: Any) -> Any:
        system = bind(Divergence(still(self.system)), Eval(key))
        found = {path: p.outputs for path, p in logits(self, system.system, batch).items()}
        return last_point(attack, system, Attacked(batch, _Reference(found, weight=batch.weight)), key).batch


@dispatch
def defence_losses(trades: TRADES, batch):
    system = trades.system
    kl = total_divergence(logits(trades, unrecorded(system), batch.clean), logits(trades, system, batch.batch))
    return {"clean": loss(system, batch.clean), "kl": jnp.asarray(trades.beta).astype(kl.dtype) * kl}


@dispatch
def validate(trades: TRADES):
    attack = trades.attack
    if isinstance(attack, Attack) and isinstance(attack.start, Clean) and attack.objective is None:
        raise ValueError(
            "TRADES.attack must start at random, since the gradient of the divergence at the clean input is 0, got "
            f"{attack!r}; write start=fm.defences.Gaussian(0.001) or start=fm.attacks.Uniform()."
        )


class MART(AttackTrained):
    """Misclassification-aware training: BCE(x′) + β KL(p(x) ‖ p(x′)) · (1 − p_y(x)).

    BCE is the system's loss at x′ (in the paper, the cross-entropy) minus log(1.0001 − max_{c≠y} p_c(x′)). The terms of several
    classifiers in the system are added up. Wang et al. 2020, "Improving adversarial robustness requires revisiting
    misclassified examples".

    Args:
        system: one with a classifier in it, at any depth; labels are integers.
        attack: the attack, or an `AttackSchedule`; in the paper's code `fm.PGD(…, start=Gaussian(0.001))`.
        beta: β, how much the divergence counts.

    >>> from fulmen.robust.defences import MART
    >>> attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.02, steps=10)
    >>> MART(fm.Classifier(fm.models.MLP(64, 32, 10)), attack).beta
    6.0
    """

    beta: float = hyper(minimum=0, default=6.0)


@dispatch
def defence_losses(mart: MART, batch):
    system = mart.system
    clean, robust = logits(mart, system, batch.clean), logits(mart, unrecorded(system), batch.batch)
    margin: Any = 0.0
    kl: Any = 0.0
    for path, prediction in robust.items():
        y = integer_labels(mart, prediction)
        is_label = jax.nn.one_hot(y, prediction.outputs.shape[1], dtype=bool)
        wrong = jnp.where(is_label, 0, jax.nn.softmax(at_least_float32(prediction.outputs))).max(1)
        right = jnp.where(is_label, jax.nn.softmax(at_least_float32(clean[path].outputs)), 0).sum(1)
        margin = margin - jnp.log(1.0001 - wrong)
        kl = kl + divergence(clean[path].outputs, prediction.outputs) * (1 - right)
    return {"robust": loss(system, batch.batch), "margin": margin, "kl": jnp.asarray(mart.beta).astype(kl.dtype) * kl}


@dispatch
def validate(defence: TRADES | MART, batch):
    validate.invoke(AttackTrained, object)(defence, batch)
    validate_logits(defence, batch)

"""`MART`: adversarial training in which misclassified examples have more weight."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import logits, unrecorded, validate_logits
from fulmen.core import Prediction, at_least_float32, class_targets, hyper
from fulmen.core.verbs import defence_losses, loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.defences.adversarial import AttackTrained
from fulmen.robust.defences.divergence import divergence


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
        y = _labels(mart, prediction)
        is_label = jax.nn.one_hot(y, prediction.outputs.shape[1], dtype=bool)
        wrong = jnp.where(is_label, 0, jax.nn.softmax(at_least_float32(prediction.outputs))).max(1)
        right = jnp.where(is_label, jax.nn.softmax(at_least_float32(clean[path].outputs)), 0).sum(1)
        margin = margin - jnp.log(1.0001 - wrong)
        kl = kl + divergence(clean[path].outputs, prediction.outputs) * (1 - right)
    return {"robust": loss(system, batch.batch), "margin": margin, "kl": jnp.asarray(mart.beta).astype(kl.dtype) * kl}


def _labels(mart: MART, prediction: Prediction) -> Any:
    y, labels = class_targets(prediction, mart)
    if not labels:
        raise TypeError("MART: y must be integer labels, got probabilities; remove augmentations that mix or smooth labels.")
    return jnp.asarray(y)


@dispatch
def validate(mart: MART, batch):
    validate.invoke(AttackTrained, object)(mart, batch)
    validate_logits(mart, batch)

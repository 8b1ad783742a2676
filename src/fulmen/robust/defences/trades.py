"""`TRADES`: the clean loss, and how far an attack moves the probabilities."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fulmen.compose.defence import logits, unrecorded, validate_logits
from fulmen.core.component import still
from fulmen.core.fields import hyper
from fulmen.core.mode import Eval
from fulmen.core.verbs import bind, defence_losses, loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack, Clean
from fulmen.robust.attacks.attack_runs import last_point
from fulmen.robust.defences.adversarial import AttackTrained
from fulmen.robust.defences.divergence import Divergence, total_divergence, with_reference

__all__ = ["TRADES"]


class TRADES(AttackTrained):
    """Training for a trade-off between accuracy and robustness: loss(x) + β KL(p(x) ‖ p(x′)).

    x′ is where the attack has made the divergence large; the clean logits that it moves away from are computed once. With
    several classifiers in the system the divergences add up. Zhang et al. 2019, arXiv:1901.08573.

    Args:
        system: one with a classifier in it, at any depth; its loss may be any.
        attack: the attack, or an `AttackSchedule`; without an objective of its own it makes the divergence large. It has to
            start at random, since at x the divergence has no gradient. The paper's start is x + 0.001 · N(0, I), here
            `fm.PGD(…, start=Gaussian(0.001))`; a plain `fm.PGD(…)` starts anywhere in the ball, which is allowed too.
        beta: β, how much the divergence counts.

    >>> from fulmen.robust.defences import TRADES, Gaussian
    >>> attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0, 1), step_size=0.02, steps=10, start=Gaussian(0.001))
    >>> TRADES(fm.Classifier(fm.models.MLP(64, 32, 10)), attack).beta
    6.0
    """

    beta: float = hyper(minimum=0, default=6.0)

    def attacked(self, attack: Attack, batch: Any, key: Any) -> Any:
        system = bind(Divergence(still(self.system)), Eval(key))
        reference = logits(self, system.system, batch)
        return last_point(attack, system, with_reference(batch, reference), key).batch


@dispatch
def defence_losses(trades: TRADES, batch):
    system = trades.system
    moved = total_divergence(logits(trades, unrecorded(system), batch.clean), logits(trades, system, batch.batch))
    return {"clean": loss(system, batch.clean), "kl": jnp.asarray(trades.beta).astype(moved.dtype) * moved}


@dispatch
def validate(trades: TRADES):
    attack = trades.attack
    if isinstance(attack, Attack) and isinstance(attack.start, Clean) and attack.objective is None:
        raise ValueError(
            "TRADES, attack: one that starts at random was expected, since the divergence has no gradient at the clean input, "
            f"and {attack!r} came: start=Gaussian(0.001), or fm.attacks.Uniform()."
        )


@dispatch
def validate(trades: TRADES, batch):
    validate.invoke(AttackTrained, object)(trades, batch)
    validate_logits(trades, batch)

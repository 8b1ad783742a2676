"""`TRADES`: the clean loss, and the divergence of the attacked probabilities from the clean ones."""

from typing import Any

import jax.numpy as jnp

from fulmen.compose.defence import logits, unrecorded, validate_logits
from fulmen.core import Eval, hyper, still
from fulmen.core.verbs import bind, defence_losses, loss, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack, Clean
from fulmen.robust.attacks.attack_runs import last_point
from fulmen.robust.defences.adversarial import AttackTrained
from fulmen.robust.defences.divergence import Divergence, total_divergence, with_reference


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
        reference = logits(self, system.system, batch)
        return last_point(attack, system, with_reference(batch, reference), key).batch


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


@dispatch
def validate(trades: TRADES, batch):
    validate.invoke(AttackTrained, object)(trades, batch)
    validate_logits(trades, batch)

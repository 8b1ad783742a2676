"""`Adversarial`: a system trained on attacked inputs, and attacks that change with the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import Defence
from fulmen.compose.part_defaults import augmented
from fulmen.core import Attacked, Component, components, hyper, short
from fulmen.core.verbs import as_batch, augment, defence_losses, loss, validate
from fulmen.data.mixed import Mixed
from fulmen.dispatching.registry import dispatch, verb
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_runs import last_point
from fulmen.systems.ema import trained

__all__ = ["Adversarial", "AttackSchedule", "AttackTrained", "attack_at"]


class AttackSchedule(Component):
    """An attack that changes with the training step: a function from the number of steps done to the attack.

    Args:
        function: `step -> Attack`. Numbers in the attack may depend on the step, which is traced; its type and static fields may
            not. Systems share compiled code only if they have the same function object.

    >>> from fulmen.robust.defences.adversarial import AttackSchedule
    >>> def warming(step):
    ...     eps = optax.linear_schedule(0.0, 0.1, 500)(step)
    ...     return fm.PGD(fm.LinfBall(eps) & fm.Box(0, 1), step_size=eps / 4, steps=10)
    >>> fm.Adversarial(fm.models.Flatten(), AttackSchedule(warming)).attack
    AttackSchedule(function=warming)
    """

    function: Callable[[Any], Attack]


def attack_at(attack: Any, mode: Any) -> Attack:
    """The attack at the step of a mode, or at step 0 if the mode has none."""
    if not isinstance(attack, AttackSchedule):
        return attack
    with jax.numpy_dtype_promotion("standard"):  # a schedule counts in integers
        return attack.function(jnp.asarray(getattr(mode, "step", 0), jnp.int32))


class AttackTrained(Defence):
    """A defence that trains on attacked batches.

    In a training step `augment` runs the system's augmentation and then the attack, once, against the system in `Eval` mode, so
    that running statistics do not change and no gradients of weights are computed. In a system with an `EMA`, the attack is on
    the trained weights; in `Mixed` data each kind of example is attacked separately.

    Args:
        system: anything that has a loss.
        attack: the attack, or an `AttackSchedule`. Its numbers are hyperparameters, which may change without recompiling.

    **Extending.** Subclass it and write `defence_losses(defence: Mine, batch)`, which uses `batch.clean` and `batch.batch`; for
    another way to attack, write `augment(defence: Mine, batch, mode)`.
    """

    attack: Attack | AttackSchedule

    def __post_init__(self) -> None:
        if isinstance(self.system, Attack | AttackSchedule):
            kind = type(self).__name__
            raise TypeError(
                f"{kind}.system must be a system, got the attack {short(self.system)}; write fm.{kind}(system, attack)."
            )

    def attacked(self, attack: Attack, batch: Any, key: Any) -> Any:
        """The attacked batch."""
        return last_point(attack, self.system, batch, key)


class Adversarial(AttackTrained):
    """A system that is trained against an attack (Madry et al. 2018, arXiv:1706.06083).

    Loss and metrics of the `Attacked` batch from `augment` are those of the attacked inputs; the metrics are named `robust/…`.
    On other batches, as in an evaluation, they are the system's.

    Args:
        system: anything that has a loss: a `Classifier`, a model with a custom loss, a game, another wrapper.
        attack: the attack, or an `AttackSchedule`. Its numbers are hyperparameters, which may change without recompiling.
        clean_weight: w, in [0, 1], for the loss w · loss(x) + (1 − w) · loss(x′) (Goodfellow et al. 2015, arXiv:1412.6572, with
            w = ½). With None, no clean loss is computed.

    **Extending.** Overload `augment(adv: Mine, batch, mode)` for another way to attack, and `loss(adv: Mine, batch:
    fm.data.Attacked)` for another loss of `batch.clean` and `batch.batch`. The attacked inputs are the last points of the attack:
    the best points, which `perturb` returns, would cost another forward pass.

    >>> fm.Adversarial(fm.models.Flatten(), fm.FGSM(fm.LinfBall(0.1))).attack.region
    LinfBall(eps=0.1)
    """

    clean_weight: float | None = hyper(minimum=0, maximum=1, default=None)

    def defends(self, batch: Any) -> bool:
        return super().defends(batch) and self.clean_weight is not None


@dispatch
def augment(defence: AttackTrained, batch, mode):
    return attack_batch(batch, trained(defence), mode)


@verb(delegates=False)
def attack_batch(batch, defence, mode):
    """A batch, augmented and attacked by an `AttackTrained`."""


@dispatch
def attack_batch(batch: object, defence, mode):
    batch = augmented(defence.system, batch, mode.at("system"))
    return Attacked(defence.attacked(attack_at(defence.attack, mode), batch, mode.at("attack").example_key), batch)


@dispatch
def attack_batch(batch: Mixed, defence, mode):
    found = batch.each(lambda part, name: augment(defence, part, mode.at(name)))
    return Attacked(found.each(lambda part, _: part.batch), found.each(lambda part, _: part.clean))


@dispatch
def defence_losses(adv: Adversarial, batch):
    clean, robust = loss(adv.system, batch.clean), loss(adv.system, batch.batch)
    weight = jnp.asarray(adv.clean_weight)
    return {"clean": weight.astype(clean.dtype) * clean, "robust": (1 - weight).astype(robust.dtype) * robust}


@dispatch
def validate(schedule: AttackSchedule):
    attack = attack_at(schedule, None)
    if not isinstance(attack, Attack):
        raise TypeError(
            f"AttackSchedule.function must return an attack such as fm.FGSM(fm.LinfBall(0.1)), got {attack!r} at step 0."
        )
    for _, part in components(attack):
        validate(part)


@dispatch
def validate(defence: AttackTrained, batch):
    batch = as_batch(defence.system, batch)
    validate(attack_at(defence.attack, None), defence.system, batch)
    validate(defence.system, batch)

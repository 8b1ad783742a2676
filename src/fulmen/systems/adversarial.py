"""`Adversarial`: a system trained on inputs that an attack has been over."""

from __future__ import annotations

from typing import Any

from fulmen.attacks.attack import Attack
from fulmen.attacks.gradient import last_point
from fulmen.batch import Attacked
from fulmen.component import Component, System, Wrapper, part_name
from fulmen.dispatch import dispatch
from fulmen.systems.composition import sums_its_losses
from fulmen.verbs import as_batch, augment, loss, losses, metrics, reduce_losses, validate

__all__ = ["Adversarial"]


class Adversarial(Wrapper):
    """A system that is trained against an attack (Madry et al. 2018, arXiv:1706.06083).

    In a training step `augment` runs the system's own augmentation and then the attack, once, against the system in `Eval`
    mode; loss and metrics see the `Attacked` batch, and the metrics are called `robust/…`. On any other batch, as in an
    evaluation, it is the system.

    Args:
        system: anything that has a loss: a `Classifier`, a model with a loss of its own, a game, another wrapper.
        attack: the attack. Its numbers are hyperparameters, which may change without recompiling.

    **Extending.** Overload `augment(adv: Mine, batch, mode)` for another way to attack, and `loss(adv: Mine, batch:
    fm.Attacked)` for another loss, as of `batch.clean` and `batch.batch` together. Training is on the last point of the
    attack: the best one, which `perturb` gives, would cost another forward pass.

    >>> fm.Adversarial(fm.models.Flatten(), fm.FGSM(fm.LinfBall(0.1))).attack.region
    LinfBall(eps=0.1)
    """

    system: Component
    attack: Attack


@dispatch
def augment(adv: Adversarial, batch, mode):
    batch = augment(adv.system, batch, mode.at("system"))
    return Attacked(last_point(adv.attack, adv.system, batch, mode.at("attack").key), batch)


def _inner(batch: Any) -> Any:
    """The batch as the system sees it: attacked, if an attack has been over it."""
    return batch.batch if isinstance(batch, Attacked) else batch


@dispatch
def loss(adv: Adversarial, batch):
    return loss(adv.system, _inner(batch))


@dispatch
def losses(adv: Adversarial, batch):
    part, batch = adv.system, _inner(batch)
    return losses(part, batch) if _has_entries(part, batch) else {"system": loss(part, batch)}


@dispatch
def reduce_losses(adv: Adversarial, losses, batch):
    if _has_entries(adv.system, _inner(batch)):
        return reduce_losses(adv.system, losses, _inner(batch))
    return reduce_losses.invoke(System, object, object)(adv, losses, _inner(batch))


def _has_entries(part: Any, batch: Any) -> bool:
    """Whether `losses` says what its loss is made of; a model has a loss alone, and so may a system of the user's."""
    while isinstance(part, Wrapper):
        part = getattr(part, part_name(type(part)))
    return isinstance(part, System) and sums_its_losses(part, batch)


@dispatch
def metrics(adv: Adversarial, batch):
    prefix = "robust/" if isinstance(batch, Attacked) else ""
    return {f"{prefix}{name}": figure for name, figure in metrics(adv.system, _inner(batch)).items()}


@dispatch
def validate(adv: Adversarial):
    if not isinstance(adv.attack, Attack):
        raise TypeError(f"Adversarial, attack: such as fm.FGSM(fm.LinfBall(0.1)) was expected, and {adv.attack!r} came.")


@dispatch
def validate(adv: Adversarial, batch):
    batch = as_batch(adv.system, batch)
    validate(adv.attack, batch)
    validate(adv.system, batch)

"""Several attacks as one: `WorstOf`, and `autoattack`, the standard ensemble."""

from typing import Any

import jax
import optax

from fulmen.core import with_inputs
from fulmen.core.verbs import attempt, perturb, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import DLR, CrossEntropy
from fulmen.robust.attacks.apgd import APGD
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_runs import clean_state, on_survivors, with_index
from fulmen.robust.attacks.boundary_attacks import FAB
from fulmen.robust.attacks.problem import Problem
from fulmen.robust.attacks.region import Region, ball_of
from fulmen.robust.attacks.square import Square
from fulmen.robust.attacks.targets import LikelyTarget


class WorstOf(Attack):
    """Several attacks, each on the examples on which the previous ones have not succeeded.

    Args:
        *attacks: the attacks, the fastest ones first.

    >>> region = fm.LinfBall(0.1) & fm.Box(0, 1)
    >>> fm.WorstOf(fm.FGSM(region), fm.PGD(region, 0.02, 10, restarts=3))
    WorstOf(FGSM(region=LinfBall(eps=0.1) & Box(lo=0, hi=1)), PGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), step_size=0.02, \
steps=10, restarts=3))
    """

    attacks: tuple[Attack, ...] = ()

    def __init__(self, *attacks: Attack) -> None:
        if not attacks:
            raise ValueError("WorstOf needs at least one attack, such as fm.FGSM(region), got none.")
        fields: Any = Attack(optax.identity(), attacks[0].region).__dict__
        self.__dict__.update(fields, transform=None, attacks=attacks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.attacks))})"


def flattened(attack: Any) -> list[Any]:
    """The attacks that an attack consists of."""
    return [inner for each in attack.attacks for inner in flattened(each)] if isinstance(attack, WorstOf) else [attack]


@dispatch
def perturb(attack: WorstOf, system, batch, key):
    return with_inputs(batch, attempt(attack, system, batch, key, checked=True).x)


@attempt.dispatch
def _attempt(attack: WorstOf, system, batch, key):
    batch = with_index(batch)
    found = clean_state(Problem(attack, system, batch, key=key, stop=True))
    for number, member in enumerate(attack.attacks):
        own_key = None if key is None else jax.random.fold_in(key, number)
        problem = Problem(member, system, batch, key=own_key, stop=True)
        found = on_survivors(found, problem, _attempt_member)
    return found


def _attempt_member(problem: Problem) -> Any:
    return attempt(problem.attack, problem.system, problem.batch, problem.key, checked=True)


@dispatch
def validate(attack: WorstOf, system, batch):
    validate(attack)
    for member in attack.attacks:
        validate(member, system, batch)


def autoattack(
    region: Region, *, classes: int = 10, steps: int = 100, queries: int = 5000, targets: int | None = None
) -> WorstOf:
    """The standard AutoAttack, without parameters to tune: a `WorstOf` of four attacks.

    APGD on the cross-entropy, APGD on the targeted DLR and FAB, both towards each of the most likely wrong classes, and
    Square. Croce and Hein 2020, arXiv:2003.01690; for an `L1Ball` 2021, arXiv:2103.01208: five restarts of the first and
    five targets of the second, in balls of three, two and one times the radius.

    Args:
        region: the region of allowed points, with one `LinfBall`, `L2Ball` or `L1Ball`.
        classes: the number of classes; with fewer than four, the targeted APGD minimises the target's cross-entropy.
        steps: the number of steps of each run of APGD and of FAB.
        queries: the number of queries of Square.
        targets: the number of target classes, at most `classes - 1`; None is nine, or five for APGD in an `L1Ball`.

    Returns:
        A `WorstOf`.

    Raises:
        ValueError: if `classes` is below 2 or `targets` below 1.

    >>> print(*fm.autoattack(fm.LinfBall(0.1) & fm.Box(0, 1), targets=1).attacks, sep="\\n")
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), objective=DLR(), target=LikelyTarget(rank=1))
    FAB(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), targets=1)
    Square(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """
    for name, value, least in (("classes", classes, 2), ("targets", 1 if targets is None else targets, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"autoattack: {name} must be an integer of at least {least}, got {value!r}.")
    sparse = ball_of(region).norm_order == 1
    stages = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)) if sparse else None
    first = APGD(region, steps, restarts=5 if sparse else 1, stages=stages)
    objective = DLR() if classes > 3 else CrossEntropy()

    def ranks(most: int) -> range:
        return range(1, min(targets or most, classes - 1) + 1)

    targeted = [
        APGD(region, steps, objective=objective, target=LikelyTarget(rank), stages=stages)
        for rank in ranks(5 if sparse else 9)
    ]
    boundary = FAB(region, steps, targets=len(ranks(9)))
    return WorstOf(first, *targeted, boundary, Square(region, queries))

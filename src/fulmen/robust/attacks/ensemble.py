"""Several attacks as one: `WorstOf`; `autoattack`, the standard ensemble, and `quick`, a short one."""

from typing import Any

import jax
import optax

from fulmen.core import remake, short, with_inputs
from fulmen.core.verbs import attempt, perturb, scaled, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import DLR, CrossEntropy, ProbabilityMargin
from fulmen.robust.attacks.apgd import APGD
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_runs import after_others, clean_state, with_index
from fulmen.robust.attacks.boundary_attacks import FAB
from fulmen.robust.attacks.problem import Problem
from fulmen.robust.attacks.region import Region, ball_of, normed_ball_of
from fulmen.robust.attacks.square import Square
from fulmen.robust.attacks.targets import MALT, LikelyTarget, Targeting


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
        for attack in attacks:
            if not isinstance(attack, Attack):
                several = "; write fm.WorstOf(*attacks)" if isinstance(attack, list | tuple) else ""
                raise TypeError(f"WorstOf takes attacks, such as fm.FGSM(region), got {short(attack)}{several}.")
        fields: Any = Attack(optax.identity(), attacks[0].region).__dict__
        self.__dict__.update(fields, transform=None, attacks=attacks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.attacks))})"


def fields_around(who: type, attack: Any, **options: Any) -> dict[str, Any]:
    """The fields of an attack of type `who` that runs another one, in the same region and for the same target.

    Raises:
        TypeError: for anything but an attack.
    """
    if not isinstance(attack, Attack):
        raise TypeError(f"{who.__name__}.attack must be an attack such as fm.PGD(region, 0.02, 10), got {attack!r}.")
    outer = Attack(optax.identity(), attack.region, target=attack.target, **options)
    return {**outer.__dict__, "transform": None, "attack": attack}


def flattened(attack: Any) -> list[Any]:
    """The attacks that an attack consists of."""
    return [inner for each in attack.attacks for inner in flattened(each)] if isinstance(attack, WorstOf) else [attack]


def most_passes(attack: Any) -> int:
    """The passes of `attempt` for one example, at most: at the clean input, in all steps of all runs, and at their last points."""
    return 1 + sum((each.passes * each.length + each.last_passes) * each.restarts for each in flattened(attack))


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
        found = after_others(found, problem, attack)
    return found


@dispatch
def scaled(attack: WorstOf, factor):
    region = scaled(attack.region, factor)
    return remake(attack, {"region": region, "attacks": tuple(scaled(each, factor) for each in attack.attacks)})


@dispatch
def validate(attack: WorstOf, system, batch):
    validate(attack)
    for member in attack.attacks:
        validate(member, system, batch)


def autoattack(
    region: Region,
    *,
    classes: int = 10,
    steps: int = 100,
    queries: int = 5000,
    targets: int | None = None,
    samples: int | None = None,
) -> WorstOf:
    """The standard AutoAttack, without parameters to tune: a `WorstOf` of four attacks.

    APGD on the cross-entropy, APGD on the targeted DLR and FAB, both towards each of the most likely wrong classes, and
    Square. Croce and Hein 2020, arXiv:2003.01690; for an `L1Ball` 2021, arXiv:2103.01208: five restarts of the first and
    five targets of the second, in balls of three, two and one times the radius.

    With `samples`, for a model that draws random numbers in `Eval`, it is their version "rand": APGD on the cross-entropy and
    on the DLR. Each gradient is a mean over that number of draws, and an attack succeeds where most of them are wrong.

    Args:
        region: the region of allowed points, with one `LinfBall`, `L2Ball` or `L1Ball`.
        classes: the number of classes; with fewer than four, the targeted APGD minimises the target's cross-entropy.
        steps: the number of steps of each run of APGD and of FAB.
        queries: the number of queries of Square.
        targets: the number of target classes, at most `classes - 1`; None is nine, or five for APGD in an `L1Ball`.
        samples: for a model that draws, the number of draws per gradient; the authors take 20.

    Returns:
        A `WorstOf`.

    Raises:
        TypeError: for a region without a ball of the 1-, 2- or ∞-norm.
        ValueError: if `classes` is below 2, or `targets` or `samples` below 1.

    >>> print(*fm.autoattack(fm.LinfBall(0.1) & fm.Box(0, 1), targets=1).attacks, sep="\\n")
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), objective=DLR(), target=LikelyTarget(rank=1))
    FAB(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), targets=1)
    Square(region=LinfBall(eps=0.1) & Box(lo=0, hi=1))
    """
    _require_counts("autoattack", classes=(classes, 2), targets=(targets, 1), samples=(samples, 1))
    sparse = normed_ball_of(APGD(region)).norm_order == 1
    stages = _stages(region)
    if samples is not None:
        objectives = (CrossEntropy(), DLR()) if classes > 2 else (CrossEntropy(),)
        return WorstOf(*(APGD(region, steps, objective=each, samples=samples, stages=stages) for each in objectives))
    first = APGD(region, steps, restarts=5 if sparse else 1, stages=stages)

    def ranks(most: int) -> range:
        return range(1, min(targets or most, classes - 1) + 1)

    targeted = [_targeted(region, steps, classes, LikelyTarget(rank)) for rank in ranks(5 if sparse else 9)]
    boundary = FAB(region, steps, targets=len(ranks(9)))
    return WorstOf(first, *targeted, boundary, Square(region, queries))


def quick(region: Region, *, classes: int = 10, steps: int = 100, targets: int = 3) -> WorstOf:
    """A quick estimate of what `autoattack` finds: a `WorstOf` of APGD on the probability margin, and targeted APGD.

    The first is PMA, arXiv:2411.15210. The second minimises the targeted DLR towards the classes whose linearised boundaries are
    the nearest, by `MALT`, arXiv:2407.02240. Both need gradients: a masked model, which `autoattack` attacks by Square too,
    looks far more robust than it is. For a net of digits whose input is rounded, `quick` gives an accuracy of .95, and `autoattack`
    .58. `fm.robustness(state, data, fm.quick(region))` reports signs of that, and `evaluate` warns where the gradient is 0. Publish
    figures of `autoattack`.

    Args:
        region: the region of allowed points, with one `LinfBall`, `L2Ball` or `L1Ball`.
        classes: the number of classes; with fewer than four, the targeted APGD minimises the target's cross-entropy.
        steps: the number of steps of each run of APGD.
        targets: the number of target classes, at most `classes - 1`.

    Returns:
        A `WorstOf`.

    Raises:
        ValueError: if `classes` is below 2 or `targets` below 1.

    >>> print(*fm.quick(fm.LinfBall(0.1) & fm.Box(0, 1), targets=1).attacks, sep="\\n")
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), objective=ProbabilityMargin())
    APGD(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), objective=DLR(), target=MALT(rank=1, norm=inf, candidates=9))
    """
    _require_counts("quick", classes=(classes, 2), targets=(targets, 1))
    norm, count = float(normed_ball_of(APGD(region)).norm_order or 0), min(targets, classes - 1)
    nearest = [MALT(rank, norm=norm) for rank in range(1, count + 1)]
    first = APGD(region, steps, objective=ProbabilityMargin(), stages=_stages(region))
    return WorstOf(first, *(_targeted(region, steps, classes, target) for target in nearest))


def _require_counts(name: str, **counts: tuple[Any, int]) -> None:
    for option, (value, least) in counts.items():
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name}: {option} must be an integer of at least {least}, got {value!r}.")


def _stages(region: Region) -> Any:
    return ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)) if ball_of(region).norm_order == 1 else None


def _targeted(region: Region, steps: int, classes: int, target: Targeting) -> APGD:
    return APGD(region, steps, objective=DLR() if classes > 3 else CrossEntropy(), target=target, stages=_stages(region))

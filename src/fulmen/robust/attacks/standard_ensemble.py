"""`autoattack`: the standard AutoAttack ensemble."""

from fulmen.objectives import DLR, CrossEntropy
from fulmen.robust.attacks.apgd import APGD
from fulmen.robust.attacks.ensemble import WorstOf
from fulmen.robust.attacks.fab import FAB
from fulmen.robust.attacks.region import Region, ball_of
from fulmen.robust.attacks.square import Square
from fulmen.robust.attacks.targets import LikelyTarget


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

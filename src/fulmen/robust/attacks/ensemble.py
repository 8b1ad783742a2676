"""`WorstOf`: several attacks, each on the examples on which the previous ones have not succeeded."""

from typing import Any

import jax
import optax

from fulmen.core import with_inputs
from fulmen.core.verbs import attempt, perturb, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_runs import clean_state, on_survivors, with_index
from fulmen.robust.attacks.problem import Problem


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

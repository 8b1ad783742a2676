"""The attacks of an evaluation: those that the argument `attack` means, their names and radii; and random search."""

import dataclasses
import functools
import re
from typing import Any

from fulmen.core import remake, short, static
from fulmen.core.marks import keeps_state
from fulmen.core.verbs import advance, as_attack, begin, finish
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack, SteepestAscent, Uniform
from fulmen.robust.attacks.attack_loop import AttackState, initial_fields
from fulmen.robust.attacks.chain_attacks import start_points
from fulmen.robust.attacks.ensemble import WorstOf, autoattack
from fulmen.robust.attacks.region import Ball, Region, single_ball


@dispatch
def as_attack(given: object, classes):
    raise TypeError(
        "attack must be an attack such as fm.PGD(region, step_size=0.01, steps=40), a tuple of attacks, or a region such as "
        f"fm.LinfBall(0.1) & fm.Box(0, 1), got {short(given)}."
    )


@dispatch
def as_attack(given: type, classes):
    name = given.__name__
    raise TypeError(f"attack must be an attack, a tuple of attacks or a region, got the class {name}; write {name}(…).")


@dispatch
def as_attack(given: Attack, classes):
    return given


@dispatch
def as_attack(given: Region, classes):
    return autoattack(given, classes=max(classes, 2))


@dispatch
def as_attack(given: tuple | list, classes):
    return WorstOf(*(as_attack(each, classes) for each in given))


def one_ball(attacks: list[Any]) -> Ball | None:
    """The ball that all of some attacks have, or None."""
    found = [single_ball(each.region) for each in attacks]
    kinds = {(type(ball), None if ball is None else float(ball.eps)) for ball in found}
    return found[0] if len(kinds) == 1 else None


def norm_name(ball: Ball | None) -> str:
    """The name of a ball's norm in a report's distances: `"linf"`, `"l2"`, `"l1"`, or `""`."""
    return "" if ball is None or ball.norm_order is None else f"l{ball.norm_order:g}"


def name_of(attack: Any) -> str:
    """A short name of an attack: its type, and what distinguishes it from others of its type."""
    parts = [type(attack).__name__]
    declared = {field.name: field for field in dataclasses.fields(attack)}
    for name in ("objective", "target"):
        value, default = getattr(attack, name), declared[name].default
        if value is not None and declared[name].init and repr(value) != repr(default):
            parts.append(re.sub(r"\b\w+=", "", repr(value)).removesuffix("()"))
    if isinstance(attack, SteepestAscent) and attack.steps > 1:
        parts[0] += f"-{attack.steps}"
    return " ".join(parts)


class UniformNoise(Attack):
    """Points drawn uniformly from the ball around the clean input, and projected onto the region.

    Args:
        region: the allowed perturbations; points are drawn from its one ball.
        steps: the number of points.

    >>> fm.robust.report.UniformNoise(fm.LinfBall(0.1) & fm.Box(0, 1), steps=100)
    UniformNoise(region=LinfBall(eps=0.1) & Box(lo=0, hi=1), steps=100)
    """

    needs_ball = True
    uses_gradients = False

    steps: int = static(default=1)

    @property
    def passes(self) -> int:
        return self.samples or 1


@dispatch
def begin(attack: UniformNoise, problem):
    return AttackState(**initial_fields(problem, problem.origin))


@dispatch
def advance(attack: UniformNoise, problem, state, step):
    x = start_points(Uniform(), attack.region, problem.origin, functools.partial(problem.keys, step))
    return remake(state.keep(x, problem.evaluate(x, step), step + 1), {"x": x})


@dispatch
@keeps_state
def finish(attack: UniformNoise, problem, state):
    return state

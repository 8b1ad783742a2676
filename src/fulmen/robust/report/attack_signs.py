"""The warning signs that attacks show: what an evaluation should find if its attacks did their work."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from fulmen.core.tree import remake
from fulmen.core.verbs import examine, scaled
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import FGSM, PGD
from fulmen.robust.attacks.region import boxes
from fulmen.robust.attacks.square import Square
from fulmen.robust.report.attack_choice import norm_name
from fulmen.robust.report.noise import UniformNoise
from fulmen.robust.report.warning_sign import OK, SUSPICIOUS, UNCHECKED, WRONG, Finding, Sign

__all__ = ["BlackBox", "Convergence", "Falling", "Gradients", "Inside", "Iterations"]

NO_BALL = Finding(UNCHECKED, "The attacks are not all in one ball of a radius above 0.")
MASKED = "the gradient is masked: attack a smooth stand-in for what hides it, or raise samples= of a random model"


class Iterations(Sign):
    """Iterated attacks break what single steps break.

    FGSM and PGD-40 on the same examples, with the same region.
    """


class Convergence(Sign):
    """More steps and other random starts gain nothing.

    The first iterated attack, or else PGD-40, again, with four times the steps and other random numbers, on examples that
    have withstood.
    """


class Falling(Sign):
    """In a large enough ball nothing withstands.

    A ball that holds the whole box has inputs of the other classes in it. Where there is no box, the radius is doubled, up to
    a thousand times.
    """


class BlackBox(Sign):
    """Attacks without a gradient find nothing more.

    100 draws of noise, and `Square` with 500 queries, on examples that have withstood; and what a `Square` among the attacks
    has broken after those before it.
    """


class Gradients(Sign):
    """Gradients at the clean inputs are finite and not 0."""


class Inside(Sign):
    """The attacked inputs are in the region, and the region has the data's limits."""


def verdict(share: float, low: float, high: float) -> Any:
    """What is to be thought of a share that should be 0."""
    return OK if share <= low else SUSPICIOUS if share <= high else WRONG


def some(mask: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the places that are set, spread evenly."""
    rows = np.flatnonzero(mask)
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]


def _region(evaluation: Any) -> Any:
    """The region of the first attack, where there is a ball that is more than a point; else None."""
    return evaluation.attacks[0].region if evaluation.ball is not None and evaluation.ball.eps > 0 else None


def _like(evaluation: Any, attack: Any) -> Any:
    """An attack on the mean over as many draws as the evaluation's."""
    return remake(attack, {"samples": evaluation.attacks[0].samples})


def _pgd(evaluation: Any, region: Any, steps: int = 40) -> Any:
    return _like(evaluation, PGD(region, step_size=evaluation.ball.eps * 4 / steps, steps=steps))


def _iterated(evaluation: Any, region: Any) -> Any:
    """The first of the attacks that goes by several gradients, or else PGD-40."""
    found = (each for each in evaluation.attacks if each.steps > 1 and not isinstance(each, UniformNoise))
    return next(found, None) or _pgd(evaluation, region)


@dispatch
def examine(sign: Iterations, evaluation, report):
    region, rows = _region(evaluation), some(report.correct, evaluation.sample)
    if region is None or not rows.size:
        return NO_BALL if region is None else Finding(UNCHECKED, "No example is right to begin with.")
    single = evaluation.broken([_like(evaluation, FGSM(region))], rows, "single step")
    iterated = evaluation.broken([_pgd(evaluation, region)], rows, "iterated")
    more = int((single & ~iterated).sum())
    text = f"Of {len(rows)} examples FGSM breaks {single.sum()} and PGD-40 {iterated.sum()}; {more} only FGSM."
    judged = verdict(more / len(rows), 0.02, 0.1)
    return Finding(judged, text if judged == OK else f"{text} Probably {MASKED}.")


@dispatch
def examine(sign: Convergence, evaluation, report):
    region, rows = _region(evaluation), some(report.robust, evaluation.sample)
    if region is None:
        return NO_BALL
    if not rows.size:
        return Finding(OK, "No example has withstood, so nothing is left to gain.")
    attack = _iterated(evaluation, region)
    longer = remake(attack, {"steps": 4 * attack.steps})
    gained = int(evaluation.broken([longer], rows, "longer").sum())
    text = (
        f"{type(attack).__name__} with {longer.steps} steps and other random numbers breaks {gained} of {len(rows)} that had "
        "withstood."
    )
    judged = verdict(gained / len(rows), 0.02, 0.1)
    return Finding(
        judged, text if judged == OK else f"{text} Give the attacks more steps and restarts, or fm.autoattack(region)."
    )


@dispatch
def examine(sign: Falling, evaluation, report):
    region = _region(evaluation)
    if region is None:
        return NO_BALL
    rows, chance = some(np.ones(len(report), bool), evaluation.sample), 1 / evaluation.classes
    width = max((float(each.hi) - float(each.lo) for each in boxes(region)), default=0.0)
    size = sum(v[0].size for v in jax.tree.leaves(evaluation.inputs(rows[:1])))
    root = 1 / (evaluation.ball.norm_order or 1)
    eps = float(evaluation.ball.eps)
    known = width > 0 and math.isfinite(width)
    radii = [width * size**root] if known else [eps * 2**k for k in range(1, 11)]
    attack, standing, radius = _iterated(evaluation, region), report.robust[rows].copy(), eps
    for radius in radii:
        left = np.flatnonzero(standing)
        if left.size and standing.mean() > (0 if known else chance):
            standing[left] = ~evaluation.broken([scaled(attack, radius / eps)], rows[left], f"large {radius}")
        if standing.mean() <= chance:
            break
    accuracy = float(standing.mean())
    where = "which holds the whole box" if known else f"{radius / eps:.0f} times the region's"
    text = f"At ε = {radius:.4g}, {where}, the accuracy is {accuracy:.3f} (chance: {chance:.3f})."
    judged = verdict(accuracy, chance, (chance + report.accuracy) / 2)
    return Finding(judged, text if judged == OK else f"{text} An attack that may do everything fails, so probably {MASKED}.")


@dispatch
def examine(sign: BlackBox, evaluation, report):
    region, rows = _region(evaluation), some(report.robust, evaluation.sample)
    if region is None:
        return NO_BALL
    squares = [number for number, each in enumerate(evaluation.attacks) if isinstance(each, Square) and number > 0]
    own = int(np.isin(report.by, squares).sum())
    probes, leaves = {"noise": _like(evaluation, UniformNoise(region, steps=100))}, jax.tree.leaves(report.x)
    known = norm_name(evaluation.ball) and len(leaves) == 1 and 2 <= leaves[0].ndim <= 4
    if known and not squares:
        probes["Square"] = _like(evaluation, Square(region, queries=500))
    found = {name: evaluation.broken([probe], rows, name) for name, probe in probes.items() if rows.size}
    parts = [f"{name} breaks {broken.sum()}" for name, broken in found.items()]
    text = f"Of {len(rows)} that had withstood, {' and '.join(parts)}." if parts else "No example has withstood."
    if squares:
        text += f" Square, among the attacks, has broken {own} of {len(report)} after the attacks before it."
    share = np.logical_or.reduce([*found.values()]).mean() if found else 0.0
    judged = verdict(max(float(share), own / len(report)), 0.01, 0.05)
    return Finding(
        judged, text if judged == OK else f"{text} What sees the gradient should find these too: probably {MASKED}."
    )


@dispatch
def examine(sign: Gradients, evaluation, report):
    size, n = report.gradient["l2"], len(report)
    wild, zero = int(np.isnan(size).sum()), int((size == 0).sum())
    outputs = int((~np.isfinite(evaluation.outputs)).any(1).sum())
    if wild or outputs:
        text = f"Of {n} examples {wild} have gradients and {outputs} outputs that are not finite, which attacks take as 0."
        return Finding(WRONG, f"{text} Look for a division by 0, a logarithm of 0 or an overflow in the model.")
    text = (
        f"Of {n} examples {zero} have a gradient of 0 at the clean input; the median of the norms is {np.median(size):.3g}."
    )
    judged = verdict(zero / n, 0.0, 0.05)
    advice = "The attacks see nothing there, which is no robustness: probably saturated outputs, or "
    return Finding(judged, text if judged == OK else f"{text} {advice}{MASKED}. fm.objectives.DLR() does not saturate.")


@dispatch
def examine(sign: Inside, evaluation, report):
    limits = [each for attack in evaluation.attacks for each in boxes(attack.region)]
    clean, there = ([float(f(v)) for v in jax.tree.leaves(x) for f in (np.min, np.max)] for x in (report.clean, report.x))
    name = norm_name(evaluation.ball)
    if name:
        eps, farthest = float(evaluation.ball.eps), float(report.distance[name].max())
        if farthest > eps * (1 + 1e-4) + 1e-9:
            return Finding(WRONG, f"An attacked input is {farthest:.6g} from its clean one, and the radius is {eps:.6g}.")
    for box in limits:
        lo, hi = float(box.lo), float(box.hi)
        if min(there) < lo - 1e-6 * abs(lo) or max(there) > hi + 1e-6 * abs(hi):
            return Finding(WRONG, f"Attacked inputs go from {min(there):.6g} to {max(there):.6g}, outside {box!r}.")
    if not boxes and (min(there) < min(clean) or max(there) > max(clean)):
        return Finding(
            SUSPICIOUS,
            f"The region has no box: clean inputs go from {min(clean):.4g} to {max(clean):.4g}, attacked ones from "
            f"{min(there):.4g} to {max(there):.4g}. Where the data has limits, write `region & fm.Box(lo, hi)`, or on the "
            "command line `--box lo:hi`.",
        )
    return Finding(
        OK, f"The farthest are {report.distance['linf'].max():.4g} away in L∞, {report.distance['l2'].max():.4g} in L2."
    )

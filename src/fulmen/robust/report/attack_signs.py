"""The warning signs that concern attacks: whether they find what strong attacks must find."""

import math
from typing import Any

import jax
import numpy as np

from fulmen.core import remake
from fulmen.core.verbs import channels_first, examine, scaled
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import FGSM, PGD
from fulmen.robust.attacks.input_transform import is_ambiguous
from fulmen.robust.attacks.region import Intersection, boxes, members, others, split
from fulmen.robust.attacks.square import Square
from fulmen.robust.report.attack_choice import UniformNoise, norm_name
from fulmen.robust.report.attack_evaluation import norms, value_range, violations
from fulmen.robust.report.robustness_report import OK, SUSPICIOUS, UNCHECKED, WRONG, Finding, Sign, graded

NO_BALL = Finding(UNCHECKED, "The attacks do not share one ball of a radius above 0.")
MASKED = (
    "Probably the gradient is masked: attack a smooth approximation of the operation that hides it, or raise samples= for a "
    "random model."
)


class Iterations(Sign):
    """Iterated attacks should break what a single step breaks.

    FGSM and PGD-40 attack the same examples in the same region.
    """


class Convergence(Sign):
    """More steps and other random starts should break no further examples.

    The first iterated attack, or else PGD-40, attacks examples that survived, with four times the steps and other random
    numbers.
    """


class Falling(Sign):
    """No example should survive a sufficiently large perturbation.

    A ball that contains the whole box contains inputs of the other classes. Without a box, the radius is doubled, up to a
    factor of 1024.
    """


class BlackBox(Sign):
    """Attacks without gradients should break no further examples.

    100 draws of noise, and `Square` with 500 queries, attack examples that survived. A `Square` among the evaluation's attacks
    counts by the examples that it broke after the attacks before it.
    """


class Gradients(Sign):
    """Gradients at the clean inputs should be finite and not 0."""


class Inside(Sign):
    """Attacked inputs should be in the region, and the region should have the limits and units of the data."""


SMALLEST = {"linf": 1e-3, "l2": 5e-3, "l1": 5e-3}
"""The smallest radius that is not suspicious, as a share of the range of the data; in L∞ a quarter of a step of 8-bit pixels."""
WIDEST = 4
"""The largest width of a box that is not suspicious, relative to the range of the data."""


def spread(mask: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the positions where a mask is set, evenly spaced."""
    rows = np.flatnonzero(mask)
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(int)]


def region_of(evaluation: Any) -> Any:
    """The region of the first attack if all attacks share a ball of a radius above 0, or None."""
    return evaluation.attacks[0].region if evaluation.ball is not None and evaluation.ball.eps > 0 else None


def _with_samples(evaluation: Any, attack: Any) -> Any:
    """An attack on the mean over as many draws as the evaluation's."""
    return remake(attack, {"samples": evaluation.attacks[0].samples})


def pgd_of(evaluation: Any, region: Any, steps: int = 40) -> Any:
    """PGD-40 in the evaluation's region."""
    return _with_samples(evaluation, PGD(region, step_size=evaluation.ball.eps * 4 / steps, steps=steps))


def iterated_of(evaluation: Any, region: Any) -> Any:
    """The first of the attacks that takes several gradient steps, or else PGD-40."""
    found = (each for each in evaluation.attacks if each.steps > 1 and not isinstance(each, UniformNoise))
    return next(found, None) or pgd_of(evaluation, region)


@dispatch
def examine(sign: Iterations, evaluation, report):
    region, rows = region_of(evaluation), spread(report.correct, evaluation.sample)
    if region is None or not rows.size:
        return NO_BALL if region is None else Finding(UNCHECKED, "No clean example is classified correctly.")
    single = evaluation.broken([_with_samples(evaluation, FGSM(region))], rows, "single step")
    iterated = evaluation.broken([pgd_of(evaluation, region)], rows, "iterated")
    more = int((single & ~iterated).sum())
    text = f"Of {len(rows)} examples, FGSM breaks {single.sum()} and PGD-40 {iterated.sum()}; {more} only FGSM."
    return graded(more / len(rows), 0.02, 0.1, text, MASKED)


@dispatch
def examine(sign: Convergence, evaluation, report):
    region, rows = region_of(evaluation), spread(report.robust, evaluation.sample)
    if region is None:
        return NO_BALL
    if not rows.size:
        return Finding(OK, "No example survived the attacks.")
    attack = iterated_of(evaluation, region)
    longer = remake(attack, {"steps": 4 * attack.steps})
    gained = int(evaluation.broken([longer], rows, "longer").sum())
    name = type(attack).__name__
    text = f"{name} with {longer.steps} steps and other random numbers breaks {gained} of {len(rows)} that survived."
    return graded(gained / len(rows), 0.02, 0.1, text, "Use more steps and restarts, or fm.autoattack(region).")


@dispatch
def examine(sign: Falling, evaluation, report):
    region = region_of(evaluation)
    if region is None:
        return NO_BALL
    if len(boxes(region)) < len(others(region)):
        return Finding(UNCHECKED, "The region has limits besides a ball and boxes, in which examples may remain correct.")
    rows = spread(np.ones(len(report), bool), evaluation.sample)
    chance, eps = 1 / evaluation.classes, float(evaluation.ball.eps)
    width = max((float(each.hi) - float(each.lo) for each in boxes(region)), default=0.0)
    has_box = width > 0 and math.isfinite(width)
    size = sum(v[0].size for v in jax.tree.leaves(evaluation.inputs(rows[:1])))
    of_box = norms([np.full((1, size), width)])  # of its diagonal
    diagonal = float(of_box[norm_name(evaluation.ball) or "l1"][0])
    attack, survives, radius = iterated_of(evaluation, region), report.robust[rows].copy(), eps
    for radius in [diagonal] if has_box else [eps * 2**k for k in range(1, 11)]:
        left = np.flatnonzero(survives)
        if left.size and survives.mean() > (0 if has_box else chance):
            survives[left] = ~evaluation.broken([scaled(attack, radius / eps)], rows[left], f"large {radius}")
        if survives.mean() <= chance:
            break
    accuracy = float(survives.mean())
    what = "which contains the whole box" if has_box else f"{radius / eps:.0f} times the region's"
    text = f"In a ball of radius {radius:.4g}, {what}, the accuracy is {accuracy:.3f} (chance: {chance:.3f})."
    return graded(accuracy, chance, (chance + report.accuracy) / 2, text, MASKED)


@dispatch
def examine(sign: BlackBox, evaluation, report):
    region, rows = region_of(evaluation), spread(report.robust, evaluation.sample)
    if region is None:
        return NO_BALL
    squares = [number for number, each in enumerate(evaluation.attacks) if isinstance(each, Square) and number > 0]
    by_square = int(np.isin(report.by, squares).sum())
    probes: dict[str, Any] = {"noise": UniformNoise(region, steps=100)}
    leaves = jax.tree.leaves(report.x)
    has_images = len(leaves) == 1 and 2 <= leaves[0].ndim <= 4 and norm_name(evaluation.ball) not in ("", "l0")
    layout_is_known = channels_first(evaluation.system) or not is_ambiguous(leaves[0].shape[1:])
    if has_images and layout_is_known and not squares:
        probes["Square"] = Square(region, queries=500, rescaled=True)
    found = {n: evaluation.broken([_with_samples(evaluation, each)], rows, n) for n, each in probes.items() if rows.size}
    parts = [f"{name} breaks {broken.sum()}" for name, broken in found.items()]
    text = f"Of {len(rows)} that survived, {' and '.join(parts)}." if parts else "No example survived the attacks."
    if squares:
        text += f" Square, one of the attacks, broke {by_square} of {len(report)} after the attacks before it."
    share = np.logical_or.reduce([*found.values()]).mean() if found else 0.0
    advice = f"Attacks that use the gradient should break these too. {MASKED}"
    return graded(max(float(share), by_square / len(report)), 0.01, 0.05, text, advice)


@dispatch
def examine(sign: Gradients, evaluation, report):
    size, n = report.gradient["l2"], len(report)
    infinite, zero = int(np.isnan(size).sum()), int((size == 0).sum())
    outputs = int((~np.isfinite(evaluation.outputs)).any(1).sum())
    if infinite or outputs:
        text = f"Of {n} examples, {infinite} have gradients and {outputs} have outputs that are not finite; attacks take these as 0."
        return Finding(WRONG, f"{text} Look for a division by 0, a logarithm of 0 or an overflow in the model.")
    text = f"Of {n} examples, {zero} have a gradient of 0 at the clean input; the median norm is {np.median(size):.3g}."
    advice = (
        "There, attacks cannot make progress, which is not robustness. The outputs may be saturated: try the objective "
        f"fm.objectives.DLR(), which does not saturate. {MASKED}"
    )
    return graded(zero / n, 0.0, 0.05, text, advice)


@dispatch
def examine(sign: Inside, evaluation, report):
    limits = [each for attack in evaluation.attacks for each in boxes(attack.region)]
    shared = [evaluation.ball] if evaluation.ball is not None else []
    regions = [attack.region for attack in evaluation.attacks]
    shared += [each for each in split(regions[0])[2] if all(repr(each) in map(repr, members(r)) for r in regions)]
    outside = violations(Intersection((*shared, *limits)), report.clean, report.x)
    if outside:
        return Finding(WRONG, outside[0])
    (low, high), (clean_low, clean_high) = value_range(report.x), value_range(report.clean)
    width, data = clean_high - clean_low, f"{clean_low:.4g} to {clean_high:.4g}"
    least, eps = SMALLEST.get(norm_name(evaluation.ball), 0.0) * width, float(getattr(evaluation.ball, "eps", 0.0))
    if 0 < eps < least:
        text = f"The radius is {eps:.4g}, and the data ranges from {data}."
        return Finding(SUSPICIOUS, f"{text} Give the radius in the units of the data, or scale the data to [0, 1].")
    for box in limits:
        size = float(box.hi) - float(box.lo)
        if np.isfinite(size) and size > WIDEST * width > 0:
            text = f"The box is {box!r}, and the data ranges from {data}."
            return Finding(SUSPICIOUS, f"{text} If these are its limits, write fm.Box({clean_low:.4g}, {clean_high:.4g}).")
    if not limits and (low < clean_low or high > clean_high):
        return Finding(
            SUSPICIOUS,
            f"The region has no box: clean inputs range from {data}, attacked inputs from {low:.4g} to {high:.4g}. If the data has "
            "limits, write `region & fm.Box(lo, hi)`, or `--box lo:hi` on the command line.",
        )
    farthest = f"{report.distance['linf'].max():.4g} in L∞ and {report.distance['l2'].max():.4g} in L2"
    return Finding(OK, f"Attacked inputs are at most {farthest} from the clean inputs.")

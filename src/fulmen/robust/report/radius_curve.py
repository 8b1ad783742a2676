"""The accuracy under attacks and under noise at other radii of the ball."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fulmen.core.verbs import scaled
from fulmen.robust.attacks.region import Ball
from fulmen.robust.report.attack_choice import UniformNoise, norm_name
from fulmen.robust.report.attack_evaluation import Evaluation
from fulmen.robust.report.report_progress import Progress

RADII = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the curve, in units of the ball's


def radii_of(ball: Ball | None, eps: Iterable[float] | float | None) -> list[float]:
    """The radii of the curve, ascending."""
    eps_of_ball = 0.0 if ball is None else float(ball.eps)
    if eps is None:
        return [eps_of_ball * factor for factor in RADII if eps_of_ball]
    radii = sorted(float(v) for v in (eps if isinstance(eps, Iterable) else (eps,)))
    if radii and not eps_of_ball:
        raise ValueError(
            f"eps must be () unless all attacks have one ball of the same radius above 0, got {radii}: attacks are scaled "
            "from that radius to the others."
        )
    if not all(np.isfinite(v) and v >= 0 for v in radii):
        raise ValueError(f"eps must be finite radii of at least 0, got {radii}.")
    return [v for v in radii if v > 0]


def curve_points(
    radii: list[float], evaluation: Evaluation, report: Any, progress: Progress
) -> Iterator[tuple[float, float, float]]:
    """Each radius, the accuracy under the attacks scaled to it, and the accuracy under noise of that size.

    Balls are nested: an example that is broken in one is broken in all larger ones, so only the others are attacked again.
    """
    ball = evaluation.ball
    if ball is None or not radii:
        return
    eps, n = float(ball.eps), len(report)
    distance = report.distance.get(norm_name(ball), np.full(n, np.inf))
    for several in ([r for r in radii if r >= eps], [r for r in reversed(radii) if r < eps]):
        broken = report.correct & ~report.robust
        for radius in several:
            # In a smaller ball, the point that was found may be near enough already.
            unknown = broken & (distance > radius) if radius < eps else report.correct & ~broken & (radius > eps)
            rows = np.flatnonzero(unknown)
            progress.begin(f"ε = {radius:.4g}, {rows.size} of {n}")
            if rows.size:
                attacks = [scaled(attack, radius / eps) for attack in evaluation.attacks]
                broken[rows] = evaluation.broken(attacks, rows, f"radius {radius}")
            noise = UniformNoise(scaled(evaluation.attacks[0].region, radius / eps), steps=1)
            x = evaluation.last_points(noise, np.arange(n), "noise")
            right_in_noise = evaluation.predict(np.arange(n), x).argmax(1) == report.labels
            progress.step()
            yield radius, (report.correct & ~broken).mean(), right_in_noise.mean()


def as_curve(points: list[tuple[float, float, float]]) -> dict[str, np.ndarray]:
    """A report's `curve`: arrays ordered by the radius."""
    return dict(zip(("eps", "robust", "noise"), np.array(sorted(points)).T, strict=False))

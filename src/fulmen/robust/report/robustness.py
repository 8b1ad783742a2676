"""The methods of `robustness`: attacks on every example, the curve over the radius, and the warning signs."""

import contextlib
import dataclasses
import platform
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from fulmen.core import Component, Model, State, require_arrays
from fulmen.core.verbs import examine, loss, robustness, scaled
from fulmen.core.version import __version__
from fulmen.data.arrays import check_positive
from fulmen.devices.placement import on_devices, spread
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import Ball
from fulmen.robust.report.attack_choice import UniformNoise, norm_name
from fulmen.robust.report.attack_evaluation import Evaluation
from fulmen.robust.report.attack_signs import BlackBox, Convergence, Falling, Gradients, Inside, Iterations
from fulmen.robust.report.binarization import Binarization
from fulmen.robust.report.example_results import ExampleResults
from fulmen.robust.report.model_signs import Batches, Jumps, Modes, Probabilities, Randomness
from fulmen.robust.report.report_progress import Progress
from fulmen.robust.report.result_folder import Folder, digest
from fulmen.robust.report.robustness_report import Sign
from fulmen.train.interruption import interruptible

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


_OF_ATTACKS = (Iterations, Convergence, Falling, BlackBox, Binarization, Gradients, Inside)
_OF_MODELS = (Randomness, Probabilities, Modes, Batches, Jumps)
SIGNS: tuple[Sign, ...] = tuple(sign() for sign in _OF_ATTACKS + _OF_MODELS)
"""The warning signs; a report has a finding for each."""

INTERRUPTED = "Ctrl-C: stops after the current attack and reports what is done; press it again to stop immediately."


@dispatch
def robustness(state: State, data, attack, *, devices=None, **options):
    state = on_devices(state, devices)
    evaluated = robustness.invoke(Component, object, object)  # the system may be a module of another library
    return evaluated(state.system, data, attack, devices=state.devices, **options)


@dispatch
def robustness(
    component: Component,
    data,
    attack,
    *,
    seed=0,
    eps=None,
    batch_size=None,
    signs=None,
    sample=128,
    compare=False,
    resume=None,
    progress=True,
    devices=None,
):
    begun = time.perf_counter()
    require_arrays(component, "robustness")
    system, signs = spread(component, devices), SIGNS if signs is None else signs
    _check_options(signs, batch_size=batch_size, sample=sample)
    evaluation = Evaluation(system, data, attack, seed, batch_size, sample, compare, devices)
    if isinstance(system, Model) and (signs or any(each.objective is None for each in evaluation.attacks)):
        _require_loss(evaluation.system, evaluation.whole)
    radii = radii_of(evaluation.ball, eps)
    chunks = list(evaluation.chunks())
    settings = _settings(evaluation, seed, radii)
    if resume is not None:
        arrays = (evaluation.system, evaluation.data, evaluation.attacks)
        evaluation.folder = Folder(resume, {**settings, **versions(), "format": 2, "arrays": digest(arrays)})
    steps = len(chunks) * len(evaluation.attacks) + len(radii) + len(signs)
    with interruptible(INTERRUPTED) as interruption, Progress(progress, steps, interruption) as shown:
        results = ExampleResults(evaluation, shown)
        with contextlib.suppress(KeyboardInterrupt):
            for rows in chunks:
                if not results.restore(rows):
                    results.add(rows)
        report = results.report(settings, versions())
        points: list[tuple[float, float, float]] = []
        with contextlib.suppress(KeyboardInterrupt):
            for point in curve_points(radii, evaluation, report, shown):
                points.append(point)
        columns = zip(("eps", "robust", "noise"), np.array(sorted(points)).T, strict=False)
        report = dataclasses.replace(report, curve=dict(columns))
        with contextlib.suppress(KeyboardInterrupt):
            for sign in signs:
                shown.begin(sign.title)
                report.findings.append(dataclasses.replace(examine(sign, evaluation, report), sign=sign.title))
                shown.step()
        return dataclasses.replace(report, partial=interruption.is_set(), seconds=time.perf_counter() - begun)


def _check_options(signs: Any, **sizes: int | None) -> None:
    if isinstance(signs, bool):
        raise TypeError(f"signs must be a tuple of warning signs, got {signs}; write signs=() for none, or omit it for all.")
    for name, value in sizes.items():
        if value is not None:
            check_positive(name, value)


def _require_loss(model: Model, batch: Any) -> None:
    """Raise for a model without a loss before the attacks, since some signs attack the loss."""
    if not loss.has(model, batch):
        name = type(model).__name__
        raise ValueError(
            f"robustness attacks the loss, and {name} has none: give fm.Classifier(model), or write "
            f"`loss({name.lower()}: {name}, batch)`."
        )


def _settings(evaluation: Evaluation, seed: int, radii: list[float]) -> dict[str, Any]:
    ball: Ball | None = evaluation.ball
    return {
        "system": repr(evaluation.system),
        "attack": repr(evaluation.attack),
        "attacks": len(evaluation.attacks),
        "region": repr(evaluation.attacks[0].region),
        "eps": None if ball is None else float(ball.eps),
        "seed": seed,
        "batch_size": evaluation.batch_size,
        "sample": evaluation.sample,
        "compare": evaluation.compare,
        "norm": norm_name(evaluation.ball),
        "classes": evaluation.classes,
        "radii": radii,
    }


def versions() -> dict[str, str]:
    """The versions of the packages, and the device."""
    return {
        "fulmen": __version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }

"""`robustness`: every example under every attack, the curve over the radius, and the signs that the figures are wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax

from fulmen.core.batch import inputs
from fulmen.core.component import Component, Model
from fulmen.core.leaves import require_arrays
from fulmen.core.state import State
from fulmen.core.structure import pack
from fulmen.core.verbs import as_attack, as_batch, examine, loss, robustness, scaled, validate
from fulmen.core.version import __version__
from fulmen.data.arrays import check_arrays
from fulmen.dispatching.registry import MissingMethodError, dispatch
from fulmen.robust.attacks.ensemble import flattened
from fulmen.robust.attacks.region import Ball, Intersection, require_inside
from fulmen.robust.report.attack_choice import name_of, norm_name, one_ball
from fulmen.robust.report.attack_evaluation import Evaluation, is_right, margins, norms
from fulmen.robust.report.attack_signs import BlackBox, Convergence, Falling, Gradients, Inside, Iterations
from fulmen.robust.report.binarization import Binarization
from fulmen.robust.report.model_signs import Batches, Jumps, Modes, Probabilities, Randomness
from fulmen.robust.report.noise import UniformNoise
from fulmen.robust.report.report_progress import Progress
from fulmen.robust.report.robustness_report import Report
from fulmen.robust.report.warning_sign import Finding, Sign
from fulmen.train.interruption import interruptible

__all__ = ["SIGNS"]

SIGNS: tuple[Sign, ...] = (
    Iterations(),
    Convergence(),
    Falling(),
    BlackBox(),
    Binarization(),
    Gradients(),
    Inside(),
    Randomness(),
    Probabilities(),
    Modes(),
    Batches(),
    Jumps(),
)
"""The warning signs, of which each has a finding in a report."""

RADII = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


@dispatch
def robustness(state: State, data, attack, **options):
    return _robustness(state.system, data, attack, **options)


@dispatch
def robustness(component: Component, data, attack, **options):
    require_arrays(component, "robustness")
    return _robustness(component, data, attack, **options)


def _robustness(
    system: Any,
    data: Any,
    attack: Any,
    *,
    seed: int = 0,
    eps: Iterable[float] | float | None = None,
    batch_size: int | None = None,
    signs: tuple[Sign, ...] = SIGNS,
    sample: int = 128,
    progress: Any = True,
) -> Report:
    if isinstance(signs, bool):
        raise TypeError(
            f"signs: a tuple of signs was expected, and {signs} came: `signs=()` looks for none, and leaving it out for all."
        )
    begun = time.perf_counter()
    leaves, structure = pack(system)
    system, data = structure.unpack(leaves), check_arrays(data)
    for name, value in (("batch_size", batch_size), ("sample", sample)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: a whole number of at least 1 was expected, and {value!r} came.")
    whole = as_batch(system, data)
    require_inside(Intersection(()), jax.tree.leaves(inputs(whole)))  # integers would not go through the model
    evaluation = Evaluation(system, data, jax.random.key(seed), batch_size)
    validate(system, whole)
    attack = as_attack(attack, evaluation.classes)
    validate(attack, system, whole)
    evaluation.attacks, evaluation.sample = flattened(attack), sample
    evaluation.ball = one_ball(evaluation.attacks)
    if isinstance(system, Model) and (signs or any(each.objective is None for each in evaluation.attacks)):
        _require_loss(system, whole[:1])
    radii = _radii(evaluation.ball, eps)
    pieces = list(evaluation.pieces(np.arange(evaluation.n)))
    steps = len(pieces) * len(evaluation.attacks) + len(radii) + len(signs)
    settings = {
        "system": repr(system),
        "attack": repr(attack),
        "attacks": len(evaluation.attacks),
        "region": repr(evaluation.attacks[0].region),
        "eps": None if evaluation.ball is None else float(evaluation.ball.eps),
        "seed": seed,
        "batch_size": evaluation.batch_size,
        "sample": sample,
        "classes": evaluation.classes,
        "radii": radii,
    }
    answer = "Ctrl-C: ends after the attack at hand, with a report of what is done; again: at once."
    with interruptible(answer) as stop, Progress(progress, steps) as shown:
        rows = _Rows(evaluation)
        with contextlib.suppress(KeyboardInterrupt):  # pressed again
            for piece in pieces:
                if not rows.attack(piece, stop, shown):
                    break
        if not rows.pieces:
            raise KeyboardInterrupt
        report = rows.report(settings, _versions())
        evaluation.outputs = np.concatenate([piece["outputs"] for piece in rows.pieces])
        curve = _curve(evaluation, report, radii, stop, shown)
        report = dataclasses.replace(report, curve=curve)
        findings: list[Finding] = []
        for sign in signs:
            if stop.is_set():
                break
            shown.say(sign.title)
            try:
                findings.append(dataclasses.replace(examine(sign, evaluation, report), sign=sign.title))
            except KeyboardInterrupt:  # pressed again
                break
            shown.step()
        return dataclasses.replace(report, findings=findings, partial=stop.is_set(), seconds=time.perf_counter() - begun)


def _require_loss(model: Model, batch: Any) -> None:
    """Raise for a model alone, which has outputs and perhaps no loss: some signs attack that, after hours."""
    try:
        jax.eval_shape(lambda one: loss(model, one), batch)
    except MissingMethodError as error:
        name = type(model).__name__
        raise ValueError(
            f"robustness attacks the loss too, and {name} has none: give fm.Classifier(model), or write `loss({name.lower()}: {name}, "
            "batch)`."
        ) from error


class _Rows:
    """The results of the examples, batch by batch."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.pieces = evaluation, []
        self.told = [
            {"name": name_of(attack), "attack": repr(attack), "given": 0, "broken": 0, "seconds": 0.0}
            for attack in evaluation.attacks
        ]

    def attack(self, rows: np.ndarray, stop: Any, shown: Progress) -> bool:
        """All attacks on some examples, each on those that are left; whether there are results of them."""
        evaluation = self.evaluation
        labels, clean = evaluation.labels[rows], evaluation.inputs(rows)
        outputs = evaluation.look(rows)
        correct = is_right(outputs, labels)
        x = jax.tree.map(np.array, clean)
        # Attacks make different things large: where several end is compared by the margin.
        margin, attacked = np.full(len(rows), np.inf), outputs.argmax(1)
        robust, by, first = correct.copy(), np.full(len(rows), -1), np.where(correct, -1, 0)
        told = []
        for number, attack in enumerate(evaluation.attacks):
            if stop.is_set():
                break
            shown.say(f"{self.told[number]['name']} on {robust.sum()} of {len(rows)}")
            begun, left = time.perf_counter(), np.flatnonzero(robust)
            if left.size:
                try:
                    walk = evaluation.attempt(attack, rows[left], jax.random.fold_in(evaluation.key, number))
                    found = evaluation.look(rows[left], walk.x)
                except KeyboardInterrupt:  # pressed again
                    break
                now = margins(found, labels[left])
                better = walk.succeeded | (now < margin[left])
                some = left[better]
                for old, new in zip(jax.tree.leaves(x), jax.tree.leaves(walk.x), strict=True):
                    old[some] = new[better]
                margin[some], attacked[some] = now[better], found.argmax(1)[better]
                broken = left[walk.succeeded]
                robust[broken], by[broken], first[broken] = False, number, walk.first[walk.succeeded]
            told.append((left.size, left.size - robust.sum(), time.perf_counter() - begun))
            shown.step()
        if len(told) < len(self.told):
            if self.pieces or not told:
                return False
            self.told = self.told[: len(told)]
        for each, numbers in zip(self.told, told, strict=True):
            for name, value in zip(("given", "broken", "seconds"), numbers, strict=True):
                each[name] += value
        gradient = norms(evaluation.slopes(rows))
        gradient = {name: np.where(np.isfinite(values), values, np.nan) for name, values in gradient.items()}
        offsets = jax.tree.map(lambda a, b: a.astype(np.float64) - b, x, clean)
        arrays = dict(labels=labels, predicted=outputs.argmax(1), correct=correct, robust=robust, by=by, first=first)
        arrays |= dict(attacked=attacked, x=x, clean=clean, distance=norms(offsets), gradient=gradient, outputs=outputs)
        self.pieces.append(arrays)
        shown.figures(accuracy=self._mean("correct"), robust=self._mean("robust"))
        return True

    def _mean(self, name: str) -> float:
        return float(np.concatenate([piece[name] for piece in self.pieces]).mean())

    def report(self, settings: dict[str, Any], versions: dict[str, str]) -> Report:
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *self.pieces)
        joined.pop("outputs")
        n, left, attacks = len(joined["labels"]), int(joined["correct"].sum()), []
        for each in self.told:
            left -= int(each["broken"])
            numbers = {name: int(each[name]) for name in ("given", "broken")}
            attacks.append({**each, **numbers, "accuracy": left / n})
        return Report(**joined, attacks=attacks, settings=settings, versions=versions, total=self.evaluation.n)


def _radii(ball: Ball | None, eps: Iterable[float] | float | None) -> list[float]:
    if eps is not None:
        radii = sorted(float(v) for v in (eps if isinstance(eps, Iterable) else (eps,)))
        if radii and ball is None:
            raise ValueError(
                "eps: the attacks are in different balls, or in none, so there is no curve; eps=() was expected."
            )
        if not all(np.isfinite(v) and v >= 0 for v in radii):
            raise ValueError(f"eps: finite radii of at least 0 were expected, and {radii} came.")
        return [v for v in radii if v > 0]
    return [] if ball is None or not ball.eps else [float(ball.eps) * part for part in RADII]


def _curve(evaluation: Evaluation, report: Report, radii: list[float], stop: Any, shown: Progress) -> dict[str, np.ndarray]:
    """The accuracy at each radius. What is broken in a ball is broken in all larger ones."""
    if not radii:
        return {}
    assert evaluation.ball is not None
    eps, n = float(evaluation.ball.eps), len(report)
    distance = report.distance.get(norm_name(evaluation.ball), np.full(n, np.inf))
    robust, noise, everyone = {}, {}, np.arange(n)

    def attacked(radius: float, rows: np.ndarray) -> np.ndarray:
        """Which of some examples are broken."""
        shown.say(f"ε = {radius:.4g}, {len(rows)} of {n}")
        attacks = [scaled(attack, radius / eps) for attack in evaluation.attacks] if eps else evaluation.attacks
        return evaluation.broken(attacks, rows, f"radius {radius}")

    standing, broken = report.robust.copy(), report.correct & ~report.robust
    for radius in (*sorted(r for r in radii if r >= eps), *sorted((r for r in radii if r < eps), reverse=True)):
        if stop.is_set():
            break
        try:
            if radius >= eps:
                rows = np.flatnonzero(standing)
                if radius > eps and rows.size:
                    standing[rows[attacked(radius, rows)]] = False
                robust[radius] = standing.mean()
            else:
                # The points that were found may be this near already; only for the rest is there anything to look for.
                unknown = np.flatnonzero(broken & (distance > radius))
                if unknown.size:
                    broken[unknown] = attacked(radius, unknown)
                robust[radius] = (report.correct & ~broken).mean()
            ball_noise = UniformNoise(scaled(evaluation.attacks[0].region, radius / eps if eps else 1.0), steps=1)
            x = evaluation.last_points(ball_noise, everyone, "noise")
            noise[radius] = (evaluation.look(everyone, x).argmax(1) == report.labels).mean()
        except KeyboardInterrupt:  # pressed again
            break
        shown.step()
    found = sorted(noise)
    if not found:
        return {}
    return {
        "eps": np.array(found),
        "robust": np.array([robust[r] for r in found]),
        "noise": np.array([noise[r] for r in found]),
    }


def _versions() -> dict[str, str]:
    return {
        "fulmen": __version__,
        "jax": jax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }

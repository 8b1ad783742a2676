"""The warning sign that an attack misses adversarial examples that are known to exist."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from fulmen.core import Attacked, Batch, Prediction, System, fold_name, hyper, remake, with_labels
from fulmen.core.verbs import attempt, examine, predictions, scaled
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import CrossEntropy
from fulmen.robust.attacks.apgd import Boundary
from fulmen.robust.attacks.attack import PGD
from fulmen.robust.attacks.targets import TrueLabel
from fulmen.robust.report.attack_choice import UniformNoise
from fulmen.robust.report.attack_evaluation import Evaluation
from fulmen.robust.report.attack_signs import MASKED, NO_BALL, iterated_of, pgd_of, region_of, spread
from fulmen.robust.report.robustness_report import UNCHECKED, Finding, Sign, graded

INNER = 32  # points near the example that its readout assigns to the example's class


class Binarization(Sign):
    """The attack should find adversarial examples that are known to exist.

    Each example has a linear readout of the model's outputs that separates a point drawn from the region's boundary from the
    example and points drawn near it. So the region contains a point of the other class, and the first iterated attack, or else
    PGD-40, should find one. Zimmermann, Brendel, Tramèr and Carlini 2022, arXiv:2206.13991; they read the last layer's inputs.
    """


class _Line(Batch):
    """Each example's readout: the other class where `outputs · direction + offset` is above 0."""

    direction: Any = hyper()
    offset: Any = hyper()


class _Readout(System):
    """A classifier whose outputs are read as two classes; its batches are `Attacked`, with a `_Line` as clean part."""

    per_example: ClassVar[bool] = True

    system: Any


@dispatch
def predictions(readout: _Readout, batch):
    (prediction,) = predictions(readout.system, batch.batch).values()
    score = (prediction.outputs * batch.clean.direction).sum(1) + batch.clean.offset
    return {"": Prediction(prediction.model, jnp.stack([jnp.zeros_like(score), score], 1), batch.batch)}


@dispatch
def examine(sign: Binarization, evaluation, report):
    region = region_of(evaluation)
    if region is None:
        return NO_BALL
    rows = spread(np.ones(len(report), bool), min(evaluation.sample, evaluation.batch_size))
    direction, offset, separable = _readouts(evaluation, region, rows)
    if not separable.any():
        return Finding(
            UNCHECKED, f"Of {len(rows)} examples, the outputs of none separate the region's boundary from its centre."
        )
    rows, direction, offset = rows[separable], direction[separable], offset[separable]
    attack = iterated_of(evaluation, region)
    attack = pgd_of(evaluation, region) if attack.nearest else attack
    attack = remake(attack, {"objective": CrossEntropy(), "target": TrueLabel()})
    batch = evaluation.batch(rows)
    n = len(batch)
    padded = np.resize(np.arange(len(rows)), n)  # as the batch repeats examples
    line = _Line(direction=jnp.asarray(direction[padded]), offset=jnp.asarray(offset[padded]))
    binary = Attacked(with_labels(batch, np.zeros(n, np.int32)), line)
    # `robustness` has validated the classifier and its data
    result = attempt(attack, _Readout(evaluation.system), binary, fold_name(evaluation.key, "binarization"), checked=True)
    missed = int((~np.asarray(result.succeeded)[: len(rows)]).sum())
    name = type(attack).__name__
    text = f"Of {len(rows)} adversarial examples that are known to exist, {name} finds {len(rows) - missed}."
    return graded(missed / len(rows), 0.05, 0.2, text, f"Use more steps. {MASKED}")


def _readouts(evaluation: Evaluation, region: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fisher's discriminant of each example, its threshold half-way to the boundary's point, and whether it separates them."""
    near, far = UniformNoise(scaled(region, 0.5)), PGD(region, 0.0, 1, start=Boundary())
    at = lambda attack, name: evaluation.predict(rows, evaluation.last_points(attack, rows, name)).astype(np.float64)
    inner = np.stack([evaluation.predict(rows).astype(np.float64), *(at(near, f"near {i}") for i in range(INNER))], 1)
    outer, middle = at(far, "far"), inner.mean(1)
    offsets = inner - middle[:, None]
    scatter = np.einsum("nki,nkj->nij", offsets, offsets) / INNER
    classes = scatter.shape[1]
    scatter += (1e-3 * np.trace(scatter, axis1=1, axis2=2) + 1e-12)[:, None, None] * np.eye(classes)
    direction = np.linalg.solve(scatter, (outer - middle)[:, :, None])[:, :, 0]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-12
    nearest, boundary = (inner @ direction[:, :, None])[:, :, 0].max(1), (outer * direction).sum(1)
    separable = boundary - nearest > 1e-6 * (1 + np.abs(boundary))
    return direction.astype(np.float32), (-(nearest + boundary) / 2).astype(np.float32), separable

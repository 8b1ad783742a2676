"""The warning sign that an attack does not find what is known to be there."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from fulmen.core.batch import Attacked, Batch, with_labels
from fulmen.core.component import System, fold_name
from fulmen.core.fields import hyper
from fulmen.core.prediction import Prediction
from fulmen.core.tree import remake
from fulmen.core.verbs import attempt, examine, losses, predictions, scaled, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import CrossEntropy
from fulmen.robust.attacks.apgd import Boundary
from fulmen.robust.attacks.attack import PGD
from fulmen.robust.attacks.targets import TrueLabel
from fulmen.robust.report.attack_evaluation import Evaluation
from fulmen.robust.report.attack_signs import MASKED, NO_BALL, _iterated, _pgd, _region, some, verdict
from fulmen.robust.report.noise import UniformNoise
from fulmen.robust.report.warning_sign import OK, UNCHECKED, Finding, Sign

__all__ = ["Binarization"]

INNER = 32  # points near the example that its readout takes for its class


class Binarization(Sign):
    """The attack finds points that are known to be there.

    To each example belongs a linear readout of the model's outputs that tells a point drawn from the region's boundary from the
    example and points drawn near it. So there is a point of the other class in the region, and the first iterated attack, or else
    PGD-40, should find one. Zimmermann, Brendel, Tramèr and Carlini 2022, arXiv:2206.13991, who read the last layer's inputs.
    """


class _Line(Batch):
    """Each example's readout: where `outputs · direction + offset` is above 0 it is of the other class."""

    direction: Any = hyper()
    offset: Any = hyper()


class _Readout(System):
    """A classifier's outputs, read as two classes; of `Attacked` batches whose clean part is a `_Line`."""

    per_example: ClassVar[bool] = True

    system: Any


@dispatch
def predictions(readout: _Readout, batch):
    (prediction,) = predictions(readout.system, batch.batch).values()
    score = (prediction.outputs * batch.clean.direction).sum(1) + batch.clean.offset
    return {"": Prediction(prediction.model, jnp.stack([jnp.zeros_like(score), score], 1), batch.batch)}


@dispatch
def losses(readout: _Readout, batch):
    raise NotImplementedError("the attack on a readout has an objective")


@dispatch
def validate(readout: _Readout, batch):
    pass  # the classifier and its data have been looked at


@dispatch
def examine(sign: Binarization, evaluation, report):
    region, rows = _region(evaluation), some(np.ones(len(report), bool), min(evaluation.sample, evaluation.batch_size))
    if region is None:
        return NO_BALL
    direction, offset, apart = _readouts(evaluation, region, rows)
    if not apart.any():
        return Finding(UNCHECKED, f"No output tells the boundary of the region from what is near the {len(rows)} examples.")
    rows, direction, offset = rows[apart], direction[apart], offset[apart]
    attack = _iterated(evaluation, region)
    attack = _pgd(evaluation, region) if attack.nearest else attack
    attack = remake(attack, {"objective": CrossEntropy(), "target": TrueLabel()})
    batch = evaluation.batch(rows)
    n = len(batch)
    every = np.resize(np.arange(len(rows)), n)  # as the batch repeats examples
    line = _Line(direction=jnp.asarray(direction[every]), offset=jnp.asarray(offset[every]))
    binary = Attacked(with_labels(batch, np.zeros(n, np.int32)), line)
    walk = attempt(attack, _Readout(evaluation.system), binary, fold_name(evaluation.key, "binarization"))
    missed = int((~np.asarray(walk.succeeded)[: len(rows)]).sum())
    text = f"Of {len(rows)} points that are known to be there {type(attack).__name__} finds {len(rows) - missed}."
    judged = verdict(missed / len(rows), 0.05, 0.2)
    return Finding(judged, text if judged == OK else f"{text} Give it more steps; or {MASKED}.")


def _readouts(evaluation: Evaluation, region: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fisher's discriminant of each example, its threshold half-way to the boundary's point, and where there is one."""
    near, far = UniformNoise(scaled(region, 0.5)), PGD(region, 0.0, 1, start=Boundary())
    look = lambda attack, name: evaluation.look(rows, evaluation.last_points(attack, rows, name)).astype(np.float64)
    inner = np.stack([evaluation.look(rows).astype(np.float64), *(look(near, f"near {i}") for i in range(INNER))], 1)
    outer, middle = look(far, "far"), inner.mean(1)
    offsets = inner - middle[:, None]
    scatter = np.einsum("nki,nkj->nij", offsets, offsets) / INNER
    classes = scatter.shape[1]
    scatter += (1e-3 * np.trace(scatter, axis1=1, axis2=2) + 1e-12)[:, None, None] * np.eye(classes)
    direction = np.linalg.solve(scatter, (outer - middle)[:, :, None])[:, :, 0]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-12
    nearest, there = (inner @ direction[:, :, None])[:, :, 0].max(1), (outer * direction).sum(1)
    apart = there - nearest > 1e-6 * (1 + np.abs(there))
    return direction.astype(np.float32), (-(nearest + there) / 2).astype(np.float32), apart

"""The methods of `certify`: by interval bounds, and by randomized smoothing; and `predict` and `evaluate` of a `Smoothed`."""

import time
from typing import Any

import jax
import numpy as np

from fulmen.compose.supervised import check_inputs
from fulmen.core import State, check_classes, components, inputs, require_arrays, short
from fulmen.core.structure import Structure, per_structure
from fulmen.core.verbs import certify, evaluate, predict, scaled, validate
from fulmen.data.arrays import check_positive
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import Ball, Intersection, L2Ball, Region, single_ball
from fulmen.robust.attacks.region_checks import require_inside
from fulmen.robust.certified.certificate import Certificate
from fulmen.robust.certified.ibp import classifiers, margins_in
from fulmen.robust.certified.interval import require_covered
from fulmen.robust.certified.smoothed import Smoothed, smoothed_class
from fulmen.robust.report.attack_evaluation import is_right
from fulmen.robust.report.example_batches import ExampleBatches, sole_prediction

BISECTIONS = 12
"""The number of passes for the radii, which gives them to within the 2048th part of the region's radius."""


@dispatch
def certify(state: State, data, region, **options):
    return certify(state.system, data, region, **options)


@dispatch
def certify(component: object, data, region, *, batch_size: int | None = None):
    require_covered("certify", region)
    begun, examples = time.perf_counter(), Examples("certify", component, data, batch_size, region, 256)
    ball = one_ball(region)
    found = [_certified(examples, rows, region, ball) for rows in examples.chunks()]
    outputs, certified, radius = (np.concatenate(parts) for parts in zip(*found, strict=True))
    correct = is_right(outputs, examples.labels)
    return Certificate(
        labels=examples.labels,
        predicted=outputs.argmax(1),
        correct=correct,
        certified=certified & correct,
        radius=None if ball is None else np.where(correct, radius, 0.0),
        method="interval bounds",
        region=repr(region),
        seconds=time.perf_counter() - begun,
    )


@dispatch
def certify(smoothed: Smoothed, data, region, *, batch_size: int | None = None, seed: int = 0):
    ball = one_ball(region) if isinstance(region, Region) else None
    if not isinstance(ball, L2Ball):
        raise ValueError(
            "certify: Smoothed gives a radius of the 2-norm, so the region must have one ball, an fm.L2Ball of a radius above 0, and may "
            f"have boxes; got {region!r}. Write fm.L2Ball(0.5)."
        )
    validate(smoothed)
    begun, examples = time.perf_counter(), Examples("certify", smoothed.system, data, batch_size, region)
    predicted, radius = _classes_and_radii(smoothed, examples, seed)
    correct = predicted == examples.labels
    return Certificate(
        labels=examples.labels,
        predicted=predicted,
        correct=correct,
        certified=correct & (radius >= float(ball.eps)),
        radius=np.where(correct, radius, 0.0),
        method=(
            f"randomized smoothing, sigma {float(smoothed.sigma):g}, {smoothed.samples} draws, each example with error probability "
            f"{float(smoothed.alpha):g}"
        ),
        region=repr(region),
        seconds=time.perf_counter() - begun,
    )


@dispatch
def predict(smoothed: Smoothed, data, *, batch_size=None, devices=None):
    _require_no_devices(devices)
    validate(smoothed)
    return _classes_and_radii(smoothed, Examples("predict", smoothed.system, data, batch_size), 0)[0]


@dispatch
def evaluate(smoothed: Smoothed, data, *, attack=None, batch_size=None, devices=None):
    _require_no_devices(devices)
    if attack is not None:
        raise ValueError(
            "evaluate: an attack on the model inside a Smoothed says nothing about its vote over noisy inputs, so attack must be None. "
            "Write fm.certify(smoothed, data, fm.L2Ball(0.5)), which bounds the accuracy under every attack in the ball."
        )
    validate(smoothed)
    examples = Examples("evaluate", smoothed.system, data, batch_size)
    predicted, _ = _classes_and_radii(smoothed, examples, 0)
    share = lambda flags: float(np.average(flags, weights=getattr(examples.whole, "weight", None)))
    return {"accuracy": share(predicted == examples.labels), "abstained": share(predicted == -1)}


def _require_no_devices(devices: Any) -> None:
    if devices is not None:
        raise ValueError("devices must be None for a Smoothed, whose votes are counted on one device.")


def _classes_and_radii(smoothed: Smoothed, examples: "Examples", seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The class of each example, -1 where it abstains, and its radius, `(n,)` each."""
    key, found = jax.random.key(seed), []
    for rows in examples.chunks():
        batch = examples.batch(rows)
        pair = smoothed_class(examples.structure, examples.leaves, smoothed, batch, key, examples.classes)
        found.append([v[: len(rows)] for v in pair])
    predicted, radius = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return predicted, radius


def one_ball(region: Region) -> Ball | None:
    """The one ball in a region, if it has one radius above 0; otherwise None."""
    ball = single_ball(region)
    return ball if ball is not None and ball.eps > 0 else None


class Examples(ExampleBatches):
    """A system with one classifier and its data; raises for what the verb does not take.

    Attributes:
        classes: the number of classes.
    """

    def __init__(
        self, verb: str, system: Any, data: Any, batch_size: int | None, region: Region = Intersection(()), usual: int = 32
    ) -> None:
        batch_size = usual if batch_size is None else batch_size
        check_positive("batch_size", batch_size)
        require_arrays(system, verb)
        for _, part in [*components(system), *components(region)]:
            validate(part)
        super().__init__(system, data, batch_size)
        labelled = verb != "predict"
        prediction = sole_prediction(verb, self.system, self.whole, jax.random.key(0), labelled)
        shape = getattr(prediction.outputs, "shape", ())
        if len(shape) != 2 or shape[1] < 2:
            raise ValueError(
                f"{verb} needs logits of at least two classes, (n, classes), got {short(prediction.outputs)} from "
                f"{type(self.system).__name__}; of a binary logit z, return jnp.stack([0 * z, z], 1)."
            )
        self.classes = shape[1]
        (validate if labelled else check_inputs)(self.system, self.whole)
        if verb == "certify":
            require_inside(region, jax.tree.leaves(inputs(self.whole)))
        if labelled:
            check_classes(prediction, self.system)


def _certified(examples: Examples, rows: np.ndarray, region: Region, ball: Ball | None) -> tuple[np.ndarray, ...]:
    """The logits of some examples, whether their labels are certified, and up to which radius (0 without a ball)."""
    batch, n = examples.batch(rows), len(rows)
    labels = np.resize(examples.labels[rows], len(batch))

    def certified(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        within = region if ball is None else scaled(region, factor)
        outputs, least = _least_margins(examples.structure, examples.leaves, batch, labels, within)
        return np.asarray(outputs), np.asarray(least) > 0

    one = np.ones(len(labels), np.float32)
    outputs, whole = certified(one)
    low, high = np.where(whole, one, 0), np.where(whole, 2 * one, one)
    middle = 2 * one
    for _ in range(BISECTIONS if ball is not None else 0):
        _, holds = certified(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, np.minimum(middle, high))
        middle = (low + high) / 2
    radius = low.astype(np.float64) * (0.0 if ball is None else float(ball.eps))
    return outputs[:n], whole[:n], radius[:n]


@per_structure()
def _least_margins(structure: Structure, leaves: Any, batch: Any, labels: Any, region: Region) -> Any:
    """The logits, and the least bound of the margin to another class, `(n,)`."""
    (found,) = classifiers(structure.unpack(leaves), batch).values()
    margins = margins_in(found, region, labels)
    is_label = jax.nn.one_hot(labels, margins.shape[1], dtype=bool)
    return found.outputs, jax.numpy.where(is_label, jax.numpy.inf, margins).min(1)

"""The methods of `certify`: by interval bounds, and by randomized smoothing; and `predict` and `evaluate` of a `Smoothed`."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fulmen.compose.supervised import check_inputs
from fulmen.core import (
    Eval,
    State,
    check_classes,
    components,
    concrete,
    inputs,
    pack,
    remake,
    require_arrays,
)
from fulmen.core.structure import Structure, keep, per_structure
from fulmen.core.verbs import as_batch, bind, certify, evaluate, predict, predictions, scaled, validate
from fulmen.data.arrays import check_arrays, check_positive
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import Ball, L2Ball, Region, balls, require_inside
from fulmen.robust.certified.certificate import Certificate
from fulmen.robust.certified.ibp import classifiers, margins_in
from fulmen.robust.certified.interval import require_covered
from fulmen.robust.certified.smoothed import Smoothed, smoothed_class

BISECTIONS = 12
"""The number of passes for the radii, which gives them to within the 2048th part of the region's radius."""


@dispatch
def certify(state: State, data, region, **options):
    return certify(state.system, data, region, **options)


@dispatch
def certify(component: object, data, region, *, batch_size: int | None = None):
    require_covered("certify", region)
    begun, examples = time.perf_counter(), Examples(component, data, region, batch_size, 256)
    ball = one_ball(region)
    found = [_certified(examples, rows, region, ball) for rows in examples.chunks()]
    outputs, certified, radius = (np.concatenate(parts) for parts in zip(*found, strict=True))
    own = np.take_along_axis(outputs, examples.labels[:, None], 1)
    correct = (outputs >= own).sum(1) == 1
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
    begun, examples = time.perf_counter(), Examples(smoothed.system, data, region, batch_size, 32)
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
    return _classes_and_radii(smoothed, Examples(smoothed.system, data, None, batch_size, 32), 0)[0]


@dispatch
def evaluate(smoothed: Smoothed, data, *, attack=None, batch_size=None, devices=None):
    _require_no_devices(devices)
    if attack is not None:
        raise ValueError(
            "evaluate: an attack on the model inside a Smoothed says nothing about its vote over noisy inputs, so attack must be None. "
            "Write fm.certify(smoothed, data, fm.L2Ball(0.5)), which bounds the accuracy under every attack in the ball."
        )
    validate(smoothed)
    examples = Examples(smoothed.system, data, None, batch_size, 32, labelled=True)
    predicted, _ = _classes_and_radii(smoothed, examples, 0)
    share = lambda flags: float(np.average(flags, weights=examples.weight))
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
    found = balls(region)
    usable = len(found) == 1 and concrete(found[0].eps) is not None and not np.ndim(found[0].eps) and found[0].eps > 0
    return found[0] if usable else None


class Examples:
    """A system with one classifier and its data, in batches of equal size.

    Attributes:
        labels: `(n,)`, the classes of the examples; None unless they are needed.
        weight: `(n,)`, their weights, or None.
        classes: the number of classes.
        leaves, structure: those of the system.
    """

    def __init__(
        self, system: Any, data: Any, region: Region | None, batch_size: int | None, usual: int, labelled: bool = False
    ) -> None:
        size = usual if batch_size is None else batch_size
        check_positive("batch_size", size)
        labelled = labelled or region is not None
        self.verb = "certify" if region is not None else "evaluate" if labelled else "predict"
        require_arrays(system, self.verb)
        for _, part in [*components(system), *(() if region is None else components(region))]:
            validate(part)
        self.leaves, self.structure = pack(system)
        keep(self.structure, system)
        self.system = self.structure.unpack(self.leaves)
        self.data: Any = check_arrays(data)
        whole = as_batch(self.system, self.data)
        prediction = self._prediction(whole, labelled)
        self.classes = prediction.outputs.shape[1]
        (validate if labelled else check_inputs)(self.system, whole)
        if region is not None:
            require_inside(region, jax.tree.leaves(inputs(whole)))
        self.labels: Any = None
        if labelled:
            check_classes(prediction, self.system)
            y = np.asarray(whole.y)
            self.labels = (y if y.ndim == 1 else y.argmax(1)).astype(np.int32)
        self.size, self.weight = len(whole), getattr(whole, "weight", None)
        self.batch_size = min(size, self.size)

    def _prediction(self, whole: Any, labelled: bool) -> Any:
        """The prediction for all examples, as shapes; raises unless the system has one classifier, and labels if they are needed."""
        found = jax.eval_shape(lambda one: predictions(bind(self.system, Eval(jax.random.key(0))), one), whole[:1])
        name = type(self.system).__name__
        if len(found) != 1:
            raise ValueError(
                f"{self.verb} needs a system with one classifier, and {name} has {len(found)}: give one of its parts."
            )
        if labelled and getattr(whole, "y", None) is None:
            raise ValueError(f"{self.verb} needs labels, and the data has no labels y: give pairs (x, y).")
        (prediction,) = found.values()
        like: Any = jax.ShapeDtypeStruct((len(whole), *prediction.outputs.shape[1:]), prediction.outputs.dtype)
        return remake(prediction, {"outputs": like, "batch": whole})

    def chunks(self) -> Iterator[np.ndarray]:
        """The positions of the examples, in pieces of at most the batch size."""
        for start in range(0, self.size, self.batch_size):
            yield np.arange(start, min(start + self.batch_size, self.size), dtype=np.int32)

    def batch(self, rows: np.ndarray) -> Any:
        """The batch of some examples, with their `index`; it is padded by repeating examples."""
        rows = np.resize(rows, self.batch_size)
        batch = as_batch(self.system, jax.tree.map(lambda v: v[rows], self.data))
        return remake(batch, {"index": rows if batch.index is None else batch.index, "weight": None})


def _certified(examples: Examples, rows: np.ndarray, region: Region, ball: Ball | None) -> tuple[np.ndarray, ...]:
    """The logits of some examples, whether their labels are certified, and up to which radius (0 without a ball)."""
    batch, n = examples.batch(rows), len(rows)
    labels = np.resize(examples.labels[rows], examples.batch_size)

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

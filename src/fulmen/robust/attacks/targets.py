"""The goal of an attack: away from a label, or towards another class."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Component, Eval, Prediction, concrete, hyper, inputs, remake, short, static, with_inputs, with_labels
from fulmen.core.output_shapes import output_shapes
from fulmen.core.prediction import at_labels
from fulmen.core.verbs import aim, bind, for_examples, loss, predictions, succeeded, toward, validate
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.region import values_at


class Targeting(Component):
    """The goal of an attack.

    **Extending.** Subclass it, and write `aim(targeting: Mine, system, batch)`.
    """

    __example__ = "fm.attacks.Target(3)"
    names_class: ClassVar[bool] = False  # whether the user gives the target class
    one_class: ClassVar[bool] = True  # whether there is a target class


class TrueLabel(Targeting):
    """Away from the label in the batch."""

    one_class = False


class PredictedLabel(Targeting):
    """Away from the label that the model predicts for the clean input; the attack does not use the true label."""

    one_class = False


class Unrejected(TrueLabel):
    """Away from the label, for a model that may reject an input: a point counts only if a wrong class is predicted.

    Args:
        rejection: the class that means rejection. Rejecting an attacked input is right, rejecting a clean one is not. That is what
            `fm.robustness` counts; the metrics of `fm.evaluate` are the system's, for which a rejected input is wrong.

    >>> fm.PGD(fm.LinfBall(0.1), 0.02, 10, target=fm.attacks.Unrejected(10)).target
    Unrejected(rejection=10)
    """

    __example__ = "fm.attacks.Unrejected(10)"

    rejection: int = static(minimum=0)


class Target(Targeting):
    """Towards a class; the attack succeeds where the model predicts it.

    Args:
        label: the class, or `(n,)`, one per example.
    """

    names_class = True

    label: jax.Array


class LikelyTarget(Targeting):
    """Towards the `rank`-th most likely wrong class of the clean input.

    The attack succeeds where any wrong class is predicted. Croce and Hein 2020, arXiv:2003.01690, use the ranks 1 to 9.

    Args:
        rank: from 1; with fewer wrong classes, the least likely one is used.
    """

    rank: int = hyper(minimum=1, default=1)


class MALT(Targeting):
    """Towards the class whose linearised boundary is the `rank`-th nearest to the clean input.

    Classes are ordered by (z_y − z_t) / ‖∇z_y − ∇z_t‖, in the dual norm: the distance to the boundary if the model were linear.
    The attack succeeds where any wrong class is predicted. It takes a forward pass, and a backward pass for each candidate.
    Melamed, Yehudai and Shamir 2024, arXiv:2407.02240.

    Args:
        rank: from 1; with fewer candidates, the farthest one is used.
        norm: the order of the attack's norm, 1, 2 or infinity.
        candidates: the number of classes to consider, the most likely wrong ones of the clean input.
    """

    rank: int = hyper(minimum=1, default=1)
    norm: float = static(default=math.inf, kw_only=True)
    candidates: int = static(minimum=1, default=9, kw_only=True)


@dispatch
def aim(targeting: TrueLabel, system, batch):
    return batch, None


@dispatch
def aim(targeting: PredictedLabel, system, batch):
    predicted = single_prediction(targeting, system, batch).outputs.argmax(-1)
    return with_labels(batch, predicted.astype(jnp.int32)), None


@dispatch
def aim(targeting: Target, system, batch):
    n = len(batch)
    return batch, jnp.broadcast_to(jnp.asarray(for_examples(targeting, np.arange(n), n).label, jnp.int32), (n,))


@dispatch
def for_examples(targeting: Target, rows, n):
    return remake(targeting, {"label": values_at("Target.label", targeting.label, rows, n)})


@dispatch
def aim(targeting: LikelyTarget, system, batch):
    prediction = single_prediction(targeting, system, batch)
    outputs = prediction.outputs
    order = jnp.argsort(without_class(outputs, class_labels(prediction.batch)), axis=1, descending=True)
    rank = jnp.clip(jnp.asarray(targeting.rank, jnp.int32), 1, outputs.shape[1] - 1)
    column = jnp.broadcast_to(rank - 1, (len(batch), 1))
    return batch, jnp.take_along_axis(order, column, axis=1)[:, 0].astype(jnp.int32)


@dispatch
def aim(targeting: MALT, system, batch):
    def see(x: Any) -> tuple[jax.Array, jax.Array]:
        prediction = single_prediction(targeting, system, with_inputs(batch, x))
        return prediction.outputs, class_labels(prediction.batch)

    logits, pull_back, labels = jax.vjp(see, inputs(batch), has_aux=True)
    classes = logits.shape[1]
    top = jax.lax.top_k(without_class(logits, labels), min(targeting.candidates, classes - 1))[1]
    one_hot = lambda label: jax.nn.one_hot(label, classes, dtype=logits.dtype)
    lead = one_hot(labels)[None] - one_hot(top.T)  # (k, n, classes)
    gradients = jax.tree.leaves(jax.vmap(lambda cotangent: pull_back(cotangent)[0])(lead))
    flat = jnp.concatenate([g.reshape(*g.shape[:2], -1) for g in gradients], axis=2)
    dual = 1 if targeting.norm == math.inf else math.inf if targeting.norm == 1 else targeting.norm / (targeting.norm - 1)
    slope = jnp.linalg.norm(flat, dual, axis=2)
    distance = (lead * logits[None]).sum(2) / jnp.maximum(slope, 1e-12).astype(logits.dtype)
    order = jnp.argsort(jnp.where(jnp.isfinite(distance), distance, jnp.inf), axis=0)
    nearest = jnp.take_along_axis(top.T, order, axis=0)
    rank = jnp.clip(jnp.asarray(targeting.rank, jnp.int32), 1, len(nearest))
    return batch, jnp.take(nearest, rank - 1, axis=0).astype(jnp.int32)


def required_predictions(user: Any, system: Any, batch: Any) -> dict[str, Prediction]:
    """The predictions of a system, by path; raises a ValueError if there are none."""
    found = predictions(system, batch)
    if not found:
        kind = type(system).__name__
        raise ValueError(
            f"{type(user).__name__} needs the outputs of a model, and {kind} has no predictions. Write `forward(system: {kind}, x)` "
            f"that returns the outputs, or `predictions(system: {kind}, batch)`."
        )
    return found


def single_prediction(user: Any, system: Any, batch: Any) -> Prediction:
    """The one prediction of a system, with logits `(n, classes)`; raises if there are several."""
    found = required_predictions(user, system, batch)
    if len(found) != 1:
        kind = type(system).__name__
        raise ValueError(
            f"{type(user).__name__} needs the logits of one model, got {len(found)} predictions ({', '.join(map(repr, found))}) of "
            f"{kind}. Write `forward(system: {kind}, x)` that returns the logits, attack one of its parts, or use an attack on its "
            "loss."
        )
    (prediction,) = found.values()
    if getattr(prediction.outputs, "ndim", None) != 2:
        shape = getattr(prediction.outputs, "shape", type(prediction.outputs).__name__)
        raise ValueError(f"{type(user).__name__} needs logits (n, classes), got outputs {shape}.")
    return prediction


def class_labels(batch: Any) -> jax.Array:
    """The label of each example, `(n,)`; of probabilities, the most likely class."""
    y = jnp.asarray(batch.y)
    return y.astype(jnp.int32) if jnp.issubdtype(y.dtype, jnp.integer) else y.argmax(-1).astype(jnp.int32)


def require_one_label(targeting: Targeting, batch: Any) -> None:
    """Raise for several labels per example, by which success is not defined unless `succeeded` is custom. Skips tracers."""
    unknown: Any = None
    method = succeeded.method(targeting, Prediction(unknown, unknown, unknown), None)
    if method.members[0] not in ((Targeting,), (Unrejected,)):
        return
    y = concrete(getattr(batch, "y", None))
    if y is None or y.ndim != 2 or y.shape[1] == 1:
        return
    if y.dtype.kind in "iub" or (np.abs(y.astype(np.float64).sum(1) - 1) > 0.01).any():  # else probabilities of classes
        raise ValueError(
            f"an attack that stops when it succeeds needs one label per example, got y {short(y)} with several. Use an attack that "
            "only maximises the loss, such as fm.PGD, by `perturb` or `evaluate`."
        )


def without_class(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The logits with −∞ for one class of each example."""
    return jnp.where(jax.nn.one_hot(label, logits.shape[1], dtype=bool), -jnp.inf, logits)


# The maximised value and success


@dispatch
def toward(objective: object, prediction, target):
    return -loss(objective, remake(prediction, {"batch": with_labels(prediction.batch, target)}))


@dispatch
def succeeded(targeting: Targeting, prediction, target):
    outputs, y = jnp.asarray(prediction.outputs), jnp.asarray(prediction.batch.y)
    if outputs.shape in ((len(outputs),), (len(outputs), 1)):  # the logit of a binary target
        return ~jnp.where(y.reshape(-1) > 0.5, outputs.reshape(-1) > 0, outputs.reshape(-1) <= 0)
    return ~_is_highest(outputs, class_labels(prediction.batch))


@dispatch
def succeeded(targeting: Unrejected, prediction, target):
    outputs = prediction.outputs
    rejected = _is_highest(outputs, jnp.full(len(outputs), targeting.rejection, jnp.int32))
    return ~_is_highest(outputs, class_labels(prediction.batch)) & ~rejected


@dispatch
def succeeded(targeting: Target, prediction, target):
    return _is_highest(prediction.outputs, target)


def _is_highest(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """Whether a class has the only highest output, as `Accuracy` counts: ties and NaN are wrong."""
    if outputs.ndim != 2:
        raise ValueError(f"the goal of the attack needs logits (n, classes), got outputs {outputs.shape}.")
    return (outputs >= at_labels(outputs, label)[:, None]).sum(1) == 1


@dispatch
def validate(targeting: Targeting, system, batch):
    return None


@dispatch
def validate(targeting: Target, system, batch):
    validate(system, with_labels(batch, aim(targeting, system, batch)[1]))


@dispatch
def validate(targeting: MALT):
    if not targeting.norm >= 1:
        raise ValueError(f"MALT.norm must be at least 1, the order of the attack's norm, got {targeting.norm!r}.")


@dispatch
def validate(targeting: Target):
    label = concrete(targeting.label)
    if label is not None and not np.issubdtype(label.dtype, np.integer):
        raise TypeError(f"Target.label must be a class, or an integer per example, got {label.dtype}.")


# Whether an objective is one for the system and its targets


def check_objective(attack: Any, system: Any, batch: Any) -> None:
    """Raise if an attack's objective cannot be computed from the system's outputs and the batch's targets.

    Raises:
        ValueError: such as for a classification objective on a regression, whose attack would be no evidence of robustness.
    """
    if (
        attack.objective is None or len(jax.tree.leaves(inputs(batch))) != 1
    ):  # of several, most attacks say that they take one
        return
    for path, found in output_shapes(_predictions, system, batch, rows=2).items():
        found = found if path else remake(found, {"batch": batch})
        if getattr(found.batch, "y", None) is None:
            continue
        try:
            validate(attack.objective, found)
        except (TypeError, ValueError) as error:
            validate(system, batch)  # data that the system refuses too is not the attack's fault
            name = type(attack).__name__
            raise ValueError(
                f"{name}.objective must fit the outputs and targets of the system, got {attack.objective!r}: {error} For a "
                "regression write fm.attacks.APGD(region, objective=fm.MSE()), or fm.PGD, which maximises the system's own loss."
            ) from error


def _predictions(system: Any, batch: Any) -> dict[str, Prediction]:
    return predictions(bind(system, Eval(jax.random.key(0))), batch)

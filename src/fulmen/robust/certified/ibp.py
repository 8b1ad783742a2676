"""`IBP`: training on the worst case that interval bounds allow."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import Defence, unrecorded, validate_logits
from fulmen.core import Eval, Prediction, Train, class_targets, concrete, hyper, inputs, number, with_inputs
from fulmen.core.prediction import inputs_for
from fulmen.core.verbs import bind, defence_losses, loss, margin_bounds, predictions, scaled, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import CrossEntropy
from fulmen.objectives.algebra import total
from fulmen.robust.attacks.region import Region
from fulmen.robust.certified.interval import interval_of, require_covered


class IBP(Defence):
    """Training for interval bounds: κ · loss(x) + (1 − κ) · CE(worst logits in the region). Gowal et al. 2018, arXiv:1810.12715.

    The worst logits are the label's highest possible disadvantage to each other class, by `margin_bounds` in `Eval` mode: without
    dropout, and with running statistics. The terms of several classifiers in the system are added up. In the first `warmup` steps
    the region has radius 0 and κ is 1; in the next `ramp` steps the radius grows linearly to that of the region, and κ falls
    linearly to `clean_weight`. Without a ramp, most networks do not learn.

    Args:
        system: one with a classifier in it, at any depth; labels are integers. Its layers need methods of `forward` for an
            `Interval`.
        region: a region that bounds each coordinate, such as `fm.LinfBall(0.1) & fm.Box(0, 1)`.
        clean_weight: κ at the end, in [0, 1].
        warmup: a number of steps.
        ramp: a number of steps.

    >>> system = fm.Classifier(fm.models.MLP(64, 32, 10))
    >>> fm.IBP(system, fm.LinfBall(0.1) & fm.Box(0, 1), warmup=100, ramp=500).clean_weight
    0.5
    """

    region: Region
    clean_weight: float = hyper(minimum=0, maximum=1, default=0.5)
    warmup: float = hyper(minimum=0, default=0.0)
    ramp: float = hyper(minimum=0, default=0.0)

    def defends(self, batch: Any) -> bool:
        return isinstance(self.mode, Train)

    @property
    def progress(self) -> jax.Array:
        """The radius as a share of the region's, at the step of the mode."""
        step = jnp.asarray(getattr(self.mode, "step", 0)).astype(jnp.float32)
        warmup, ramp = (jnp.asarray(v).astype(jnp.float32) for v in (self.warmup, self.ramp))
        return jnp.clip((step - warmup + jnp.where(ramp > 0, 0, 1)) / jnp.maximum(ramp, 1), 0, 1)


@dispatch
def defence_losses(ibp: IBP, batch):
    progress = ibp.progress
    region = scaled(ibp.region, progress)
    worst = total([_worst_loss(ibp, found, region) for found in classifiers(ibp.system, batch).values()])
    weight = progress * (1 - jnp.asarray(ibp.clean_weight).astype(jnp.float32))
    clean = loss(ibp.system, batch)
    return {"clean": (1 - weight).astype(clean.dtype) * clean, "worst": weight.astype(worst.dtype) * worst}


def _worst_loss(ibp: IBP, found: Prediction, region: Region) -> jax.Array:
    margins = margins_in(found, region, integer_labels(ibp, found))
    return loss(CrossEntropy(), Prediction(found.model, -margins, found.batch))


def integer_labels(defence: Any, found: Prediction) -> jax.Array:
    """The labels of a prediction's examples, `(n,)`; raises a TypeError, which names the defence, for probabilities."""
    y, labels = class_targets(found, defence)
    if not labels:
        name = type(defence).__name__
        raise TypeError(
            f"{name}: y must be integer labels, got probabilities; remove augmentations that mix or smooth labels."
        )
    return jnp.asarray(y)


def classifiers(system: Any, batch: Any) -> dict[str, Prediction]:
    """The predictions of every classifier in a system in `Eval` mode, by path."""
    return predictions(bind(unrecorded(system), Eval()), batch)


def margins_in(found: Prediction, region: Region, labels: Any) -> jax.Array:
    """The margin bounds of a prediction's model in a region around its inputs, `(n, classes)`."""
    around = jax.tree.map(lambda x: interval_of(region, x), inputs(found.batch))
    x, *more = inputs_for(found.model, with_inputs(found.batch, around))
    if more:
        raise ValueError(
            f"interval bounds need a model with one input, got {type(found.model).__name__} with {1 + len(more)}."
        )
    return margin_bounds(found.model, x, labels)


@dispatch
def validate(ibp: IBP):
    require_covered("IBP", ibp.region)
    for name in ("warmup", "ramp"):
        steps = concrete(getattr(ibp, name))
        if steps is not None and ((steps > 0) & (steps < 1)).any():
            raise ValueError(
                f"IBP.{name} must be a number of steps, 0 or at least 1, got {number(steps)}; a share of a run is "
                f"{name}=share * epochs * steps_per_epoch."
            )


@dispatch
def validate(ibp: IBP, batch):
    validate.invoke(Defence, object)(ibp, batch)
    validate_logits(ibp, batch)

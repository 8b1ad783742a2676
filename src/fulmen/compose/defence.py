"""`Defence`: a wrapper whose loss in training is made of entries of its own; in an evaluation it is its system."""

from __future__ import annotations

from typing import Any

import jax

from fulmen.compose.losses import named, sums_its_losses
from fulmen.core.batch import Batch, inner
from fulmen.core.component import Buffer, Component, System, Wrapper, part_name
from fulmen.core.marks import sums_losses
from fulmen.core.mode import Eval
from fulmen.core.naming import briefly
from fulmen.core.output_shapes import output_shapes
from fulmen.core.prediction import Prediction, check_classes
from fulmen.core.tree import remake
from fulmen.core.verbs import as_batch, bind, defence_losses, loss, losses, metrics, predictions, reduce_losses, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["Defence", "logits", "unrecorded", "validate_logits"]


class Defence(Wrapper):
    """A system that is trained with a loss that makes it robust. On batches that are no such training it is the system.

    Args:
        system: anything that has a loss, and for most defences a classifier in it, at any depth.

    **Extending.** Subclass it, and write `defence_losses(defence: Mine, batch)`, the entries that add up to the loss. It is
    asked for where `defends` says so: by default for `Attacked` batches.
    """

    system: Component

    def __repr__(self) -> str:
        return briefly(self)

    def defends(self, batch: Any) -> bool:
        """Whether the loss of a batch is the defence's own, and not the system's."""
        return inner(batch) is not batch

    def looks_at_clean(self, batch: Any) -> bool:
        """Whether the clean examples go through the model in training, so that their metrics cost nothing."""
        return self.defends(batch)


@dispatch
@sums_losses
def loss(defence: Defence, batch):
    if not defence.defends(batch):
        return loss(defence.system, inner(batch))
    return _sum(defence, losses(defence, batch), batch)


@dispatch
def losses(defence: Defence, batch):
    if defence.defends(batch):
        return defence_losses(defence, batch)
    part, batch = defence.system, inner(batch)
    return named(part, losses(part, batch)) if _has_entries(part, batch) else {"system": loss(part, batch)}


@dispatch
def reduce_losses(defence: Defence, losses, batch):
    if defence.defends(batch) or not _has_entries(defence.system, inner(batch)):
        return _sum(defence, losses, batch)
    return reduce_losses(defence.system, losses, inner(batch))


def _sum(defence: Any, entries: Any, batch: Any) -> jax.Array:
    return reduce_losses.invoke(System, object, object)(defence, entries, inner(batch))


def _has_entries(part: Any, batch: Any) -> bool:
    """Whether `losses` says what its loss is made of; a model has a loss alone, and so may a system of the user's."""
    while isinstance(part, Wrapper):
        part = getattr(part, part_name(type(part)))
    return isinstance(part, System) and sums_its_losses(part, batch)


@dispatch
def metrics(defence: Defence, batch):
    if inner(batch) is batch:
        return metrics(defence.system, batch)
    found = dict(metrics(defence.system, batch.clean)) if defence.looks_at_clean(batch) else {}
    return {**found, **{f"robust/{name}": figure for name, figure in metrics(defence.system, batch.batch).items()}}


@dispatch
def validate(defence: Defence, batch):
    validate(defence.system, as_batch(defence.system, batch))


# What defences look at


def logits(defence: Any, system: Any, batch: Any) -> dict[str, Prediction]:
    """The predictions of every classifier in a system, by path.

    Raises:
        ValueError: if there is none, or one whose outputs are no logits.
    """
    found = predictions(system, batch)
    _require_logits(defence, system, {path: prediction.outputs for path, prediction in found.items()})
    return found


def _require_logits(defence: Any, system: Any, outputs: dict[str, Any]) -> None:
    who = f"{type(defence).__name__}, system: one with a classifier in it was expected, and"
    if not outputs:
        raise ValueError(
            f"{who} {type(system).__name__} has no predictions. Write `predictions(system: {type(system).__name__}, batch)`."
        )
    for path, value in outputs.items():
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] < 2:
            what = type(value).__name__ if shape is None else tuple(shape)
            raise ValueError(
                f"{who} the outputs{f' of {path!r}' if path else ''} are {what}: logits (n, classes) were expected."
            )


def unrecorded(system: Any) -> Any:
    """The system with nothing recorded in its buffers, for a pass that stands for one that was recorded."""
    is_buffer = lambda v: isinstance(v, Buffer)
    return jax.tree.map(lambda v: remake(v, {"slot": None}) if is_buffer(v) else v, system, is_leaf=is_buffer)


def validate_logits(defence: Any, batch: Any, system: Any = None) -> dict[str, int]:
    """Raise unless there are logits in a defence's system, or another one, whose targets, if there are any, are classes.

    Returns how many classes there are, by the classifiers' paths.
    """
    part: Any = defence.system if system is None else system
    batch = as_batch(part, batch)
    found = output_shapes(_classifier_outputs, part, batch, rows=2)
    _require_logits(defence, part, found)
    if "" in found and getattr(batch, "y", None) is not None:
        check_classes(Prediction(part, found[""], batch), defence)
    return {path: outputs.shape[1] for path, outputs in found.items()}


def _classifier_outputs(system: Any, batch: Batch) -> dict[str, Any]:
    found = predictions(bind(system, Eval(jax.random.key(0))), batch)
    return {path: prediction.outputs for path, prediction in found.items()}

"""`Defence`: a wrapper with its own training loss; in an evaluation it is its system."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.loss_entries import checked_entries, entries_of, entry_part, sums_its_losses
from fulmen.core import Batch, Eval, Labeled, briefly, inner, remake, sums_losses, unwrapped
from fulmen.core.component import Buffer, Component, System, Wrapper
from fulmen.core.output_shapes import output_shapes
from fulmen.core.prediction import Prediction, at_least_float32, check_classes
from fulmen.core.verbs import as_batch, bind, defence_losses, loss, losses, metrics, predictions, reduce_losses, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives.algebra import total


class Defence(Wrapper):
    """A system that is trained with a loss that makes it robust. On all other batches it is the system.

    Args:
        system: a component with a loss; most defences need a classifier in it, at any depth.

    **Extending.** Subclass it and write `defence_losses(defence: Mine, batch)`, which returns the entries that add up to the
    loss. It is called for the batches for which `defends` is true: by default, `Attacked` batches.
    """

    system: Component

    def __repr__(self) -> str:
        return briefly(self)

    def defends(self, batch: Any) -> bool:
        """Whether the loss of a batch is `defence_losses` and not the system's loss."""
        return inner(batch) is not batch

    def looks_at_clean(self, batch: Any) -> bool:
        """Whether the training loss computes the outputs of the clean examples, so that their metrics cost nothing."""
        return self.defends(batch)


@dispatch
@sums_losses
def loss(defence: Defence, batch):
    if not defence.defends(batch):
        return loss(defence.system, inner(batch))
    return _sum(defence, entries_of(defence, batch), batch)


@dispatch
def losses(defence: Defence, batch):
    if defence.defends(batch):
        return defence_losses(defence, batch)
    part, batch = defence.system, inner(batch)
    return checked_entries(part, losses(part, batch)) if _has_entries(part, batch) else {"system": loss(part, batch)}


@dispatch
def reduce_losses(defence: Defence, losses, batch):
    if defence.defends(batch) or not _has_entries(defence.system, inner(batch)):
        return _sum(defence, losses, batch)
    return reduce_losses(defence.system, losses, inner(batch))


@dispatch
def entry_part(defence: Defence, name, batch):
    return entry_part(defence.system, name, inner(batch))


def _sum(defence: Any, entries: Any, batch: Any) -> jax.Array:
    return reduce_losses.invoke(System, object, object)(defence, entries, inner(batch))


def _has_entries(part: Any, batch: Any) -> bool:
    """Whether the loss of a part is the sum of its `losses`; a model has no `losses`, and a system may have its own `loss`."""
    part = unwrapped(part)
    return isinstance(part, System) and sums_its_losses(part, batch)


@dispatch
def metrics(defence: Defence, batch):
    if inner(batch) is batch:
        return metrics(defence.system, batch)
    found = dict(metrics(defence.system, batch.clean)) if defence.looks_at_clean(batch) else {}
    return {**found, **{f"robust/{name}": value for name, value in metrics(defence.system, batch.batch).items()}}


@dispatch
def validate(defence: Defence, batch):
    validate(defence.system, as_batch(defence.system, batch))


# Logits, for the losses of defences


def logits(defence: Any, system: Any, batch: Any) -> dict[str, Prediction]:
    """The predictions of every classifier in a system, by path; `defence` is the component that needs them.

    Raises:
        ValueError: if there is no classifier, or one whose outputs are not logits `(n, classes)`.
    """
    found = predictions(system, batch)
    _require_logits(defence, system, {path: prediction.outputs for path, prediction in found.items()})
    return found


def _require_logits(defence: Any, system: Any, outputs: dict[str, Any]) -> None:
    who = f"the system of {type(defence).__name__} must contain a classifier"
    if not outputs:
        kind = type(system).__name__
        raise ValueError(f"{who}, but {kind} has no predictions. Write `predictions(system: {kind}, batch)`.")
    for path, value in outputs.items():
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] < 2:
            got = type(value).__name__ if shape is None else tuple(shape)
            raise ValueError(f"{who}: its outputs{f' {path!r}' if path else ''} must be logits (n, classes), got {got}.")


def soft_target_loss(
    objective: Any, found: dict[str, Prediction], targets: dict[str, Prediction], temperature: Any = None
) -> jax.Array:
    """The sum over a system's classifiers of an objective, such as `KL()`, whose targets are the probabilities of other logits.

    Both logits are divided by the temperature, if there is one. No gradient goes through those in `targets`.
    """
    values = []
    for path, prediction in found.items():
        p, q = (at_least_float32(v.outputs) for v in (targets[path], prediction))
        if temperature is not None:
            p, q = (v / jnp.asarray(temperature).astype(v.dtype) for v in (p, q))
        x: Any = getattr(prediction.batch, "x", None)
        soft = Labeled(x, jax.nn.softmax(jax.lax.stop_gradient(p)))
        values.append(loss(objective, Prediction(prediction.model, q, soft)))
    return total(values)


def unrecorded(system: Any) -> Any:
    """The system without recording in its buffers, for a second forward pass on the same examples."""
    is_buffer = lambda v: isinstance(v, Buffer)
    return jax.tree.map(lambda v: remake(v, {"slot": None}) if is_buffer(v) else v, system, is_leaf=is_buffer)


def validate_logits(defence: Any, batch: Any, system: Any = None) -> dict[str, int]:
    """Raise unless a system's predictions are logits, and its targets, if there are any, are classes.

    `defence` needs the logits, by default of its system. Returns the numbers of classes by the classifiers' paths.
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

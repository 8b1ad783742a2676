"""`MeanTeacher`: consistency between a student and the average of its weights, with or without labels."""

from typing import Any

from fulmen.compose.defence import Defence, logits, soft_target_loss, validate_logits
from fulmen.compose.part_defaults import augmented
from fulmen.core import PartBatches, Train, inner, is_unlabeled, parts_of
from fulmen.core.verbs import augment, defence_losses, loss, metrics, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Brier, Objective
from fulmen.systems.ema import EMA


class MeanTeacher(Defence):
    """Mean teacher: loss(x) + the distance of the student's probabilities to those of its teacher, the average of its weights.

    The teacher gets its own augmentation of each example, without attacks, and no gradient. On an `Unlabeled` batch the distance
    is the whole loss, so training on labelled and unlabelled batches, or with `SemiSupervised`, is semi-supervised. In an
    evaluation of labelled batches `MeanTeacher` is the average. Tarvainen and Valpola 2017, arXiv:1703.01780.

    Args:
        system: an `EMA` of a system that contains a classifier.
        objective: the distance from logits to probabilities: `Brier()` as in the paper, or `KL()`. Its weight may be a schedule:
            `optax.linear_schedule(0.0, 10.0, 1000) * fm.objectives.Brier()`.

    >>> system = fm.systems.MeanTeacher(fm.EMA(fm.Classifier(fm.models.MLP(4, 8, 3)), 0.99), 10.0 * fm.objectives.Brier())
    >>> state = fm.setup(system, (jnp.ones((6, 4)), jnp.arange(6) % 3), optimizer=optax.adam, lr=0.1)
    >>> state, logs = fm.train_step(state, (jnp.ones((6, 4)), jnp.arange(6) % 3))
    >>> sorted(logs)
    ['accuracy', 'loss', 'loss/consistency', 'loss/labelled', 'lr']
    >>> state, logs = fm.train_step(state, jnp.zeros((6, 4)))      # unlabelled
    """

    system: EMA
    objective: Objective = Brier()

    def defends(self, batch: Any) -> bool:
        return isinstance(self.mode, Train) or is_unlabeled(batch)


def _views(batch: Any) -> tuple[Any, Any]:
    """The batches of the student and of the teacher."""
    given = parts_of(batch)
    return given.get("student", batch), given.get("teacher", batch)


@dispatch
def augment(mean: MeanTeacher, batch, mode):
    student, teacher = (augmented(mean.system, batch, mode.at(name)) for name in ("student", "teacher"))
    teacher = teacher.clean if inner(teacher) is not teacher else teacher  # only the student is attacked
    if student is batch:
        return batch
    return PartBatches(batch, {"student": student, "teacher": teacher}, weight=batch.weight, index=batch.index)


@dispatch
def defence_losses(mean: MeanTeacher, batch):
    (student, teacher), ema = _views(batch), mean.system
    targets = logits(mean, ema.average, teacher)
    consistency = soft_target_loss(mean.objective, logits(mean, ema.component, student), targets)
    if is_unlabeled(batch):
        return {"consistency": consistency}
    return {"labelled": loss(ema, student), "consistency": consistency}


@dispatch
def metrics(mean: MeanTeacher, batch):
    return {} if is_unlabeled(batch) else metrics(mean.system, _views(batch)[0])


@dispatch
def validate(mean: MeanTeacher, batch):
    if not is_unlabeled(batch):
        validate.invoke(Defence, object)(mean, batch)
    validate_logits(mean, batch)

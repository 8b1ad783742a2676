"""Systems that learn from a teacher: `Distillation`, and `MeanTeacher`, whose teacher is the average of its weights."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.defence import Defence, logits, soft_target_loss, validate_logits
from fulmen.compose.example_means import per_example
from fulmen.compose.part_defaults import augmented
from fulmen.core import Component, Frozen, System, Train, hyper, keeps_rows, short
from fulmen.core.batch import PartBatches, inner, is_unlabeled, parts_of
from fulmen.core.leaves import missing
from fulmen.core.verbs import as_batch, augment, defence_losses, forward, loss, losses, metrics, predictions, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import KL, Brier, Objective
from fulmen.systems.ema import EMA


class Distillation(System):
    """A student that is trained on labels and on the outputs of a teacher: (1 − α) loss(x) + α T² KL(p_T(x) ‖ q_T(x)).

    p_T and q_T are the probabilities of teacher and student at temperature T, softmax(logits / T). The factor T² keeps the size
    of the gradient independent of T. On an `Unlabeled` batch the second term is the whole loss. Outputs, metrics and
    augmentations are those of the student. Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

    Args:
        teacher: a trained model or system that contains a classifier, with its arrays, in `fm.Frozen`.
        student: a system that contains a classifier, or a classifying model with a loss.
        temperature: T; higher values give unlikely classes more weight.
        weight: α, in [0, 1].

    >>> teacher = fm.init(fm.models.MLP(4, 32, 3), jax.random.key(0))       # in practice, a trained model
    >>> system = fm.Distillation(fm.Frozen(teacher), fm.Classifier(fm.models.MLP(4, 8, 3)), temperature=3.0)
    >>> state = fm.setup(system, (jnp.ones((6, 4)), jnp.arange(6) % 3), optimizer=optax.adam, lr=0.1)
    >>> sorted(fm.evaluate(state, (jnp.ones((6, 4)), jnp.arange(6) % 3)))
    ['accuracy', 'loss', 'loss/student', 'loss/teacher']
    """

    teacher: Frozen
    student: Component
    temperature: float = hyper(above=0, default=4.0)
    weight: float = hyper(minimum=0, maximum=1, default=0.9)

    @property
    def per_example(self) -> bool:
        """Whether the student is per example."""
        return per_example(self.student)


@dispatch
def forward(distillation: Distillation, *inputs):
    return forward(distillation.student, *inputs)


@dispatch
@keeps_rows
def as_batch(distillation: Distillation, raw):
    return as_batch(distillation.student, raw)


@dispatch
def augment(distillation: Distillation, batch, mode):
    return augment(distillation.student, batch, mode.at("student"))


@dispatch
def losses(distillation: Distillation, batch):
    weight = jnp.asarray(distillation.weight)
    soft = _from_teacher(distillation, batch)
    soft = weight.astype(soft.dtype) * soft
    if is_unlabeled(batch):
        return {"teacher": soft}
    hard = jnp.asarray(loss(distillation.student, batch))
    return {"student": (1 - weight).astype(hard.dtype) * hard, "teacher": soft}


def _from_teacher(distillation: Distillation, batch: Any) -> jax.Array:
    targets = logits(distillation, distillation.teacher, inner(batch))
    found = logits(distillation, distillation.student, batch)
    distance = soft_target_loss(KL(), found, targets, distillation.temperature)
    return jnp.asarray(distillation.temperature).astype(distance.dtype) ** 2 * distance


@dispatch
def metrics(distillation: Distillation, batch):
    return {} if is_unlabeled(batch) else metrics(distillation.student, batch)


@dispatch
def predictions(distillation: Distillation, batch):
    return predictions(distillation.student, batch)


@dispatch
def validate(distillation: Distillation):
    if isinstance(distillation.student, Frozen):
        raise TypeError(f"Distillation.student must be trained, got {short(distillation.student)}.")
    if absent := missing(distillation.teacher):
        kind = type(distillation.teacher.part).__name__
        raise ValueError(
            f"Distillation.teacher must be trained, but this {kind} has no array {absent[0].partition('.')[2]!r}; write "
            "fm.Frozen(state.system) with the state of its training."
        )


@dispatch
def validate(distillation: Distillation, batch):
    if not is_unlabeled(batch):
        validate(distillation.student, batch)
    shapes = [validate_logits(distillation, batch, part) for part in (distillation.teacher, distillation.student)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Distillation: teacher and student must have classifiers of the same names and numbers of classes, got "
            f"{shapes[0]} and {shapes[1]}."
        )


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

    system: EMA  # type: ignore[assignment]  # narrower than the base class's
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

"""`FreeAdversarial`: one backward pass updates the parameters and the perturbation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.defence import Defence
from fulmen.compose.part_defaults import augmented
from fulmen.core import Buffer, Last, Parameter, Train, hyper, inputs, remake, static, with_inputs
from fulmen.core.verbs import (
    as_batch,
    augment,
    defence_losses,
    for_examples,
    init,
    loss,
    metrics,
    setup,
    transformation,
    update,
    validate,
)
from fulmen.data.source import Source
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.projections import projected
from fulmen.robust.attacks.region import Region, ball_of
from fulmen.robust.attacks.region_checks import require_inside
from fulmen.train.gradients import apply_gradients, differentiate, learning_rates
from fulmen.train.setup import check_component
from fulmen.train.step import end_step, ignored_step, require_standard_steps


class FreeAdversarial(Defence):
    """Adversarial training at the cost of clean training: each batch is replayed, and the one backward pass of a replay updates
    the parameters and, to increase the loss, the perturbation of the inputs. The next batch starts from that perturbation.

    A training step makes `replays` updates of the parameters, so train for fewer epochs. Schedules of the plan span all
    updates; the step of a custom schedule counts updates. The gradient at the inputs is that of the training pass, with its
    dropout and batch statistics. Shafahi et al. 2019, arXiv:1904.12843.

    Args:
        system: anything that has a loss. The defence must be the outermost component of the training, so
            it cannot be in a `Population`.
        region: the allowed perturbations; its one ball determines the norm.
        replays: m, the number of updates per batch.
        step_size: the step of a replay, in the ball's norm; None for the ball's radius.
        perturbation: what is added to the inputs, a `Buffer` with the shape of a batch; `setup` makes it.

    >>> from fulmen.robust.defences import FreeAdversarial
    >>> free = FreeAdversarial(fm.Classifier(fm.models.MLP(4, 8, 3)), fm.LinfBall(0.1), replays=4)
    >>> state = fm.setup(free, (jnp.ones((6, 4)), jnp.arange(6) % 3), optimizer=optax.sgd, lr=0.1, batch_size=3)
    >>> state.system.perturbation.value.shape
    (3, 4)
    """

    region: Region
    replays: int = static(minimum=1, default=4, kw_only=True)
    step_size: float | None = hyper(minimum=0, default=None, kw_only=True)
    perturbation: Buffer | Parameter | None = None

    def defends(self, batch: Any) -> bool:
        return isinstance(self.perturbation, Parameter)  # only while a replay is differentiated


@dispatch
def setup(free: FreeAdversarial, data, *, batch_size=None, seed=0, **options):
    check_component(free)
    source = Source.with_first(data)

    def attacked(raw: Any, key: Any) -> Any:
        return inputs(augment(init(free.system, key), as_batch(free.system, raw), Train(key)))

    shapes = jax.eval_shape(attacked, source.first(source.plan(usual=batch_size, seed=seed)), jax.random.key(0))
    old = None if free.perturbation is None else perturbation(free)
    if jax.tree.map(jnp.shape, old) != jax.tree.map(jnp.shape, shapes):
        free = remake(free, {"perturbation": Buffer(jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes))})
    return setup.invoke(object, object)(free, source, batch_size=batch_size, seed=seed, **options)


@dispatch
def update(free: FreeAdversarial, state, batch, mode):
    if not isinstance(free, FreeAdversarial):
        raise ignored_step(FreeAdversarial, free)
    require_standard_steps(free, state, batch, mode)
    if mode.microbatches > 1:
        raise ValueError(
            "microbatches: FreeAdversarial differentiates the perturbation of the whole batch at once; write microbatches=1."
        )
    batch = augmented(free, batch, mode.at("augment"))
    origin = jax.tree.map(jnp.asarray, inputs(batch))
    stored = perturbation(free)
    x = projected(free.region, jax.tree.map(lambda r, x: x + _rows(r, x), stored, origin), origin)
    plan, logs = state.plan, {}
    counts = {name: getattr(plan, name) for name in ("total_steps", "steps_per_epoch")}
    longer = remake(plan, {name: None if n is None else n * free.replays for name, n in counts.items()})
    state = before = state.replace(plan=longer)
    for replay in range(free.replays):
        now = mode.at(f"replay {replay}") if replay else mode
        kept = state.system.perturbation
        system = remake(state.system, {"perturbation": Parameter(x)})
        value, gradients, moved, found = differentiate(system, batch, now)
        x = jax.tree.map(lambda x, slope: _ascended(free, x, slope), x, gradients.perturbation.value)
        x = projected(free.region, x, origin)
        gradients = remake(gradients, {"perturbation": jax.tree.map(lambda _: None, kept)})
        state = apply_gradients(state.replace(system=remake(moved, {"perturbation": kept})), gradients, value=value)
        state = end_step(state, batch, now)
        logs = {name: _merged(logs.get(name), figure) for name, figure in found.items()}
    left = jax.tree.map(lambda r, x, origin: r.at[: len(x)].set(x - origin), stored, x, origin)
    system = remake(state.system, {"perturbation": remake(state.system.perturbation, {"value": left})})
    return state.replace(system=system, plan=plan), {**logs, **learning_rates(before, state)}


def _rows(stored: jax.Array, x: jax.Array) -> jax.Array:
    """The rows of the perturbation that a batch needs; the last batch of an epoch may be smaller."""
    if len(x) > len(stored) or x.shape[1:] != stored.shape[1:]:
        raise ValueError(
            f"FreeAdversarial has a perturbation of shape {stored.shape}, got a batch of inputs {x.shape}; pass the batch_size of "
            "the training to `setup` or `fit`."
        )
    return stored[: len(x)]


def _ascended(free: FreeAdversarial, x: jax.Array, slope: jax.Array) -> jax.Array:
    """The points after a step of steepest ascent."""
    n = len(x)

    def change_of(row: Any, slope: jax.Array) -> Any:
        ball = for_examples(ball_of(free.region), row, n)
        step = transformation(ball, ball.eps if free.step_size is None else free.step_size)
        return step.update(slope, step.init(slope))[0]

    change = jax.vmap(change_of)(np.arange(n), -slope)
    return x + change.astype(x.dtype)


def _merged(old: Any, new: Any) -> Any:
    return new if old is None or isinstance(new, Last) else jax.tree.map(jnp.add, old, new)


def perturbation(free: FreeAdversarial) -> Any:
    """The stored perturbation, or the perturbed inputs while a replay is differentiated."""
    if free.perturbation is None:
        raise ValueError(
            "FreeAdversarial has no perturbation yet: `fm.setup` and `fm.fit` make it for a batch, if it is the outermost component. It "
            "cannot be in a fm.Population or another wrapper; write fm.Adversarial(system, attack) there."
        )
    return free.perturbation.value


@dispatch
def defence_losses(free: FreeAdversarial, batch):
    return {"robust": loss(free.system, with_inputs(batch, perturbation(free)))}


@dispatch
def metrics(free: FreeAdversarial, batch):
    if not free.defends(batch):
        return metrics(free.system, batch)
    found = metrics(free.system, with_inputs(batch, perturbation(free)))
    return {f"robust/{name}": metric for name, metric in found.items()}


@dispatch
def validate(free: FreeAdversarial):
    ball_of(free.region)


@dispatch
def validate(free: FreeAdversarial, batch):
    batch = as_batch(free.system, batch)
    require_inside(free.region, jax.tree.leaves(inputs(batch)))
    validate(free.system, batch)

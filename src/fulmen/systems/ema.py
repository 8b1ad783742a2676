"""`EMA` and `Averaged`: a component with an average of its weights, which evaluations use."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.vectorized import check_setup, refuse_members
from fulmen.core import BUFFER, PARAMETER, Train, briefly, fold_name, hyper, is_array, number, remake, static
from fulmen.core.component import Component, Frozen, Wrapper, map_components, map_parts
from fulmen.core.leaves import leaves
from fulmen.core.verbs import after_update, as_batch, augment, init, validate
from fulmen.dispatching.registry import dispatch


class EMA(Wrapper):
    """A component and an exponential moving average of its parameters and running statistics (Polyak averaging).

    After each step `average ← decay · average + (1 − decay) · component`; the average starts as a copy of the component, and
    arrays that are not floating-point are copied. The component is trained; evaluations use the average. The average is in
    `fm.Frozen`, so it has no gradient and no optimizer state. An `EMA` can be around a system, a model in it, or a player of a
    game. Attacks in training are on the component. Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780.

    Args:
        component: a model or a system; a `Population` has the `EMA` inside, `fm.Population(fm.EMA(system, decay), n)`.
        decay: the weight of the previous average at each step, in [0, 1]: a hyperparameter.
        warmup: the decay of step t (from 0) is min(decay, t / (t + warmup)), so that the average forgets the first weights: a
            hyperparameter. With 0 it is `decay`; with 9 it rises to 0.99 in 890 steps.
        average: the average, in `fm.Frozen`; made by `init`.
        evaluate_average: whether evaluations use the average or the component.

    >>> ema = fm.EMA(fm.Classifier(fm.models.MLP(4, 8, 3)), decay=0.9)
    >>> state = fm.setup(ema, (jnp.ones((6, 4)), jnp.arange(6) % 3), optimizer=optax.adam, lr=0.1)
    >>> state, logs = fm.train_step(state, (jnp.ones((6, 4)), jnp.arange(6) % 3))
    >>> averaged = state.system.average.part       # a Classifier
    >>> bool((averaged(jnp.ones((1, 4))) == state.system(jnp.ones((1, 4)))).all())
    True
    """

    __example__ = "fm.EMA(system, 0.999)"

    component: Component
    decay: float = hyper(minimum=0, maximum=1, default=0.999)
    average: Frozen | None = None
    evaluate_average: bool = True
    warmup: float = hyper(minimum=0, default=0.0, kw_only=True)

    def decay_at(self, step: Any) -> Any:
        """The weight of the previous average after `step` other steps, which may be traced."""
        step = jnp.asarray(step, jnp.float32)
        rising = step / jnp.maximum(step + self.warmup, 1e-6)
        return jnp.where(jnp.asarray(self.warmup) > 0, jnp.minimum(self.decay, rising), self.decay)

    @property
    def __part__(self) -> Any:
        # Without a mode a call is an evaluation.
        averaged = self.evaluate_average and self.average is not None and not isinstance(self.mode, Train)
        return self.average if averaged else self.component

    def __repr__(self) -> str:
        return briefly(remake(self, {"average": None}))


class Averaged(EMA):
    """A component and the mean of its weights over all steps from `start` on; evaluations use the mean.

    Before `start` the average is the component. The mean of the weights along a run with a constant or cyclic learning rate
    often generalizes better than the last weights: Polyak and Juditsky 1992; stochastic weight averaging, Izmailov et al. 2018,
    arXiv:1803.05407. Running statistics are averaged too. For schedule-free optimizers no wrapper is needed: `evaluate`,
    `predict` and the validation of `fit` use the averaged weights, see `fm.optimizers.evaluation_weights`.

    Args:
        component: as for `EMA`.
        start: the first step that counts.
        average, evaluate_average: as for `EMA`.

    >>> averaged = fm.Averaged(fm.Classifier(fm.models.MLP(4, 8, 3)), start=100)
    >>> state = fm.setup(averaged, (jnp.ones((6, 4)), jnp.arange(6) % 3), optimizer=optax.adam, lr=0.1)
    >>> state, logs = fm.train_step(state, (jnp.ones((6, 4)), jnp.arange(6) % 3))
    """

    __example__ = "fm.Averaged(system, start=1000)"

    start: int = static(minimum=0, default=0, kw_only=True)

    def __init__(self, component: Component, *, start: int = 0, average: Any = None, evaluate_average: bool = True) -> None:
        self.component, self.start = component, start
        self.average, self.evaluate_average = average, evaluate_average
        self.decay = self.warmup = 1.0

    def decay_at(self, step: Any) -> Any:
        return super().decay_at(jnp.maximum(jnp.asarray(step) - self.start, 0))


def trained(component: Any) -> Any:
    """The tree whose evaluations use the trained components and not their averages, for attacks in training."""

    def switch(part: Any, path: str) -> Any:
        part = map_parts(switch, part)
        return remake(part, {"evaluate_average": False}) if isinstance(part, EMA) else part

    return map_components(switch, component)


@dispatch
def init(ema: EMA, key):
    component = init(ema.component, fold_name(key, "component"))
    average = ema.average
    if average is None:  # copies, since an array that is in the state twice cannot be donated
        average = Frozen(jax.tree.map(lambda v: jnp.array(v) if is_array(v) else v, component))
    return remake(ema, {"component": component, "average": average})


@dispatch
def after_update(ema: EMA, batch, mode):
    component = after_update(ema.component, batch, mode.at("component"))
    assert ema.average is not None
    average = remake(ema.average, {"part": _averaged(ema.decay_at(mode.step), ema.average.part, component)})
    return remake(ema, {"component": component, "average": average})


def _averaged(decay: Any, average: Any, component: Any) -> Any:
    new, structure = jax.tree.flatten(component)
    old = structure.flatten_up_to(average)
    for i, leaf in enumerate(leaves(component)):
        if leaf.role in (PARAMETER, BUFFER) and jnp.issubdtype(leaf.value.dtype, jnp.inexact):
            kept = jnp.asarray(decay).astype(jnp.finfo(leaf.value.dtype).dtype)
            new[i] = kept * old[i] + (1 - kept) * leaf.value
    return structure.unflatten(new)


@dispatch
def augment(ema: EMA, batch, mode):
    return augment(ema.component, batch, mode)


@dispatch
def check_setup(ema: EMA, state, raw):
    options = f"start={ema.start}" if isinstance(ema, Averaged) else number(ema.decay)
    refuse_members(ema, f"fm.{type(ema).__name__}(system, {options})", ", whose members would share one average")


@dispatch
def validate(ema: EMA, batch):
    validate(ema.component, as_batch(ema.component, batch))

"""`EMA`: a component with an exponential moving average of its weights."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.vectorized import check_setup, members_of
from fulmen.core import Train, briefly, hyper, number, remake
from fulmen.core.component import Component, Frozen, Wrapper, fold_name, map_components, map_parts
from fulmen.core.leaves import BUFFER, PARAMETER, is_array, leaves
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

    @property
    def __part__(self) -> Any:
        # Without a mode a call is an evaluation.
        averaged = self.evaluate_average and self.average is not None and not isinstance(self.mode, Train)
        return self.average if averaged else self.component

    def __repr__(self) -> str:
        return briefly(remake(self, {"average": None}))


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
    average = remake(ema.average, {"part": _averaged(ema.decay, ema.average.part, component)})
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
    if n := len(members_of(ema.component, ema)):
        raise TypeError(
            f"EMA must not be around a {type(ema.component).__name__}, whose {n} members would share one average; write "
            f"fm.Population(fm.EMA(system, {number(ema.decay)}), {n})."
        )


@dispatch
def validate(ema: EMA, batch):
    validate(ema.component, as_batch(ema.component, batch))

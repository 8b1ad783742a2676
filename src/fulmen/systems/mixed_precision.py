"""`MixedPrecision`: models compute in half precision; `LossScaled`: float16 without underflow."""

from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.vectorized import check_setup, refuse_members
from fulmen.core import PARAMETER, Last, Mergeable, Mode, State, Train, briefly, hyper, remake, static
from fulmen.core.component import Buffer, Component, Wrapper
from fulmen.core.leaves import leaves
from fulmen.core.precision import computing_in
from fulmen.core.verbs import bind, init, loss, update, validate
from fulmen.dispatching.registry import dispatch
from fulmen.train.step import ignored_step, update_as_part


class MixedPrecision(Wrapper):
    """A system whose models compute in half precision, with parameters, losses and statistics in float32.

    When a model of the system is called, its parameters and inputs are rounded, and its outputs become float32. Everything
    outside the models, such as objectives, penalties and metrics, and statistics inside them, such as those of a `BatchNorm`
    and the mean and variance of a `LayerNorm`, are computed in float32. Gradients, the optimizer and saved states are float32.
    Micikevicius et al. 2018, arXiv:1710.03740.

    Modules of other libraries promote types by their own rules: after a BatchNorm of NNX without `dtype`, for example, they
    compute in float32.

    float16 needs a loss scale, `fm.systems.LossScaled(fm.MixedPrecision(system, jnp.float16))`; bfloat16 has the range of
    float32. In `fm.Adversarial(fm.MixedPrecision(system), attack)` the attack runs in half precision too, in
    `fm.MixedPrecision(fm.Adversarial(system, attack))` in float32.

    Args:
        system: anything that has a loss; a `Population` has the wrapper inside, `fm.Population(fm.MixedPrecision(system), n)`.
        compute: the type in which models compute, `jnp.bfloat16` or `jnp.float16`.

    >>> system = fm.MixedPrecision(fm.Classifier(fm.models.MLP(4, 8, 3)))
    >>> state = fm.setup(system, (jnp.ones((6, 4)), jnp.arange(6) % 3), optimizer=optax.adam, lr=0.1)
    >>> state.system.system.model.layers[0].weight.dtype, fm.forward(state, jnp.ones((6, 4))).dtype
    (dtype('float32'), dtype('float32'))
    """

    __example__ = "fm.MixedPrecision(system)"

    system: Component
    compute: Any = static(default=jnp.bfloat16)


@dispatch
def bind(precise: MixedPrecision, mode):
    bound = bind.invoke(Component, Mode)(precise, mode)
    return remake(bound, {"system": computing_in(jnp.dtype(precise.compute), bound.system)})


@dispatch
def validate(precise: MixedPrecision):
    if precise.compute not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"MixedPrecision.compute must be jnp.bfloat16 or jnp.float16, got {precise.compute!r}.")


class LossScaled(Wrapper):
    """A system whose loss is multiplied by a number before the gradient is computed, and the gradient divided by it.

    Small gradients then do not underflow in float16. A step whose gradients are not finite changes nothing but the scale, which
    is halved, and is not logged; after `period` good steps in sequence the scale is doubled. Gradients, clipping, optimizers
    and the logged loss do not depend on the scale. Micikevicius et al. 2018, arXiv:1710.03740.

    `LossScaled` defines its own training step, so it must be the outermost component (or directly in a `Population`).

    Args:
        system: such as `fm.MixedPrecision(system, jnp.float16)`.
        scale: the number, which steps change: a hyperparameter.
        period: the number of good steps after which the scale is doubled.
        good: the number of good steps since the scale changed, a `Buffer` that `init` makes.

    >>> system = fm.systems.LossScaled(fm.MixedPrecision(fm.Classifier(fm.models.MLP(4, 8, 3)), jnp.float16))
    >>> data = jnp.ones((6, 4)), jnp.arange(6) % 3
    >>> state = fm.setup(system, data, optimizer=optax.adam, lr=0.1)
    >>> state, logs = fm.train_step(state, data)
    >>> float(logs["loss_scale"])
    32768.0
    """

    __example__ = "fm.systems.LossScaled(fm.MixedPrecision(system, jnp.float16))"

    system: Component
    scale: float = hyper(above=0, default=2.0**15)
    period: int = static(minimum=1, default=2000)
    good: Buffer | None = None

    def __repr__(self) -> str:
        return briefly(remake(self, {"good": None}))


@dispatch
def init(scaled: LossScaled, key):
    return remake(init.invoke(Component, object)(scaled, key), {"good": Buffer(jnp.float32(0))})


@dispatch
def check_setup(wrapper: MixedPrecision | LossScaled, state, raw):
    refuse_members(wrapper, f"{type(wrapper).__name__}(system)")


def _differentiated(scaled: LossScaled) -> bool:
    """Whether a training step is differentiated, in which buffers have slots."""
    return scaled.good is not None and scaled.good.slot is not None


@dispatch
def bind(scaled: LossScaled, mode: Train):
    if not _differentiated(scaled) or scaled.mode is not None:
        return bind.invoke(Component, Mode)(scaled, mode)
    flat, structure = jax.tree.flatten(scaled.system, is_leaf=lambda v: isinstance(v, Buffer))
    roles, known = [], iter(leaves(scaled.system))
    for item in flat:
        roles.append([next(known).role for _ in jax.tree.leaves(item)])
    trained = [i for i, item in enumerate(flat) if roles[i] == [PARAMETER] and not isinstance(item, Buffer)]
    assert scaled.good is not None
    for i, value in zip(
        trained, _unscale([flat[i] for i in trained], jnp.asarray(scaled.scale), scaled.good.slot), strict=True
    ):
        flat[i] = value
    return bind.invoke(Component, Mode)(remake(scaled, {"system": structure.unflatten(flat)}), mode)


@loss.around(LossScaled)
def _scaled_loss(call, scaled, batch):
    value = call(scaled, batch)
    return _scale(value, jnp.asarray(scaled.scale)) if _differentiated(scaled) else value


@jax.custom_vjp
def _scale(value: Any, scale: Any) -> Any:
    """The value; its gradient is multiplied by the scale."""
    return value


_scale.defvjp(
    lambda value, scale: (value, scale), lambda scale, slope: (slope * scale.astype(slope.dtype), jnp.zeros_like(scale))
)


@jax.custom_vjp
def _unscale(parameters: Any, scale: Any, slot: Any) -> Any:
    """The parameters; their gradients are divided by the scale, and the slot gets whether all are finite."""
    return parameters


def _unscale_backward(scale: Any, slopes: Any) -> Any:
    finite = jnp.stack([jnp.isfinite(slope).all() for slope in slopes]).all()
    divided = [slope / scale.astype(slope.dtype) for slope in slopes]
    return divided, jnp.zeros_like(scale), (finite.astype(jnp.float32), jnp.float32(1))


_unscale.defvjp(lambda parameters, scale, slot: (parameters, scale), _unscale_backward)


@dispatch
def update(scaled: LossScaled, state, batch, mode):
    if not isinstance(scaled, LossScaled):
        raise ignored_step(LossScaled, scaled)
    new, logs = update_as_part(scaled, state, batch, mode)
    was, now = state.system, new.system
    good = now.good.value == 1  # what the backward pass recorded; with microbatches, the mean over them
    kept = [jnp.where(good, a, b) for a, b in zip(new.arrays, state.arrays, strict=True)]
    state = State.of(kept, state.raw_key, state.step, state.structure)
    count = jnp.where(good, was.good.value + 1, 0)
    grow, scale = count >= was.period, was.scale
    changed = {
        "scale": jnp.where(good, jnp.where(grow, scale * 2, scale), scale / 2),
        "good": remake(was.good, {"value": jnp.where(grow, 0, count)}),
    }
    counted = {name: _if(good, figure) for name, figure in logs.items()}
    return state.replace(system=remake(state.system, changed)), {**counted, "loss_scale": Last(jnp.asarray(scale))}


def _if(good: Any, figure: Any) -> Any:
    """The logged value, without weight after a bad step."""
    if not isinstance(figure, Mergeable) or figure.newest:
        return figure
    return jax.tree.map(lambda v: jnp.where(good, v, jnp.zeros_like(v)), figure)

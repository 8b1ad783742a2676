"""Attacks on plain loss functions, without a system."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from fulmen.core import Batch, Component, hyper, inputs, is_array, static
from fulmen.core.verbs import loss, perturb
from fulmen.dispatching.registry import dispatch
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_runs import last_point


class _Function(Component):
    """A loss function with its parameters, as a component to attack."""

    per_example: ClassVar[bool] = True

    function: Callable[..., Any]
    params: Any = hyper()
    fixed: tuple[Any, ...] = static()


class _Arguments(Batch):
    x: jax.Array
    rest: Any = hyper()


@dispatch
def loss(function: _Function, batch: _Arguments):
    structure, fixed = function.fixed
    rest = structure.unflatten([a if f is None else f[0] for a, f in zip(batch.rest, fixed, strict=True)])
    return function.function(function.params, batch.x, *rest)


def adversarial(loss_fn: Callable[..., Any], attack: Attack, *, best: bool = False) -> Callable[..., Any]:
    """The loss function at the attacked input.

    Args:
        loss_fn: `loss_fn(params, x, *rest)`, one number per example, `(n,)`, or one for the batch; `x` is `(n, …)`.
        attack: an `Attack`. It maximises a single number directly, and then `best` compares points of the whole batch.
        best: whether to keep each example's best point, for one more forward pass, rather than the last one.

    Returns:
        `f(params, x, *rest, key=None)`: `loss_fn` at the attacked `x`. No gradient flows through the attack.

    >>> f = fm.attacks.adversarial(lambda w, x: x @ w, fm.FGSM(fm.LinfBall(0.5)))
    >>> print(f(jnp.array([1.0, -2.0]), jnp.zeros((1, 2))))
    [1.5]
    """

    def attacked(params: Any, x: Any, *rest: Any, key: Any = None) -> Any:
        leaves, structure = jax.tree.flatten(rest)
        fixed = tuple(None if is_array(leaf) else (leaf,) for leaf in leaves)
        arrays = [leaf if is_array(leaf) else None for leaf in leaves]
        function = _Function(loss_fn, params, (structure, fixed))
        moved = (perturb if best else last_point)(attack, function, _Arguments(x, arrays), key)
        return loss_fn(params, inputs(moved), *rest)

    return attacked

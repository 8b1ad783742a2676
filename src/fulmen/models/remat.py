"""`Remat`: a part whose intermediate results are computed again for the gradient."""

from collections.abc import Callable
from typing import Any

import jax

from fulmen.core import Component
from fulmen.core.component import Wrapper
from fulmen.core.verbs import forward
from fulmen.dispatching.registry import dispatch


class Remat(Wrapper):
    """A part whose intermediate results are not kept for the gradient, but computed again: less memory, more time.

    Outputs, gradients and random numbers are those of the part without it. For all blocks of a `Stacked`, use its `remat=True`,
    or `Stacked(Remat(block, policy), n)`.

    Args:
        part: the component.
        policy: which intermediate results are kept all the same, such as `jax.checkpoint_policies.dots_saveable`; None keeps none.

    >>> layer = fm.init(fm.models.Remat(fm.models.Dense(4, 2)), jax.random.key(0))
    >>> layer(jnp.ones((3, 4))).shape
    (3, 2)
    """

    part: Component
    policy: Callable[..., Any] | None = None


@dispatch
def forward(remat: Remat, *inputs):
    return jax.checkpoint(lambda *inputs: forward(remat.part, *inputs), policy=remat.policy)(*inputs)

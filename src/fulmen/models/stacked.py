"""`Stacked`: one block n times, each with its own arrays and randomness, as one loop or unrolled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.component import Component, Model
from fulmen.core.fields import static
from fulmen.core.mode import name_hash
from fulmen.core.stacking import each, is_own, join, split, take
from fulmen.core.tree import remake
from fulmen.core.verbs import after_update, bind, forward, init, validate
from fulmen.dispatching.registry import dispatch

__all__ = ["Stacked"]


class Stacked(Model):
    """The same block `n` times, one after another, each with arrays of its own.

    It computes what a list of the same blocks would, with the same keys: block i draws, and drops out, by the path
    `blocks.i`. Every array in `blocks` has a leading axis of size `n`; numbers without axes, such as a dropout's rate,
    are shared by all blocks. `stack[i]` is one block. Further inputs go to every block: `stack(x, mask)`.

    A loop is compiled once, whatever `n` is. But where a training step runs the model twice, for the loss and for metrics,
    XLA makes one of two unrolled stacks, and not of two loops.

    Args:
        block: a description of one block, which gives what it takes: the same shapes and types. Arrays that are in it
            already, each block begins with.
        n: how many.
        unroll: write the blocks out one by one: it compiles for longer, and may run faster.
        remat: keep only the blocks' inputs for the gradient and compute the rest again: less memory, more time.

    >>> stack = fm.init(fm.models.Stacked(fm.models.Dense(8, 8), 3), jax.random.key(0))
    >>> stack.blocks.weight.shape, stack(jnp.ones((5, 8))).shape, stack[0].weight.shape
    ((3, 8, 8), (5, 8), (8, 8))
    """

    leading_axes: ClassVar[int] = 1  # the blocks' axis, which makes no kernel of a bias

    blocks: Component
    n: int = static(minimum=1)
    unroll: bool = False
    remat: bool = False

    def __init__(self, block: Any, n: int, unroll: bool = False, remat: bool = False) -> None:
        spread = lambda v: jnp.broadcast_to(v, (n, *v.shape)) if hasattr(v, "shape") else v
        self.__dict__.update(blocks=jax.tree.map(spread, block), n=n, unroll=unroll, remat=remat, mode=None)

    def __getitem__(self, index: int) -> Any:
        """One block, in the stack's mode."""
        i = range(self.n)[index]
        block = take(self.blocks, i)
        return block if self.mode is None else bind(block, self.mode.at("blocks").at(str(i)))

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.n))


@dispatch
def validate(stack: Stacked):
    for path, leaf in jax.tree_util.tree_flatten_with_path(stack.blocks)[0]:
        if is_own(leaf) and leaf.shape[0] != stack.n:
            raise ValueError(
                f"Stacked.blocks{jax.tree_util.keystr(path)} has the shape {leaf.shape}; a leading axis of size {stack.n} "
                "was expected, one entry for each block."
            )


@dispatch
def init(stack: Stacked, key):
    # The keys that a list called `blocks` would give them.
    names = np.array([name_hash(f"blocks.{i}") for i in range(stack.n)], np.uint32)
    keys = jax.vmap(lambda name: jax.random.fold_in(key, name))(names)
    return remake(stack, {"blocks": each(lambda block, key: (init(block, key), None), stack.blocks, keys)[0]})


@dispatch
def bind(stack: Stacked, mode):
    # The blocks are bound one by one where they run: a mode that lay in them would have to be cut like their arrays.
    return remake(stack, {"mode": mode.over(stack.mode)})


@dispatch
def after_update(stack: Stacked, batch, mode):
    def moved(block: Any, salt: Any) -> tuple[Any, None]:
        return after_update(block, batch, remake(mode, {"salt": salt})), None

    salts = _salts([mode.at(f"blocks.{i}") for i in range(stack.n)])
    return remake(stack, {"blocks": each(moved, stack.blocks, salts)[0]})


@dispatch
def forward(stack: Stacked, x, *inputs):
    mode = stack.mode
    varying, shared, structure = split(stack.blocks)

    def run(x: Any, varying: Any, salt: Any) -> Any:
        block = join(varying, shared, structure)
        if mode is not None:
            block = bind(block, remake(mode, {"salt": salt}))
        y = forward(block, x, *inputs)
        _require_alike(stack, x, y)
        return y

    x = jax.tree.map(jnp.asarray, x)
    salts = None if mode is None else _salts([mode.at("blocks").at(str(i)) for i in range(stack.n)])
    if stack.unroll:
        step = jax.checkpoint(run) if stack.remat else run
        # Split at once: the gradients of n indexings would be n arrays as large as the stack.
        each = [None if v is None else jax.lax.split(v, (1,) * stack.n) for v in varying]
        for i in range(stack.n):
            own = [None if v is None else v[i].squeeze(0) for v in each]
            x = step(x, own, None if salts is None else salts[i])
        return x
    # In a loop XLA cannot merge what is computed again with what it was computed for, so it need not be kept from it.
    step = jax.checkpoint(run, prevent_cse=False) if stack.remat else run
    return jax.lax.scan(lambda x, each: (step(x, *each), None), x, (varying, salts), length=stack.n)[0]


def _salts(modes: list[Any]) -> Any:
    """The salt of each block's mode: `(n,)`."""
    salts = [mode.salt for mode in modes]
    return np.stack(salts) if all(isinstance(s, np.ndarray | np.generic) for s in salts) else jnp.stack(salts)


def _require_alike(stack: Stacked, x: Any, y: Any) -> None:
    before, after = (jax.tree.map(lambda v: f"{v.dtype}{list(v.shape)}", tree) for tree in (x, y))
    if before != after:
        raise ValueError(
            f"Stacked({type(stack.blocks).__name__}, {stack.n}): a block must give what it takes, and of {before} it made "
            f"{after}."
        )

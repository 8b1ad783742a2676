"""`Stacked`: a block n times in sequence, each with its own arrays and randomness, as one loop or unrolled."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import Component, Model, remake, static
from fulmen.core.mode import name_hash
from fulmen.core.stacking import each, is_own, join, split, take
from fulmen.core.verbs import after_update, bind, forward, init, validate
from fulmen.dispatching.registry import dispatch
from fulmen.models.attention import KeyValues


class Stacked(Model):
    """The same block `n` times in sequence, each with separate arrays.

    It equals a list called `blocks` of the same blocks: the keys of block i for `init` and for dropout follow from the path
    `blocks.i`. Every array in `blocks` has a leading axis of size `n`; numbers without axes, such as a dropout's rate,
    are shared by all blocks. `stack[i]` is one block. Further inputs are passed to every block: `stack(x, mask)`.

    The compile time of a loop does not grow with `n`. But where a training step runs the model twice, for the loss and for
    metrics, XLA merges two unrolled stacks into one, and not two loops.

    Args:
        block: one block, whose output has the shapes and types of its input. Every block starts with the arrays it has.
        n: number of blocks.
        unroll: whether to unroll the loop, which takes longer to compile and may run faster.
        remat: whether to keep only the blocks' inputs for the gradient and recompute the rest: less memory, more time.

    >>> stack = fm.init(fm.models.Stacked(fm.models.Dense(8, 8), 3), jax.random.key(0))
    >>> stack.blocks.weight.shape, stack(jnp.ones((5, 8))).shape, stack[0].weight.shape
    ((3, 8, 8), (5, 8), (8, 8))
    """

    leading_axes: ClassVar[int] = 1  # the axis of the blocks does not make a kernel of a bias

    blocks: Component
    n: int = static(minimum=1)
    unroll: bool = False
    remat: bool = False

    def __init__(self, block: Any, n: int, unroll: bool = False, remat: bool = False) -> None:
        repeat = lambda v: jnp.broadcast_to(v, (n, *v.shape)) if hasattr(v, "shape") else v
        self.blocks = jax.tree.map(repeat, block)
        self.n, self.unroll, self.remat = n, unroll, remat

    def __getitem__(self, index: Any) -> Any:
        """One block, in the stack's mode, or for a slice a stack of some."""
        i = range(self.n)[index]
        if isinstance(i, range):
            return remake(self, {"n": len(i), "blocks": take(self.blocks, np.array(i, np.int32))})
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
                f"Stacked.blocks{jax.tree_util.keystr(path)} must have a leading axis of size {stack.n}, one entry per block, "
                f"got shape {leaf.shape}."
            )


@dispatch
def init(stack: Stacked, key):
    # The same keys as for a list called `blocks`.
    names = np.array([name_hash(f"blocks.{i}") for i in range(stack.n)], np.uint32)
    keys = jax.vmap(lambda name: jax.random.fold_in(key, name))(names)
    return remake(stack, {"blocks": each(lambda block, key: (init(block, key), None), stack.blocks, keys)[0]})


@dispatch
def bind(stack: Stacked, mode):
    # `forward` binds each block separately: a mode inside the blocks would have to be split like their arrays.
    return remake(stack, {"mode": mode.over(stack.mode)})


@dispatch
def after_update(stack: Stacked, batch, mode):
    def updated(block: Any, salt: Any) -> tuple[Any, None]:
        return after_update(block, batch, remake(mode, {"salt": salt})), None

    salts = _salts([mode.at(f"blocks.{i}") for i in range(stack.n)])
    return remake(stack, {"blocks": each(updated, stack.blocks, salts)[0]})


@dispatch
def forward(stack: Stacked, x, *inputs):
    mode = stack.mode
    varying, shared, structure = split(stack.blocks)

    def run(x: Any, varying: Any, salt: Any) -> Any:
        block = join(varying, shared, structure)
        if mode is not None:
            block = bind(block, remake(mode, {"salt": salt}))
        y = forward(block, x, *inputs)
        _require_same_shapes(stack, x, y)
        return y

    x = jax.tree.map(jnp.asarray, x)
    salts = None if mode is None else _salts([mode.at("blocks").at(str(i)) for i in range(stack.n)])
    if stack.unroll:
        step = jax.checkpoint(run) if stack.remat else run
        # One split: the gradients of n indexings would be n arrays as large as the stack.
        slices = [None if v is None else jax.lax.split(v, (1,) * stack.n) for v in varying]
        for i in range(stack.n):
            arrays = [None if v is None else v[i].squeeze(0) for v in slices]
            x = step(x, arrays, None if salts is None else salts[i])
        return x
    # Inside a loop XLA cannot merge the recomputation with the original, so preventing that is not needed.
    step = jax.checkpoint(run, prevent_cse=False) if stack.remat else run
    return jax.lax.scan(lambda x, slices: (step(x, *slices), None), x, (varying, salts), length=stack.n)[0]


@dispatch
def forward(stack: Stacked, x, cache: KeyValues):
    """Each block with its part of the cache. It is for generation, so each block is in the stack's mode as it is."""
    varying, shared, structure = split(stack.blocks)

    def run(x: Any, slices: Any) -> Any:
        arrays, keys, values = slices
        block = join(arrays, shared, structure)
        y, own = forward(block, x, KeyValues(keys, values, cache.count))
        return y, (own.keys, own.values)

    x, (keys, values) = jax.lax.scan(run, x, (varying, cache.keys, cache.values))
    return x, KeyValues(keys, values, cache.count + x.shape[1])


def _salts(modes: list[Any]) -> Any:
    """The salt of each block's mode: `(n,)`."""
    salts = [mode.salt for mode in modes]
    return np.stack(salts) if all(isinstance(s, np.ndarray | np.generic) for s in salts) else jnp.stack(salts)


def _require_same_shapes(stack: Stacked, x: Any, y: Any) -> None:
    before, after = (jax.tree.map(lambda v: f"{v.dtype}{list(v.shape)}", tree) for tree in (x, y))
    if jax.tree.flatten(before) != jax.tree.flatten(after):  # a `Tree` equals only itself
        raise ValueError(
            f"Stacked({type(stack.blocks).__name__}, {stack.n}): a block's output must have the shapes and types of its input, "
            f"{before}, got {after}."
        )

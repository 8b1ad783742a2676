"""How an attack that goes by steps is run: from the host or in one program, until the end or until it has succeeded."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.structure import Structure, keep, pack, per_structure
from fulmen.core.tree import Tree, remake
from fulmen.core.verbs import advance, begin, finish
from fulmen.robust.attacks.problem import Problem, Seen

__all__ = ["Walk", "bucket", "is_traced", "packed", "walk"]

UNROLL = 10
"""Up to so many steps a program that is being traced gets written out; convolutions are slow in loops on the CPU."""

LOOK = 4
"""After how many steps it is seen which examples are done, which means waiting for the device; after many, more seldom."""

MANY = 100
"""From so many steps on, one call takes up to four: of a small model they take 15 to 30 % less time, and half again as long to
compile."""

SMALLEST = 16
"""The smallest batch that examples are gathered into; below it a pass costs hardly less."""


class Walk(Tree):
    """Where the attacks on the examples of a batch stand. The first axis of every array is that of the examples.

    A subclass adds what its attack remembers.

    Attributes:
        x: the points, of the structure that `inputs` gives.
        best: the best points so far, or None where the last one is wanted. Where an attack stops when it has succeeded, the
            first point at which it did.
        value: `(n,)`, what the attack makes large, there.
        succeeded: `(n,)`, whether the attack has; None where nobody asks.
        first: `(n,)`, after how many steps it had, or −1.
    """

    x: Any
    best: Any = None
    value: Any = None
    succeeded: Any = None
    first: Any = None

    @property
    def done(self) -> Any:
        """`(n,)`, which examples need no more steps, or None where all take all of them."""
        return self.succeeded

    def keep(self, x: Any, seen: Seen, step: Any) -> Any:
        """The walk with the better one of its best points and some others, each example by itself."""
        if self.value is None:
            return self
        better, changes = seen.value > self.value, {}
        if self.succeeded is not None:
            new = seen.succeeded & ~self.succeeded
            better = new | (better & ~self.succeeded)
            changes = {
                "succeeded": self.succeeded | new,
                "first": jnp.where(new, jnp.asarray(step, jnp.int32), self.first),
            }
        best = jax.tree.map(lambda new, old: jnp.where(along(better, new), new, old), x, self.best)
        return remake(self, {**changes, "best": best, "value": jnp.where(better, seen.value, self.value)})


def along(flags: jax.Array, values: jax.Array) -> jax.Array:
    """`(n,)` in the shape that goes with `(n, …)`."""
    return flags.reshape(-1, *[1] * (values.ndim - 1))


def standing(problem: Problem, x: Any) -> dict[str, Any]:
    """The fields of a `Walk` that begins at some points, as far as the problem asks for them."""
    n = len(problem.batch)
    fields: dict[str, Any] = {"x": x}
    if problem.best or problem.stop:
        fields |= {"best": x, "value": jnp.full(n, -jnp.inf, jnp.result_type(float))}
    if problem.stop:
        fields |= {"succeeded": jnp.zeros(n, bool), "first": jnp.full(n, -1, jnp.int32)}
    return fields


def walk(problem: Problem) -> Walk:
    """All the steps of an attack. `best`, or else `x`, of what it returns is what the attack has found."""
    return _in_one_program(problem) if is_traced(problem) else _from_the_host(problem)


def is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _in_one_program(problem: Problem) -> Walk:
    problem = problem.aimed()
    attack = problem.attack
    walk, steps = begin(attack, problem), attack.length
    go = lambda step, walk: advance(attack, problem, walk, step)
    if steps <= UNROLL:
        for step in range(steps):
            walk = go(step, walk)
    else:
        walk = jax.lax.fori_loop(0, steps, go, walk)
    return finish(attack, problem, walk)


def packed(problem: Problem) -> tuple[Structure, list[Any]]:
    """A problem's structure and arrays; its programs are kept as long as those of its system."""
    leaves, structure = pack(problem)
    owner = pack(problem.system)[1]
    keep(structure, owner)
    keep(owner, problem.system)
    return structure, leaves


def _from_the_host(problem: Problem) -> Walk:
    """Compiled steps: on the CPU, where loops are slow inside a program, one or a few at a call, and many elsewhere."""
    steps = problem.attack.length
    problem = remake(problem, {"attack": problem.attack.stepped, "steps": np.int32(steps)})
    aimed, walk = _begin(*packed(problem))
    problem = remake(problem, aimed)
    structure, leaves = packed(problem)
    size, rows, found = len(problem.batch), np.arange(len(problem.batch)), None
    (stride, written), looked = _stride(steps, walk.done is not None), 0
    for step in range(0, steps, stride):
        if walk.done is not None and step - looked >= max(LOOK, step // 10):
            looked = step
            left = np.flatnonzero(~np.asarray(walk.done)[: len(rows)])
            if not left.size:
                break
            if bucket(left.size, size) < size:
                found = _put(_results(walk), rows, found)
                size, rows = bucket(left.size, size), rows[left]
                some = np.resize(left, size)  # what is left over in the bucket repeats others
                problem, walk = examples(problem, some), jax.tree.map(lambda v, some=some: v[some], walk)
                structure, leaves = packed(problem)
        walk = _advance(structure, leaves, walk, np.int32(step), np.int32(min(step + stride, steps)), written)
    walk = _results(_finish(structure, leaves, walk))
    return walk if found is None else _put(walk, rows, found)


def _stride(steps: int, stops: bool) -> tuple[int, int]:
    """How many steps one call takes, and how many of them are written out; 0 for a loop."""
    if jax.default_backend() != "cpu":
        return LOOK if stops else steps, 0
    stride = max(n for n in range(1, LOOK + 1) if steps % n == 0) if steps >= MANY else 1
    return stride, stride


def bucket(n: int, size: int) -> int:
    """The size of the batch that `n` of `size` examples are gathered into: few sizes, so that few programs are compiled."""
    while size > SMALLEST and n <= size // 2:
        size //= 2
    return size


def gathered(n: int, most: int) -> int:
    """The size of the batch that an attack on `n` examples begins with: at most an eighth more, or `SMALLEST`."""
    unit = max(1 << max(n.bit_length() - 4, 0), SMALLEST // 2)
    return min(max(-(-n // unit) * unit, SMALLEST), most)


def examples(problem: Problem, rows: Any) -> Problem:
    """The problem with some of its examples."""
    return remake(problem, jax.tree.map(lambda v: v[rows], _of_examples(problem)))


def _of_examples(problem: Problem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("batch", "target", "truth")}


def _results(walk: Walk) -> Walk:
    return Walk(walk.x, walk.best, walk.value, walk.succeeded, walk.first)


def _put(some: Walk, rows: Any, whole: Walk | None) -> Walk:
    """What came out for some rows, put where it belongs; what is left over at the end is not looked at."""
    if whole is None:
        return jax.tree.map(np.array, some)
    for old, new in zip(jax.tree.leaves(whole), jax.tree.leaves(some), strict=True):
        old[rows] = np.asarray(new)[: len(rows)]
    return whole


@per_structure()
def _begin(structure: Structure, leaves: list[Any]) -> tuple[dict[str, Any], Walk]:
    problem = structure.unpack(leaves).aimed()
    return _of_examples(problem), begin(problem.attack, problem)


@per_structure(static_argnums=4)
def _advance(structure: Structure, leaves: list[Any], walk: Walk, first: Any, last: Any, written: int) -> Walk:
    problem = structure.unpack(leaves)
    go = lambda step, walk: advance(problem.attack, problem, walk, step)
    if not written:
        return jax.lax.fori_loop(first, last, go, walk)
    for number in range(written):
        walk = go(first + number, walk)
    return walk


@per_structure()
def _finish(structure: Structure, leaves: list[Any], walk: Walk) -> Walk:
    problem = structure.unpack(leaves)
    return finish(problem.attack, problem, walk)


@per_structure()
def look_program(structure: Structure, leaves: list[Any], x: Any) -> Seen:
    """What a pass tells of some points, of a packed problem."""
    return structure.unpack(leaves).aimed().look(x)

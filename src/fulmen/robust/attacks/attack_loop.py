"""The loop of an iterative attack: compiled step by step, or as one traced program; it ends early on success."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core import Structure, Tree, keep, pack, per_structure, remake, short
from fulmen.core.marks import keeps_points, keeps_state
from fulmen.core.verbs import advance, begin, finish, for_examples
from fulmen.robust.attacks.problem import Problem, Seen

UNROLL = 10
"""A traced program unrolls at most this many steps; gradients of convolutions are slow in loops on the CPU."""

CHECK_EVERY = 4
"""Steps between two checks of which examples are done. A check waits for the device, so long attacks check less often."""

MANY_STEPS = 1000
"""From this many steps on, one call takes up to `CHECK_EVERY` steps: a small model needs 15 to 30 % less time, but compiling takes
two to three times as long, which a hundred steps do not make up for."""

LONG = 40
"""From this many steps on, one more step evaluates the last points where it can: a program less, for 2 % of the time at most."""

SMALLEST = 16
"""The smallest batch that examples are gathered into; a pass over a smaller one costs hardly less."""


class AttackState(Tree):
    """The state of an attack on a batch. The first axis of every array is that of the examples.

    A subclass adds what its attack remembers.

    Attributes:
        x: the current points, in the structure that `inputs` returns.
        best: the best points so far, or None if only the last ones are needed. Where the attack stops on success, the first
            successful point.
        value: `(n,)`, the maximised value at the best points.
        succeeded: `(n,)`, whether the attack has succeeded, or None if that is not needed.
        first: `(n,)`, the number of steps until the first success, or −1.
    """

    x: Any
    best: Any = None
    value: Any = None
    succeeded: Any = None
    first: Any = None

    @property
    def last(self) -> Any:
        """The points that an attack returns if `best` is None."""
        return self.x

    @property
    def done(self) -> Any:
        """`(n,)`, which examples need no more steps, or None if all examples take all steps."""
        return self.succeeded

    def keep(self, x: Any, seen: Seen, step: Any) -> Any:
        """The state whose best points include `x` for the examples that are better there."""
        if self.value is None:
            return self
        better, changes = seen.value > self.value, {}
        if self.succeeded is not None:
            new = seen.succeeded & ~self.succeeded
            better = new | (better & ~self.succeeded)
            first = jnp.where(new, jnp.asarray(step, jnp.int32), self.first)
            changes = {"succeeded": self.succeeded | new, "first": first}
        changes |= {"best": select(better, x, self.best), "value": jnp.where(better, seen.value, self.value)}
        return remake(self, changes)


def along(flags: jax.Array, values: jax.Array) -> jax.Array:
    """`(n,)` reshaped to broadcast with `(n, …)`."""
    return flags.reshape(-1, *[1] * (values.ndim - 1))


def select(flags: jax.Array, new: Any, old: Any) -> Any:
    """Per example, the arrays of `new` where `flags`, `(n,)`, is true, otherwise those of `old`."""
    return jax.tree.map(lambda new, old: jnp.where(along(flags, old), new, old), new, old)


def initial_fields(problem: Problem, x: Any) -> dict[str, Any]:
    """The fields of an `AttackState` that starts at `x`; those that the problem does not need are left out."""
    n = len(problem.batch)
    fields: dict[str, Any] = {"x": x}
    if problem.best or problem.stop:
        fields |= {"best": x, "value": jnp.full(n, -jnp.inf, jnp.result_type(float))}
    if problem.stop:
        fields |= {"succeeded": jnp.zeros(n, bool), "first": jnp.full(n, -1, jnp.int32)}
    return fields


def run_attack(problem: Problem) -> AttackState:
    """Run all steps of an attack. The result is in `best` of the returned state, or in `x` if `best` is None."""
    problem = problem.widened()
    state = _run_traced(problem.with_targets()) if is_traced(problem) else _run_compiled(problem)
    if problem.types is None:
        return state
    return remake(
        state, {"x": problem.narrowed(state.x), "best": None if state.best is None else problem.narrowed(state.best)}
    )


def _run_traced(problem: Problem) -> AttackState:
    state, steps = begin_checked(problem), problem.attack.length
    state = _take_steps(problem, state, 0, steps, steps if steps <= UNROLL else 0)
    return _results(finish(problem.attack, problem, state))


def begin_checked(problem: Problem) -> AttackState:
    """`begin`; raises a TypeError unless it returns an `AttackState`."""
    state, name = begin(problem.attack, problem), type(problem.attack).__name__
    if not isinstance(state, AttackState):
        raise TypeError(
            f"begin(attack: {name}, problem) must return an AttackState, got {short(state)}. Write "
            "`return fm.attacks.AttackState(**fm.attacks.initial_fields(problem, problem.origin))`, or a subclass with more fields."
        )
    return state


def advance_checked(problem: Problem, state: AttackState, step: Any) -> AttackState:
    """`advance`; raises a TypeError unless it returns a state of the same structure, shapes and types."""
    new, name = advance(problem.attack, problem, state, step), type(problem.attack).__name__
    if jax.tree.structure(new) != jax.tree.structure(state):
        raise TypeError(
            f"advance(attack: {name}, problem, state, step) must return a state of the structure of the previous one, "
            f"{type(state).__name__}, got {short(new)}. Write `return fm.replace(state, x=…)`."
        )
    for (path, old), after in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(new), strict=True):
        if jnp.shape(after) != jnp.shape(old) or jnp.result_type(after) != jnp.result_type(old):
            raise TypeError(
                f"advance(attack: {name}, problem, state, step) must keep the shape and type of "
                f"`state{jax.tree_util.keystr(path)}`, {short(old)}, got {short(after)}."
            )
    return new


def is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def packed(problem: Problem) -> tuple[Structure, list[Any]]:
    """A problem's structure and arrays; its programs are kept as long as those of its system."""
    leaves, structure = pack(problem)
    owner = pack(problem.system)[1]
    keep(structure, owner)
    keep(owner, problem.system)
    return structure, leaves


def _run_compiled(problem: Problem) -> AttackState:
    """Run compiled steps: one or a few per call on the CPU, where gradients of convolutions are slow in loops, otherwise many."""
    steps = problem.attack.length
    if steps == 1:
        return _only_step(*packed(problem))
    problem = remake(problem, {"attack": problem.attack.stepped, "steps": np.int32(steps)})
    targeted, state = _begin(*packed(problem))
    problem = remake(problem, targeted)
    structure, leaves = packed(problem)
    size, rows, found = len(problem.batch), np.arange(len(problem.batch)), None
    unrolled, step, checked = _unrolled(problem.attack, steps), 0, 0
    while step < steps:
        wait = max(CHECK_EVERY, step // 10)
        if state.done is not None and step and (not unrolled or step - checked >= wait):
            checked = step
            left = np.flatnonzero(~np.asarray(state.done)[: len(rows)])
            if not left.size:
                break
            if bucket(left.size, size) < size:
                done = _finished(structure, leaves, state) if problem.attack.finishes_all else state
                found = _scatter(_results(done), rows, found)
                size, rows = bucket(left.size, size), rows[left]
                some = np.resize(left, size)  # repeats examples to fill the bucket
                state, problem = _take_rows(state, some), take_examples(problem, some)
                structure, leaves = packed(problem)
        last = min(step + (unrolled or (steps if state.done is None else wait)), steps)
        state = _advance(structure, leaves, state, np.int32(step), np.int32(last), unrolled)
        step = last
    if steps >= LONG and unrolled <= 1 and state.best is not None and _keeps_points(problem, state):
        state = _advance(structure, leaves, state, np.int32(steps), np.int32(steps + 1), unrolled)
    else:
        state = _finished(structure, leaves, state)
    state = _results(state)
    return state if found is None else _scatter(state, rows, found)


def _keeps_points(problem: Problem, state: AttackState) -> bool:
    attack = problem.attack
    methods = advance.method(attack, problem, state, 0), finish.method(attack, problem, state)
    return all(map(keeps_points.on, methods))


def _unrolled(attack: Any, steps: int) -> int:
    """The number of steps per call, unrolled; 0 for a loop until the next check."""
    if jax.default_backend() != "cpu" or not attack.uses_gradients:
        return 0
    return max(n for n in range(1, CHECK_EVERY + 1) if steps % n == 0) if steps >= MANY_STEPS else 1


def bucket(n: int, size: int) -> int:
    """The size of the batch that `n` of `size` examples are gathered into: few sizes, so that few programs are compiled."""
    while size > SMALLEST and n <= size // 2:
        size //= 2
    return size


def padded_size(n: int, most: int) -> int:
    """The size of the batch in which an attack on `n` examples starts: an eighth more at most, or a multiple of `SMALLEST`."""
    unit = max(1 << max(n.bit_length() - 4, 0), SMALLEST)
    return min(-(-n // unit) * unit, most)


def take_examples(problem: Problem, rows: Any) -> Problem:
    """The problem restricted to some of its examples."""
    attack = for_examples(problem.attack, rows, len(problem.batch))
    return remake(problem, {"attack": attack, **_take_rows(_per_example(problem), rows)})


def _take_rows(tree: Any, rows: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(_rows_of(leaves, rows))


@jax.jit
def _rows_of(leaves: list[Any], rows: Any) -> list[Any]:
    """One program for all arrays; of a list, since JAX would keep the structure of the tree alive."""
    return [v[rows] for v in leaves]


def _per_example(problem: Problem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("batch", "target", "true_labels")}


def _results(state: AttackState) -> AttackState:
    return AttackState(state.last, state.best, state.value, state.succeeded, state.first)


def _scatter(some: AttackState, rows: Any, whole: AttackState | None) -> AttackState:
    """Write the results for some rows into those of the whole batch; the repeated examples at the end are dropped."""
    if whole is None:
        return jax.tree.map(np.array, some)
    for old, new in zip(jax.tree.leaves(whole), jax.tree.leaves(some), strict=True):
        old[rows] = np.asarray(new)[: len(rows)]
    return whole


def _take_steps(problem: Problem, state: AttackState, first: Any, last: Any, unrolled: int) -> AttackState:
    """The steps from `first` to before `last`: `unrolled` of them, or a loop if that is 0."""
    one = lambda step, state: advance_checked(problem, state, step)
    if not unrolled:
        return jax.lax.fori_loop(first, last, one, state)
    one = jax.jit(one) if unrolled > 1 else one  # traced and lowered once, inlined by XLA
    for number in range(unrolled):
        state = one(first + number, state)
    return state


@per_structure(seldom=True)
def _begin(structure: Structure, leaves: list[Any]) -> tuple[dict[str, Any], AttackState]:
    problem = structure.unpack(leaves).with_targets()
    return _per_example(problem), begin_checked(problem)


@per_structure(static_argnums=4)
def _advance(
    structure: Structure, leaves: list[Any], state: AttackState, first: Any, last: Any, unrolled: int
) -> AttackState:
    return _take_steps(structure.unpack(leaves), state, first, last, unrolled)


@per_structure()
def _only_step(structure: Structure, leaves: list[Any]) -> AttackState:
    """A whole attack of one step: one program instead of three."""
    return _run_traced(structure.unpack(leaves).with_targets())


def _finished(structure: Structure, leaves: list[Any], state: AttackState) -> AttackState:
    """The state after `finish`, whose program is left out where it would return what it gets."""
    problem = structure.unpack(leaves)
    method = finish.method(problem.attack, problem, state)
    if keeps_state.on(method) or (state.best is None and keeps_points.on(method)):
        return state
    return _finish(structure, leaves, state)


@per_structure()
def _finish(structure: Structure, leaves: list[Any], state: AttackState) -> AttackState:
    problem = structure.unpack(leaves)
    return finish(problem.attack, problem, state)


@per_structure()
def evaluate_program(structure: Structure, leaves: list[Any], x: Any) -> Seen:
    """`Problem.evaluate` of a packed problem, compiled."""
    return structure.unpack(leaves).with_targets().evaluate(x)

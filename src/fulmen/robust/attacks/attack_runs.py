"""`perturb` and `attempt`, an attack on a batch, with restarts; and `adversarial`, on a plain loss function."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fulmen.core import (
    Component,
    Prediction,
    State,
    Structure,
    components,
    hyper,
    is_array,
    keep,
    pack,
    per_structure,
    remake,
    short,
    static,
    still,
)
from fulmen.core.batch import Batch, index, inputs, with_inputs
from fulmen.core.prepared_batch import prepared
from fulmen.core.verbs import as_batch, attempt, loss, perturb, succeeded, validate
from fulmen.dispatching.registry import dispatch
from fulmen.objectives import Objective
from fulmen.robust.attacks.attack import Attack
from fulmen.robust.attacks.attack_loop import (
    AttackState,
    evaluate_program,
    is_traced,
    packed,
    padded_size,
    run_attack,
    select,
    take_examples,
)
from fulmen.robust.attacks.input_transform import with_layout
from fulmen.robust.attacks.problem import Problem
from fulmen.robust.attacks.region import Intersection
from fulmen.robust.attacks.targets import require_one_label


def _prepare_arguments(call, attack, system, batch, key, *, inside=False, checked=False, **options):
    """Replace a state by its system and raw data by a batch, validate, and stop gradients; then call the attack's method."""
    if isinstance(system, State):
        keep(pack(system.system)[1], system.structure)
        system = system.system
    batch = as_batch(system, batch) if checked else prepared(batch, system)
    attack = with_layout(attack, system)
    if key is not None and not is_array(key):
        raise TypeError(f"key must be a random key such as jax.random.key(0), got {key!r}.")
    traced = is_traced((attack, system, batch, key))
    if traced:
        for _, part in components(attack):
            validate(part)
        system, batch = still(system), still(batch)
    elif not checked:
        validate(attack, system, batch)  # first: the system may not accept inputs that are not floating-point
        validate(system, batch)
    if inside and attack.nearest:
        found = with_inputs(batch, attempt(attack, system, batch, key, checked=True).x)
    else:
        found = call(attack, system, batch, key, **options)
    return still(found) if traced else found


def _prepare_and_check(call, attack, system, batch, key, **options):
    """The same, and raise unless the method returns a batch."""

    def checked(attack: Any, system: Any, batch: Any, key: Any, **options: Any) -> Any:
        found = call(attack, system, batch, key, **options)
        if not isinstance(found, type(batch)):
            raise TypeError(
                f"perturb(attack: {type(attack).__name__}, system, batch, key) must return a batch, {type(batch).__name__}, got "
                f"{short(found)}. Write `return fm.replace(batch, x=…)`."
            )
        return found

    return _prepare_arguments(checked, attack, system, batch, key, **options)


perturb.around(Attack)(_prepare_and_check)
attempt.around(Attack)(_prepare_arguments)


def _perturb(attack: Attack, system, batch, key, *, best=True):
    problem = Problem(attack, system, batch, key=key, best=best or attack.restarts > 1)
    found = run_attack(problem)
    for restart in range(1, attack.restarts):
        found = _better(found, run_attack(problem.restarted(restart)))
    return with_inputs(batch, found.x if found.best is None else found.best)


perturb.dispatch(_perturb)  # a call, so that methods can be compared with this function


def last_point(attack: Attack, system: Any, batch: Any, key: Any) -> Any:
    """`perturb` for a training step: without the pass that finds the best point, if the attack's method has that option."""
    method = perturb.method(attack, system, batch, key)
    options = {"best": False} if "best" in inspect.signature(method.function).parameters else {}
    return perturb(attack, system, batch, key, **options)


def _attempt(attack: Attack, system, batch, key):
    problem = Problem(attack, system, with_index(batch), key=key, stop=True)
    return _all_runs(clean_state(problem), problem)


attempt.dispatch(_attempt)


def _all_runs(found: AttackState, problem: Problem) -> AttackState:
    """Update `found` by the runs of an attack, each on the examples on which none has succeeded yet."""
    attack, system, batch, key = problem.attack, problem.system, problem.batch, problem.key
    has_steps = perturb.method(attack, system, batch, key).function is _perturb
    for restart in range(attack.restarts if has_steps else 1):
        found = _on_survivors(found, problem.restarted(restart), _best_points if has_steps else _perturbed_points)
    return found


def after_others(found: AttackState, problem: Problem, ensemble: Attack) -> AttackState:
    """Update `found`, the result of an ensemble's attacks, by one more of them on the examples that are left."""
    attack, system, batch, key = problem.attack, problem.system, problem.batch, problem.key
    if attempt.method(attack, system, batch, key).function is _attempt and _success(attack) == _success(ensemble):
        return _all_runs(found, problem)  # without a second pass over the clean inputs
    return _on_survivors(found, problem, lambda some: attempt(attack, system, some.batch, key, checked=True))


def _success(attack: Attack) -> tuple[Any, ...]:
    """What the success of an attack depends on."""
    unknown: Any = None
    return succeeded.method(attack.target, Prediction(unknown, unknown, unknown), None), attack.samples


def _best_points(problem: Problem) -> AttackState:
    found = run_attack(problem)
    return AttackState(found.best, found.best, found.value, found.succeeded, found.first)


def _perturbed_points(problem: Problem) -> AttackState:
    """The result of an attack with its own method of `perturb`."""
    x = inputs(perturb(problem.attack, problem.system, problem.batch, problem.key, checked=True))
    seen = _evaluated(problem, x)
    return AttackState(x, x, seen.value, seen.succeeded, jnp.where(seen.succeeded, problem.attack.length, -1))


def _evaluated(problem: Problem, x: Any) -> Any:
    return problem.evaluate(x) if is_traced(problem) else evaluate_program(*packed(problem), x)


def with_index(batch: Any) -> Any:
    """The batch with an `index`, so that an example's random draws do not depend on its position in a smaller batch."""
    return batch if getattr(batch, "index", None) is not None else remake(batch, {"index": index(batch)})


class _Unvalued(Objective):
    """0 everywhere, where only success matters."""


@dispatch
def loss(objective: _Unvalued, prediction):
    return jnp.zeros((), jnp.result_type(float))


_JUDGE = Attack(optax.identity(), Intersection(()), objective=_Unvalued())


def clean_state(problem: Problem) -> AttackState:
    """The state before any attack, at the clean inputs."""
    # Only what success depends on is kept of the attack, so that attacks share the program.
    goal = {"target": problem.attack.target, "samples": problem.attack.samples}
    judged = remake(problem, {"attack": remake(_JUDGE, goal)})
    require_one_label(problem.attack.target, problem.batch)
    return _clean_state(judged) if is_traced(problem) else _clean_program(*packed(judged))


def _clean_state(problem: Problem) -> AttackState:
    problem = problem.with_targets()
    x, seen = problem.origin, problem.evaluate(problem.origin)
    succeeded: Any = seen.succeeded
    first = jnp.where(succeeded, 0, -1).astype(jnp.int32)
    return AttackState(x, x, jnp.full_like(seen.value, -jnp.inf), succeeded, first)


@per_structure(seldom=True)
def _clean_program(structure: Structure, leaves: list[Any]) -> AttackState:
    return _clean_state(structure.unpack(leaves))


def _on_survivors(found: AttackState, problem: Problem, run: Any) -> AttackState:
    """Update `found` by `run(problem)` on the examples on which no attack has succeeded yet."""
    if is_traced((found, problem)):
        return _better(found, run(problem))
    left = np.flatnonzero(~np.asarray(found.succeeded))
    if not left.size:
        return found
    rows = np.resize(left, padded_size(left.size, len(problem.batch)))
    new = run(problem if len(left) == len(problem.batch) else take_examples(problem, rows))
    kept = jax.tree.map(np.array, found)  # on the host, where the survivors are chosen: no program for each number of them
    some = jax.tree.map(lambda v: np.asarray(v)[: left.size], new)
    better = some.succeeded | (some.value > kept.value[left])  # none of the old ones has succeeded
    for whole, part in zip(jax.tree.leaves(kept), jax.tree.leaves(some), strict=True):
        whole[left[better]] = part[better]
    return kept


@jax.jit
def _better(old: AttackState, new: AttackState) -> AttackState:
    """The better result of two runs, per example."""
    better = new.value > old.value
    if old.succeeded is not None:
        better = ~old.succeeded & (new.succeeded | better)
    return select(better, new, old)


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

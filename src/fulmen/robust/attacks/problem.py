"""`Problem`: a batch under attack, and what an attack can compute from it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.compose.example_means import per_example, total_loss
from fulmen.core import Eval, System, Tree, bound_mode, fold_name, remake, static
from fulmen.core.batch import index, inputs, unweighted, with_inputs, with_labels
from fulmen.core.verbs import aim, bind, loss, losses, succeeded, toward
from fulmen.robust.attacks.rounding import at_least_32_bits, rounded_toward
from fulmen.robust.attacks.targets import class_labels, required_predictions, single_prediction


class Seen(Tree):
    """The result of one forward pass at some points.

    Attributes:
        value: `(n,)`, the value that the attack maximises.
        succeeded: `(n,)`, whether the attack succeeds at the point, or None if that is not needed.
    """

    value: jax.Array
    succeeded: jax.Array | None = None


class Problem(Tree):
    """A batch of examples, the attacked system, and the attack.

    Attributes:
        attack: the attack.
        system: the system, in `Eval` mode unless it is bound to another.
        batch: the clean examples, with the labels that the attack leads away from.
        target: `(n,)`, the target classes, or None.
        true_labels: the labels that decide success, where the batch's labels were replaced, or None.
        key: a random key, or None.
        steps: the number of steps, where one program serves any number, or None.
        restart: the number of this restart, from 0.
        types: the types of the system's inputs, where the attack's points are in a larger one, or None.
        best: whether each example's best point is needed, rather than the last one.
        stop: whether an example is done as soon as the attack succeeds on it.
    """

    attack: Any
    system: Any
    batch: Any
    target: Any = None
    true_labels: Any = None
    key: Any = None
    steps: Any = None
    restart: Any = 0
    types: tuple[str, ...] | None = static(default=None)
    best: bool = static(default=True)
    stop: bool = static(default=False)

    @property
    def origin(self) -> Any:
        """The clean inputs, in the structure that `inputs` returns."""
        return inputs(self.batch)

    @property
    def image(self) -> jax.Array:
        """The clean input of an attack that works on one array, `(n, …)`; raises if there are several arrays."""
        leaves = jax.tree.leaves(self.origin)
        if len(leaves) != 1:
            raise ValueError(
                f"{type(self.attack).__name__} attacks one array, got a batch with {len(leaves)}. Use an attack that takes "
                "several, fm.FGSM(region) or fm.PGD(region, …), or define a batch type that names the attacked field: "
                "`attackable: ClassVar = ('image',)`."
            )
        return leaves[0]

    def points(self, image: jax.Array) -> Any:
        """One array in the structure that `inputs` returns."""
        return jax.tree.unflatten(jax.tree.structure(self.origin), [image])

    def widened(self) -> Problem:
        """The problem with inputs of 16 bits in float32: small steps and Adam's moments would be lost in their own type."""
        flat, structure = jax.tree.flatten(self.origin)
        types = [jnp.result_type(x) for x in flat]
        wide = [at_least_32_bits(dtype) for dtype in types]
        if types == wide:
            return self
        cast = [jnp.asarray(x).astype(dtype) for x, dtype in zip(flat, wide, strict=True)]
        batch = with_inputs(self.batch, structure.unflatten(cast))
        return remake(self, {"batch": batch, "types": tuple(map(str, types))})

    def narrowed(self, x: Any) -> Any:
        """The points as the system gets them: in the type of its inputs, and in the region if `x` is."""
        if self.types is None:
            return x
        flat, structure = jax.tree.flatten(x)
        origins = jax.tree.leaves(self.origin)
        return structure.unflatten([rounded_toward(*each) for each in zip(flat, origins, self.types, strict=True)])

    @property
    def given(self) -> Any:
        """The clean batch as the system gets it."""
        return self.batch if self.types is None else with_inputs(self.batch, self.narrowed(self.origin))

    def with_targets(self) -> Problem:
        """The problem with its target classes, as `aim` returns them."""
        clean = self.given
        batch, target = aim(self.attack.target, self._bound_system(), clean)
        if batch is clean:
            return remake(self, {"target": target})
        return remake(self, {"batch": with_inputs(batch, self.origin), "target": target, "true_labels": self.batch.y})

    def restarted(self, number: int) -> Problem:
        """The problem of a further run of the attack, with other random draws."""
        key = self.key if number == 0 or self.key is None else jax.random.fold_in(self.key, number)
        return remake(self, {"key": key, "restart": number})

    def keys(self, *numbers: Any) -> jax.Array:
        """`(n,)` random keys, one per example, for some numbers (a step, a restart).

        Raises:
            ValueError: if the problem has no key.
        """
        if self.key is None:
            raise ValueError(f"key: {type(self.attack).__name__} needs a random key, got None. Pass jax.random.key(0).")
        key = functools.reduce(jax.random.fold_in, numbers, self.key)
        return jax.vmap(functools.partial(jax.random.fold_in, key))(index(self.batch))

    def logits(self, image: jax.Array) -> jax.Array:
        """The logits of a single model, `(n, classes)`, at the points `(n, …)`."""
        return single_prediction(
            self.attack, self._bound_system(), with_inputs(self.batch, self.narrowed(self.points(image)))
        ).outputs

    def labels(self) -> jax.Array:
        """The labels that the attack leads away from, `(n,)`."""
        return class_labels(getattr(self.batch, "batch", self.batch))

    def evaluate(self, x: Any, step: Any = 0) -> Seen:
        """One forward pass at some points."""
        return self._averaged(x, step)[1]

    def gradient(self, x: Any, step: Any = 0) -> tuple[Any, Seen]:
        """The gradient of −value with respect to the inputs `x`, 0 where it is not finite, and the forward pass."""

        def descended(x: Any) -> tuple[jax.Array, Seen]:
            total, seen = self._averaged(x, step)
            return -total, seen

        gradient, seen = jax.grad(descended, has_aux=True)(x)
        return jax.tree.map(finite, gradient), seen

    def _bound_system(self, key: Any = None) -> Any:
        """The system in its own mode, or else in `Eval`."""
        if bound_mode(self.system) is not None:
            return self.system
        if key is None and self.key is not None:
            key = fold_name(self.key, "system")
        return bind(self.system, Eval(key))

    def _evaluate(self, system: Any, batch: Any, target: Any, true_labels: Any) -> tuple[jax.Array, Seen]:
        attack = self.attack
        if attack.objective is not None:
            batch = unweighted(batch)
            found = required_predictions(attack, system, batch).values()
            value = lambda p: loss(attack.objective, p) if target is None else toward(attack.objective, p, target)
            total, each = _add_entries([value(p) for p in found], attack.objective, batch)
        elif target is None:
            total, each = _example_losses(system, batch)
        else:
            total, each = jax.tree.map(jnp.negative, _example_losses(system, with_labels(batch, target)))
        if not self.stop:
            return total, Seen(each)
        if true_labels is not None:
            batch = with_labels(batch, true_labels)
        done = [succeeded(attack.target, p, target) for p in required_predictions(attack, system, batch).values()]
        return total, Seen(each, functools.reduce(jnp.logical_and, done))

    def _averaged(self, x: Any, step: Any) -> tuple[jax.Array, Seen]:
        """The total value and the forward pass; of a random system, the mean over `samples` draws for each example."""
        samples, batch = self.attack.samples, with_inputs(self.batch, self.narrowed(x))
        if samples is None:
            return self._evaluate(self._bound_system(), batch, self.target, self.true_labels)

        def one(key: Any, *example: Any) -> Seen:
            draw = lambda i: self._evaluate(self._bound_system(jax.random.fold_in(key, i)), *example)[1]
            return jax.tree.map(lambda v: v[:, 0], jax.vmap(draw)(jnp.arange(samples)))

        alone = jax.tree.map(lambda v: jnp.expand_dims(v, 1), (batch, self.target, self.true_labels))
        seen = jax.vmap(one)(self.keys(step), *alone)
        value = seen.value.mean(1)
        done = None if seen.succeeded is None else 2 * seen.succeeded.sum(1) > samples  # a majority of the draws
        return value.sum(), Seen(value, done)


def finite(gradient: jax.Array) -> jax.Array:
    """The gradient with 0 where it is not finite."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


# The value that an attack maximises


def _example_losses(system: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The loss that an attack maximises.

    Args:
        system: any component with a loss, bound to a mode.
        batch: a batch of `n` examples.

    Returns:
        `(total, each)`: `total` is a number whose gradient at an example's input depends on that example alone; `each`,
        `(n,)`, compares points of one example. For systems with `per_example` they are sums of the entries of `losses`; a
        scalar entry counts once in the total and for every example in `each`. For others, `each` is the loss of each example
        as a batch of one, so that a loss of the whole batch cannot couple the examples.
    """
    batch = unweighted(batch)
    if not per_example(system):
        each = jax.vmap(lambda one: total_loss(system, one))(jax.tree.map(lambda v: v[:, None], batch))
        each = each.astype(jnp.result_type(float))
        return each.sum(), each
    entries = losses(system, batch) if isinstance(system, System) else loss(system, batch)
    return _add_entries(jax.tree.leaves(entries), system, batch)


def _add_entries(entries: list[Any], owner: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The total of some entries, and their sum for each example."""
    n = jax.tree.leaves(inputs(batch))[0].shape[0]
    dtype = jnp.result_type(float)
    total, each = jnp.zeros((), dtype), jnp.zeros(n, dtype)
    for entry in map(jnp.asarray, entries):
        if entry.shape not in ((), (n,)):
            raise ValueError(
                f"An entry of the losses of {type(owner).__name__} must be a number or one per example, ({n},), got shape "
                f"{entry.shape}."
            )
        total, each = total + entry.astype(dtype).sum(), each + jnp.broadcast_to(entry.astype(dtype), (n,))
    return total, each

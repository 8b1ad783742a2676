"""`Problem`: what an attack is up against, and what it may ask of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fulmen.core.batch import index, inputs, unweighted, with_inputs, with_labels
from fulmen.core.component import fold_name
from fulmen.core.fields import static
from fulmen.core.mode import Eval, bound_mode
from fulmen.core.tree import Tree, remake
from fulmen.core.verbs import aim, bind, loss, predictions, succeeded, toward
from fulmen.robust.attacks.example_losses import added, example_losses
from fulmen.robust.attacks.targets import the_prediction

__all__ = ["Problem", "Seen"]


class Seen(Tree):
    """What one pass through the system tells of some points.

    Attributes:
        value: `(n,)`, what the attack makes large.
        succeeded: `(n,)`, where the attack has reached what it is after, or None where nobody asks.
    """

    value: jax.Array
    succeeded: jax.Array | None = None


class Problem(Tree):
    """A batch of examples, the system that they are put to, and the attack.

    Attributes:
        attack: the attack.
        system: the system, in `Eval` mode if it is bound to no other.
        batch: the clean examples, with the labels that the attack leads away from.
        target: `(n,)`, the classes that it leads to, or None.
        truth: the labels by which it has succeeded, where the batch's are others, or None.
        key: a random key, or None.
        steps: how many steps are taken, where the attack was made to serve any number, or None.
        restart: how often the attack has been run before.
        best: whether each example's best point is wanted, and not the last one.
        stop: whether an example is done with as soon as the attack has succeeded on it.
    """

    attack: Any
    system: Any
    batch: Any
    target: Any = None
    truth: Any = None
    key: Any = None
    steps: Any = None
    restart: Any = 0
    best: bool = static(default=True)
    stop: bool = static(default=False)

    @property
    def origin(self) -> Any:
        """The clean inputs, of the structure that `inputs` gives."""
        return inputs(self.batch)

    @property
    def image(self) -> jax.Array:
        """The clean input, for attacks that work on one array; raises where there are several."""
        leaves = jax.tree.leaves(self.origin)
        if len(leaves) != 1:
            raise ValueError(
                f"{type(self.attack).__name__} attacks one array at a time, and the batch has {len(leaves)}. Attacks that follow "
                "gradients take several: fm.FGSM(region), fm.PGD(region, …). To attack one of them alone, give a batch type of your "
                "own that names it: `attackable: ClassVar = ('image',)`."
            )
        return leaves[0]

    def points(self, image: jax.Array) -> Any:
        """One array as the structure that `inputs` gives."""
        return jax.tree.unflatten(jax.tree.structure(self.origin), [image])

    def aimed(self) -> Problem:
        """The problem with its targets found."""
        batch, target = aim(self.attack.target, self._seen(), self.batch)
        truth = self.truth if batch is self.batch else self.batch.y
        return remake(self, {"batch": batch, "target": target, "truth": truth})

    def keys(self, *numbers: Any) -> jax.Array:
        """`(n,)` random keys, each example's own, for some numbers (a step, a restart).

        Raises:
            ValueError: if the problem has no key.
        """
        if self.key is None:
            raise ValueError(
                f"key: {type(self.attack).__name__} draws at random, so it needs a random key, such as jax.random.key(0), "
                "and None came."
            )
        key = functools.reduce(jax.random.fold_in, numbers, self.key)
        return jax.vmap(functools.partial(jax.random.fold_in, key))(index(self.batch))

    def logits(self, x: Any) -> jax.Array:
        """The one model's logits at some points, `(n, classes)`."""
        return the_prediction(self.attack, self._seen(), with_inputs(self.batch, x)).outputs

    def labels(self) -> jax.Array:
        """The labels that the attack leads away from, `(n,)`."""
        y = jnp.asarray(getattr(self.batch, "batch", self.batch).y)
        return y.astype(jnp.int32) if jnp.issubdtype(y.dtype, jnp.integer) else y.argmax(-1).astype(jnp.int32)

    def look(self, x: Any, step: Any = 0) -> Seen:
        """What a forward pass tells of some points."""
        return self._expected(self._look, x, step)[1]

    def slopes(self, x: Any, step: Any = 0) -> tuple[Any, Seen]:
        """The gradient of −value at some points, what is not finite in it as 0, and what the pass tells of them.

        It is with respect to the inputs alone.
        """

        def descended(x: Any) -> tuple[jax.Array, Seen]:
            total, seen = self._expected(self._look, x, step)
            return -total, seen

        slopes, seen = jax.grad(descended, has_aux=True)(x)
        return jax.tree.map(lambda v: jnp.where(jnp.isfinite(v), v, 0), slopes), seen

    def _seen(self, key: Any = None) -> Any:
        """The system in the mode that the attack sees it in."""
        if bound_mode(self.system) is not None:
            return self.system
        if key is None and self.key is not None:
            key = fold_name(self.key, "system")
        return bind(self.system, Eval(key))

    def _look(self, system: Any, batch: Any, target: Any, truth: Any) -> tuple[jax.Array, Seen]:
        attack = self.attack
        if attack.objective is not None:
            batch = unweighted(batch)
            found = predictions(system, batch).values()
            value = lambda p: loss(attack.objective, p) if target is None else toward(attack.objective, p, target)
            total, each = added([value(p) for p in found], attack.objective, batch)
        elif target is None:
            total, each = example_losses(system, batch)
        else:
            total, each = jax.tree.map(jnp.negative, example_losses(system, with_labels(batch, target)))
        if not self.stop:
            return total, Seen(each)
        if truth is not None:
            batch = with_labels(batch, truth)
        done = [succeeded(attack.target, p, target) for p in predictions(system, batch).values()]
        return total, Seen(each, functools.reduce(jnp.logical_and, done))

    def _expected(self, function: Callable[..., tuple[jax.Array, Seen]], x: Any, step: Any) -> tuple[jax.Array, Seen]:
        """What is seen; of a system that draws, the mean over `samples` draws, which are each example's own."""
        samples, batch = self.attack.samples, with_inputs(self.batch, x)
        if samples is None:
            return function(self._seen(), batch, self.target, self.truth)

        def one(key: Any, *example: Any) -> Seen:
            draw = lambda i: function(self._seen(jax.random.fold_in(key, i)), *example)[1]
            return jax.tree.map(lambda v: v[:, 0], jax.vmap(draw)(jnp.arange(samples)))

        alone = jax.tree.map(lambda v: jnp.expand_dims(v, 1), (batch, self.target, self.truth))
        seen = jax.vmap(one)(self.keys(step), *alone)
        value = seen.value.mean(1)
        done = None if seen.succeeded is None else 2 * seen.succeeded.sum(1) > samples  # most of the draws
        return value.sum(), Seen(value, done)

"""What a robustness evaluation does with a system: passes through it, and attacks on some of its examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.vectorized import members_of
from fulmen.core.batch import inputs, with_inputs
from fulmen.core.component import fold_name
from fulmen.core.mode import Eval, bound_mode
from fulmen.core.prediction import Prediction, check_classes
from fulmen.core.structure import Structure, pack, per_structure
from fulmen.core.tree import remake, short
from fulmen.core.verbs import as_batch, attempt, bind, perturb, predictions
from fulmen.robust.attacks.attack_loop import bucket, packed
from fulmen.robust.attacks.problem import Problem

__all__ = ["Evaluation"]


class Evaluation:
    """A system, its data and the attacks, and what may be asked of them.

    Attributes:
        system: the component, which is seen in `Eval` mode unless it is bound to another.
        data: its data, raw.
        attacks: the attacks.
        ball: the ball that all of them are in, or None.
        key: the random key; each example draws by its `index`, or else its place in the data.
        batch_size: how many examples go through at once.
        sample: on how many examples signs look that need attacks of their own.
        labels: `(n,)`, the classes.
        outputs: `(n, classes)`, of the clean inputs.
    """

    attacks: list[Any]
    ball: Any
    sample: int
    outputs: np.ndarray

    def __init__(self, system: Any, data: Any, key: Any, batch_size: int | None) -> None:
        self.system, self.data, self.key = system, data, key
        whole = as_batch(system, data)
        self.n, self.classes = len(whole), require_classes(system, whole, key)
        y = np.asarray(whole.y)
        self.labels = (y if y.ndim == 1 else y.argmax(1)).astype(np.int32)
        size = min(batch_size or 256, self.n)
        self.batch_size = -(-self.n // -(-self.n // size))  # batches of one size, so that hardly a row is padding
        self._leaves, self._structure = pack(system)
        self.outputs = np.zeros((0, self.classes))

    def pieces(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Some examples in batches."""
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def batch(self, rows: np.ndarray) -> Any:
        """Some examples, which draw by their `index`, or places in the data; what is left over of the batch repeats others."""
        rows = np.resize(rows, bucket(len(rows), self.batch_size))
        batch = as_batch(self.system, jax.tree.map(lambda v: v[rows], self.data))
        drawn_by = rows.astype(np.int32) if batch.index is None else batch.index
        return remake(batch, {"index": drawn_by, "weight": None})

    def look(self, rows: np.ndarray, x: Any = None, draw: int = 0) -> np.ndarray:
        """The outputs for some examples, `(rows, classes)`, as they are or at other inputs.

        Args:
            rows: which examples.
            x: their other inputs, or None.
            draw: which random numbers a system that draws gets.
        """
        found = []
        for piece in self.pieces(np.arange(len(rows))):
            batch = self.batch(rows[piece])
            if x is not None:
                some = np.resize(piece, len(batch))
                batch = with_inputs(batch, jax.tree.map(lambda v, some=some: v[some], x))
            key = jax.random.fold_in(fold_name(self.key, "evaluate"), draw)
            found.append(np.asarray(_outputs(self._structure, self._leaves, batch, key))[: len(piece)])
        return np.concatenate(found) if found else np.zeros((0, self.classes))

    def attempt(self, attack: Any, rows: np.ndarray, key: Any) -> Any:
        """An `AttackState` with how far an attack gets with some examples, `(rows, …)`; it has succeeded where the class is wrong."""
        found = []
        for piece in self.pieces(rows):
            batch = self.batch(piece)
            walk = attempt(attack, self.system, batch, key, checked=True)
            found.append(jax.tree.map(lambda v, n=len(piece): np.asarray(v)[:n], walk))
        walk = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        if attack.target.names_class:  # it has led to a class, which may be the right one
            wrong = ~is_right(self.look(rows, walk.x), self.labels[rows])
            walk = remake(walk, {"succeeded": walk.succeeded & wrong, "first": np.where(wrong, walk.first, -1)})
        return walk

    def broken(self, attacks: list[Any], rows: np.ndarray, name: str) -> np.ndarray:
        """Which of some examples any of some attacks breaks, `(rows,)`."""
        broken = np.zeros(len(rows), bool)
        for number, attack in enumerate(attacks):
            left = np.flatnonzero(~broken)
            if left.size:
                key = jax.random.fold_in(fold_name(self.key, name), number)
                broken[left] = self.attempt(attack, rows[left], key).succeeded
        return broken

    def last_points(self, attack: Any, rows: np.ndarray, name: str) -> Any:
        """Where an attack ends, with no look at what the system says."""
        key, found = fold_name(self.key, name), []
        for piece in self.pieces(rows):
            x = inputs(perturb(attack, self.system, self.batch(piece), key, best=False, checked=True))
            found.append(jax.tree.map(lambda v, n=len(piece): np.asarray(v)[:n], x))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def slopes(self, rows: np.ndarray) -> Any:
        """The gradients of what the first attack makes large, at the clean inputs, with all that is not finite in them."""
        problem = Problem(self.attacks[0], self.system, self.batch(rows), key=fold_name(self.key, "slopes"))
        return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], _slopes(*packed(problem)))

    def inputs(self, rows: np.ndarray) -> Any:
        """The clean inputs of some examples."""
        return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], inputs(self.batch(rows)))


def seen(system: Any, key: Any) -> Any:
    """The system as an evaluation sees it."""
    return bind(system, Eval(key)) if bound_mode(system) is None else system


@per_structure()
def _outputs(structure: Structure, leaves: list[Any], batch: Any, key: Any) -> jax.Array:
    (prediction,) = predictions(seen(structure.unpack(leaves), key), batch).values()
    return prediction.outputs


@per_structure()
def _slopes(structure: Structure, leaves: list[Any]) -> Any:
    problem = structure.unpack(leaves).with_targets()
    return jax.grad(lambda x: problem.evaluate(x).value.sum())(problem.origin)


def is_right(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where the label is the only highest class, `(n,)`: ties and NaN are wrong, as they are to `Accuracy`."""
    own = np.take_along_axis(outputs, labels[:, None], 1)
    return (outputs >= own).sum(1) == 1


def margins(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far the label's logit is above the others, `(n,)`."""
    own = np.take_along_axis(outputs, labels[:, None], 1)[:, 0]
    others = np.where(np.arange(outputs.shape[1])[None] == labels[:, None], -np.inf, outputs)
    return own - others.max(1)


def norms(offsets: Any) -> dict[str, np.ndarray]:
    """The norms of each example's arrays taken together, `(n,)` each."""
    parts = [np.asarray(v, np.float64) for v in jax.tree.leaves(offsets)]
    flat = np.abs(np.concatenate([v.reshape(len(v), -1) for v in parts], 1))
    return {"linf": flat.max(1, initial=0), "l2": np.sqrt((flat**2).sum(1)), "l1": flat.sum(1)}


def require_classes(system: Any, batch: Any, key: Any) -> int:
    """How many classes one model's outputs have; raises for systems, labels and outputs that are none of classes."""
    found = jax.eval_shape(lambda one: predictions(seen(system, key), one), batch[:1])
    name = type(system).__name__
    if len(found) != 1:
        paths = ", ".join(map(repr, found)) or "none"
        example = f"state.system.{next(iter(found), '').replace('/', '.') or 'part'}"
        if members_of(system, system):
            example = "fm.members(state)[0]"
        raise ValueError(
            f"robustness looks at one classifier, and {name} has {len(found)} predictions ({paths}). Give it one of the "
            f"parts, such as {example}."
        )
    (outputs,) = (prediction.outputs for prediction in found.values())
    y = getattr(batch, "y", None)
    if y is None:
        raise ValueError("robustness counts wrong classes, and the data has no labels y. Give pairs (x, y).")
    shape: Any = getattr(outputs, "shape", ())
    labels = jnp.issubdtype(y.dtype, jnp.integer) and y.shape == (len(batch),)
    fits = len(shape) == 2 and shape[1] > 1 and (labels or y.shape == (len(batch), shape[1]))
    if not fits or not (labels or _are_probabilities(y)):
        raise ValueError(
            f"robustness counts wrong classes: logits (n, classes) and integer labels (n,) were expected, and {name} gives "
            f"{short(outputs)} for one example, and y is {short(y)}. What an attack does to the loss of a regressor is in "
            "fm.evaluate(state, data, attack=…)."
        )
    like: Any = jax.ShapeDtypeStruct((len(batch), shape[1]), outputs.dtype)
    check_classes(Prediction(system, like, batch), system)
    return shape[1]


def _are_probabilities(y: Any) -> bool:
    rows = np.asarray(y, np.float64)
    return bool(rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < 0.01)

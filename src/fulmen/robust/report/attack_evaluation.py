"""`Evaluation`: the forward passes and attacks of a robustness evaluation, on some of the examples."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.vectorized import members_of
from fulmen.core import Eval, Prediction, bound_mode, check_classes, fold_name, inputs, remake, short, with_inputs
from fulmen.core.structure import Structure, pack, per_structure
from fulmen.core.verbs import as_batch, attempt, bind, perturb, predictions, project
from fulmen.devices.policies import Policy, on_rows
from fulmen.robust.attacks.attack_loop import AttackState, bucket, packed
from fulmen.robust.attacks.problem import Problem
from fulmen.robust.attacks.projections import at_least_32_bits
from fulmen.robust.report.attack_choice import norm_name, one_ball
from fulmen.robust.report.program_search import results_depend
from fulmen.robust.report.result_folder import Folder

VERDICTS = 20
"""The draws of a random system that decide whether an example is classified correctly."""


class Evaluation:
    """A system with its data and attacks, and the forward passes and attacks that an evaluation runs.

    Attributes:
        system: the component; it runs in `Eval` mode unless it is bound to another mode.
        data: the data, not yet a batch.
        attacks: the attacks.
        ball: the ball that all attacks share, or None.
        key: the random key; each example draws by its `index`, or else its position in the data.
        n: the number of examples.
        classes: the number of classes.
        batch_size: the number of examples in a batch.
        sample: the number of examples on which signs run attacks of their own.
        devices: the policy by which the system is distributed over devices, or None.
        labels: `(n,)`, the classes of the examples.
        compare: whether each attack gets all examples that are classified correctly, rather than the survivors.
        is_random: whether the system draws random numbers. Then an example is classified by most of `VERDICTS` draws: by a
            single one, those near a boundary would be right or wrong by chance.
        outputs: `(n, classes)`, the logits of the clean inputs; empty until all examples have been attacked.
        folder: the `Folder` that keeps intermediate results.
    """

    def __init__(
        self,
        system: Any,
        data: Any,
        attacks: list[Any],
        key: Any,
        classes: int,
        batch_size: int | None,
        sample: int,
        compare: bool = False,
        devices: Policy | None = None,
    ) -> None:
        self.system, self.data, self.attacks, self.key, self.devices = system, data, attacks, key, devices
        self.ball, self.classes, self.sample = one_ball(attacks), classes, sample
        whole = as_batch(system, data)
        self.n, y = len(whole), np.asarray(whole.y)
        self.labels = (y if y.ndim == 1 else y.argmax(1)).astype(np.int32)
        size = min(batch_size or 256, self.n)
        self.batch_size = -(-self.n // -(-self.n // size))  # batches of equal size need the least padding
        self._leaves, self._structure = pack(system)
        self.outputs = np.zeros((0, classes))
        self.compare, self.folder = compare, Folder(None)
        self.is_random = draws(system, whole[:1], key)

    def chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Some rows in pieces of at most the batch size."""
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def batch(self, rows: np.ndarray) -> Any:
        """The batch of some examples, with their `index`; it is padded by repeating examples."""
        rows = np.resize(rows, bucket(len(rows), self.batch_size))
        batch = as_batch(self.system, jax.tree.map(lambda v: v[rows], self.data))
        index = rows.astype(np.int32) if batch.index is None else batch.index
        return on_rows(remake(batch, {"index": index, "weight": None}), self.devices)

    def predict(self, rows: np.ndarray, x: Any = None, draw: int = 0) -> np.ndarray:
        """The logits of some examples, `(rows, classes)`.

        Args:
            rows: the examples.
            x: inputs in place of the clean ones, or None.
            draw: selects the random numbers of a system that draws.
        """
        key = jax.random.fold_in(fold_name(self.key, "evaluate"), draw)

        def of_chunk(chunk: np.ndarray) -> Any:
            batch = self.batch(rows[chunk])
            if x is not None:
                padded = np.resize(chunk, len(batch))
                batch = with_inputs(batch, jax.tree.map(lambda v: v[padded], x))
            return _outputs(self._structure, self._leaves, batch, key)

        return self._by_chunk(of_chunk, np.arange(len(rows))) if len(rows) else np.zeros((0, self.classes))

    def attempt(self, attack: Any, rows: np.ndarray, key: Any) -> Any:
        """The `AttackState` of `attempt` for some examples; `succeeded` where the attack makes the class wrong."""
        found = self._by_chunk(lambda chunk: attempt(attack, self.system, self.batch(chunk), key, checked=True), rows)
        if attack.target.names_class or self.is_random:  # it succeeds at a class, which may be the right one
            succeeded = found.succeeded & ~self.right(rows, self.predict(rows, found.x), found.x)
            found = remake(found, {"succeeded": succeeded, "first": np.where(succeeded, found.first, -1)})
        return found

    def right(self, rows: np.ndarray, outputs: np.ndarray, x: Any = None) -> np.ndarray:
        """Which of some examples are classified correctly, `(rows,)`.

        Args:
            rows: the examples.
            outputs: their logits, of one draw.
            x: inputs in place of the clean ones, or None.
        """
        labels = self.labels[rows]
        if not self.is_random or not len(rows):
            return is_right(outputs, labels)
        votes = [is_right(self.predict(rows, x, draw), labels) for draw in range(1, 1 + VERDICTS)]
        return 2 * np.sum(votes, 0) > VERDICTS

    def broken(self, attacks: list[Any], rows: np.ndarray, name: str) -> np.ndarray:
        """Which of some examples any of the attacks breaks, `(rows,)`."""
        return self.folder.remembered((name, attacks, rows), lambda: self._broken(attacks, rows, name))

    def _broken(self, attacks: list[Any], rows: np.ndarray, name: str) -> np.ndarray:
        broken = np.zeros(len(rows), bool)
        for number, attack in enumerate(attacks):
            left = np.flatnonzero(~broken)
            if left.size:
                key = jax.random.fold_in(fold_name(self.key, name), number)
                broken[left] = self.attempt(attack, rows[left], key).succeeded
        return broken

    def nearest(self, attack: Any, rows: np.ndarray, key: Any) -> tuple[Any, np.ndarray]:
        """The result of a full run of an attack that searches for the nearest point, and its distances, `(rows,)`.

        Returns:
            `(found, distance)`: `found` has the points inside the region and the clean inputs of the other examples; the
            distance is that of the nearest adversarial point, inside or not, infinite if none was found.
        """

        def run(chunk: np.ndarray) -> Any:
            batch = self.batch(chunk)
            x = inputs(perturb(attack, self.system, batch, key, checked=True))
            wide = lambda v: jnp.asarray(v).astype(at_least_32_bits(jnp.result_type(v)))
            there = jax.tree.map(lambda a, b: project(attack.region, wide(a), wide(b)), x, inputs(batch))
            return x, there

        x, there = self._by_chunk(run, rows)
        clean = self.inputs(rows)
        wrong = ~self.right(rows, self.predict(rows, x), x)
        distance = np.where(wrong, self.distance(x, clean), np.inf)
        same = [(a == b).reshape(len(a), -1).all(1) for a, b in zip(*map(jax.tree.leaves, (x, there)), strict=True)]
        succeeded = wrong & np.logical_and.reduce(same)
        points = jax.tree.map(lambda a, b: np.where(succeeded.reshape(-1, *[1] * (a.ndim - 1)), a, b), x, clean)
        first = np.where(succeeded, attack.length, -1)
        return AttackState(points, succeeded=succeeded, first=first), distance

    def distance(self, x: Any, clean: Any) -> np.ndarray:
        """The distances of points from the clean inputs, in the norm that the attacks share; NaN if there is none."""
        found = norms(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, x, clean))
        return found.get(norm_name(self.ball), np.full(len(found["l1"]), np.nan))

    def last_points(self, attack: Any, rows: np.ndarray, name: str) -> Any:
        """The points where an attack ends, whether or not it succeeds."""
        key = fold_name(self.key, name)
        ends = lambda chunk: inputs(perturb(attack, self.system, self.batch(chunk), key, best=False, checked=True))
        return self._by_chunk(ends, rows)

    def gradients(self, rows: np.ndarray) -> Any:
        """The gradients of the first attack's objective at the clean inputs, including values that are not finite."""
        problem = Problem(self.attacks[0], self.system, self.batch(rows), key=fold_name(self.key, "slopes"))
        return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], _gradients(*packed(problem)))

    def inputs(self, rows: np.ndarray) -> Any:
        """The clean inputs of some examples."""
        return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], inputs(self.batch(rows)))

    def _by_chunk(self, function: Callable[[np.ndarray], Any], rows: np.ndarray) -> Any:
        """The arrays that a function returns for a padded batch of each chunk, without the padding, joined."""
        found = [jax.tree.map(lambda v, n=len(chunk): np.asarray(v)[:n], function(chunk)) for chunk in self.chunks(rows)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def in_eval_mode(system: Any, key: Any) -> Any:
    """The system in `Eval` mode unless it is bound to another mode."""
    return bind(system, Eval(key)) if bound_mode(system) is None else system


@per_structure()
def _outputs(structure: Structure, leaves: list[Any], batch: Any, key: Any) -> jax.Array:
    (prediction,) = predictions(in_eval_mode(structure.unpack(leaves), key), batch).values()
    return prediction.outputs


@per_structure()
def _gradients(structure: Structure, leaves: list[Any]) -> Any:
    problem = structure.unpack(leaves).with_targets()
    return jax.grad(lambda x: problem.evaluate(x).value.sum())(problem.origin)


def traced_outputs(system: Any, batch: Any, key: Any) -> Any:
    """The program from the inputs of a batch to the outputs of a system in its mode, a jaxpr."""

    def outputs(x: Any) -> list[Any]:
        found = predictions(in_eval_mode(system, key), with_inputs(batch, x)).values()
        return [each.outputs for each in found]

    return jax.make_jaxpr(outputs)(inputs(batch))


def draws(system: Any, batch: Any, key: Any) -> bool:
    """Whether the outputs of a system in its mode depend on the random key."""
    outputs = lambda key: [found.outputs for found in predictions(in_eval_mode(system, key), batch).values()]
    return results_depend(jax.make_jaxpr(outputs)(key))


def is_right(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the label has the only highest logit, `(n,)`; ties and NaN are wrong, as in `Accuracy`."""
    own = np.take_along_axis(outputs, labels[:, None], 1)
    return (outputs >= own).sum(1) == 1


def margins(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label's logit minus the highest other one, `(n,)`."""
    own = np.take_along_axis(outputs, labels[:, None], 1)[:, 0]
    others = np.where(np.arange(outputs.shape[1])[None] == labels[:, None], -np.inf, outputs)
    return own - others.max(1)


def norms(offsets: Any) -> dict[str, np.ndarray]:
    """The norms of each example's arrays, taken as one vector, `(n,)` each."""
    parts = [np.asarray(v, np.float64) for v in jax.tree.leaves(offsets)]
    flat = np.abs(np.concatenate([v.reshape(len(v), -1) for v in parts], 1))
    l1, changed = flat.sum(1), np.count_nonzero(flat, 1)
    l0 = np.where(np.isfinite(l1), changed, np.nan)
    return {"linf": flat.max(1, initial=0), "l2": np.sqrt((flat**2).sum(1)), "l1": l1, "l0": l0}


def require_classes(system: Any, batch: Any, key: Any) -> int:
    """The number of classes of the system's one classifier; raises if it has not exactly one, or if labels do not fit."""
    found = jax.eval_shape(lambda one: predictions(in_eval_mode(system, key), one), batch[:1])
    name = type(system).__name__
    if len(found) != 1:
        paths = ", ".join(map(repr, found)) or "none"
        example = f"state.system.{next(iter(found), '').replace('/', '.') or 'part'}"
        if members_of(system, system):
            example = "fm.members(state)[0]"
        raise ValueError(
            f"robustness needs a system with one classifier, and {name} has {len(found)} predictions ({paths}): give one of "
            f"the parts, such as {example}."
        )
    (outputs,) = (prediction.outputs for prediction in found.values())
    y = getattr(batch, "y", None)
    if y is None:
        raise ValueError("robustness needs labels, and the data has no labels y: give pairs (x, y).")
    shape: Any = getattr(outputs, "shape", ())
    labels = jnp.issubdtype(y.dtype, jnp.integer) and y.shape == (len(batch),)
    fits = len(shape) == 2 and shape[1] > 1 and (labels or y.shape == (len(batch), shape[1]))
    if not fits or not (labels or _are_probabilities(y)):
        raise ValueError(
            f"robustness needs logits (n, classes) and integer labels y (n,), got {short(outputs)} from {name} for one example "
            f"and y {short(y)}. For a regressor, measure its loss under attack by fm.evaluate(state, data, attack=…)."
        )
    like: Any = jax.ShapeDtypeStruct((len(batch), shape[1]), outputs.dtype)
    check_classes(Prediction(system, like, batch), system)
    return shape[1]


def _are_probabilities(y: Any) -> bool:
    rows = np.asarray(y, np.float64)
    return bool(rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < 0.01)

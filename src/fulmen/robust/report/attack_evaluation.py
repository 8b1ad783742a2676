"""`Evaluation`: the forward passes and attacks of a robustness evaluation, on some of the examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import check_classes, concrete, fold_name, inputs, remake, short, with_inputs
from fulmen.core.structure import Structure, per_structure
from fulmen.core.verbs import as_attack, attempt, for_examples, perturb, validate
from fulmen.devices.policies import Policy
from fulmen.robust.attacks.attack_loop import AttackState, packed
from fulmen.robust.attacks.ensemble import autoattack, flattened
from fulmen.robust.attacks.problem import Problem
from fulmen.robust.attacks.projections import projected
from fulmen.robust.attacks.region import Intersection, Region, balls, boxes, split
from fulmen.robust.attacks.region_checks import require_inside
from fulmen.robust.attacks.rounding import at_least_32_bits
from fulmen.robust.report.attack_choice import norm_name, one_ball
from fulmen.robust.report.example_batches import ExampleBatches, outputs_of, sole_prediction
from fulmen.robust.report.program_search import results_depend
from fulmen.robust.report.result_folder import Folder

VERDICTS = 20
"""The draws of a random system that decide whether an example is classified correctly."""

SAMPLES = 20
"""The draws per gradient of the AutoAttack for a model that draws random numbers, as its authors take."""


class Evaluation(ExampleBatches):
    """A system with its data and attacks, and the forward passes and attacks that an evaluation runs.

    The system runs in `Eval` mode unless it is bound to another mode. What cannot be evaluated raises.

    Attributes:
        key: the random key; each example draws by its `index`, or else its position in the data.
        classes: the number of classes.
        attack: the attack that the argument means.
        attacks: the attacks that it consists of.
        ball: the ball that all attacks share, or None.
        sample: the number of examples on which signs run attacks of their own.
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
        attack: Any,
        seed: int,
        batch_size: int | None,
        sample: int,
        compare: bool,
        devices: Policy | None,
    ) -> None:
        super().__init__(system, data, int(batch_size or 256), devices)
        self.key, self.sample, self.compare, self.folder = jax.random.key(seed), int(sample), compare, Folder(None)
        require_inside(Intersection(()), jax.tree.leaves(inputs(self.whole)))  # integer inputs have no gradient
        self.classes = require_classes(self.system, self.whole, self.key)
        self.outputs = np.zeros((0, self.classes))
        validate(self.system, self.whole)
        outputs = lambda key: outputs_of(self.system, self.whole[:1], key)
        self.is_random = results_depend(jax.make_jaxpr(outputs)(self.key))
        if isinstance(attack, Region) and self.is_random:
            attack = autoattack(attack, classes=max(self.classes, 2), samples=SAMPLES)
        self.attack = as_attack(attack, self.classes)
        validate(self.attack, self.system, self.whole)
        self.attacks = flattened(self.attack)
        self.ball = one_ball(self.attacks)

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
            return _outputs(self.structure, self.leaves, batch, key)

        return self._by_chunk(of_chunk, np.arange(len(rows))) if len(rows) else np.zeros((0, self.classes))

    def at(self, attack: Any, rows: np.ndarray) -> Any:
        """An attack for the batch of some examples."""
        return for_examples(attack, self.padded(rows), self.n)

    def attempt(self, attack: Any, rows: np.ndarray, key: Any) -> Any:
        """The `AttackState` of `attempt` for some examples; `succeeded` where the attack makes the class wrong."""
        run = lambda chunk: attempt(self.at(attack, chunk), self.system, self.batch(chunk), key, checked=True)
        found = self._by_chunk(run, rows)
        if attack.target.names_class or self.is_random:  # it succeeds at a class, which may be the right one
            succeeded = found.succeeded & ~self.right(rows, self.predict(rows, found.x), found.x)
            found = remake(found, {"succeeded": succeeded, "first": np.where(succeeded, found.first, -1)})
        return found

    def right(self, rows: np.ndarray, outputs: np.ndarray, x: Any = None) -> np.ndarray:
        """Which of some examples are classified correctly, `(rows,)`, by their logits of one draw; `x` as for `predict`."""
        labels = self.labels[rows]
        if not self.is_random or not len(rows):
            return is_right(outputs, labels)
        votes = [is_right(self.predict(rows, x, draw), labels) for draw in range(1, 1 + VERDICTS)]
        return 2 * np.sum(votes, 0) > VERDICTS

    def broken(self, attacks: list[Any], rows: np.ndarray, name: str) -> np.ndarray:
        """Which of some examples any of the attacks breaks, `(rows,)`."""

        def compute() -> np.ndarray:
            broken = np.zeros(len(rows), bool)
            for number, attack in enumerate(attacks):
                left = np.flatnonzero(~broken)
                if left.size:
                    key = jax.random.fold_in(fold_name(self.key, name), number)
                    broken[left] = self.attempt(attack, rows[left], key).succeeded
            return broken

        return self.folder.remembered(name, attacks, rows, compute)

    def nearest(self, attack: Any, rows: np.ndarray, key: Any) -> tuple[Any, np.ndarray]:
        """The result of a full run of an attack that searches for the nearest point, and its distances, `(rows,)`.

        Returns:
            `(found, distance)`: `found` has the points inside the region and the clean inputs of the other examples; the
            distance is that of the nearest adversarial point, inside or not, infinite if none was found.
        """

        def run(chunk: np.ndarray) -> Any:
            batch, own = self.batch(chunk), self.at(attack, chunk)
            x = inputs(perturb(own, self.system, batch, key, checked=True))
            wide = lambda v: jnp.asarray(v).astype(at_least_32_bits(jnp.result_type(v)))
            there = projected(own.region, *jax.tree.map(wide, (x, inputs(batch))))
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

        def ends(chunk: np.ndarray) -> Any:
            own = self.at(attack, chunk)
            return inputs(perturb(own, self.system, self.batch(chunk), key, best=False, checked=True))

        return self._by_chunk(ends, rows)

    def gradients(self, rows: np.ndarray) -> Any:
        """The gradients of the first attack's objective at the clean inputs, including values that are not finite."""
        problem = Problem(self.at(self.attacks[0], rows), self.system, self.batch(rows), key=fold_name(self.key, "slopes"))
        return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], _gradients(*packed(problem)))

    def inputs(self, rows: np.ndarray) -> Any:
        """The clean inputs of some examples."""
        return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], inputs(self.batch(rows)))

    def _by_chunk(self, function: Callable[[np.ndarray], Any], rows: np.ndarray) -> Any:
        """The arrays that a function returns for a padded batch of each chunk, without the padding, joined."""
        found = [jax.tree.map(lambda v, n=len(chunk): np.asarray(v)[:n], function(chunk)) for chunk in self.chunks(rows)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


@per_structure()
def _outputs(structure: Structure, leaves: list[Any], batch: Any, key: Any) -> jax.Array:
    (outputs,) = outputs_of(structure.unpack(leaves), batch, key)
    return outputs


@per_structure()
def _gradients(structure: Structure, leaves: list[Any]) -> Any:
    problem = structure.unpack(leaves).with_targets()
    return jax.grad(lambda x: problem.evaluate(x).value.sum())(problem.origin)


def traced_outputs(system: Any, batch: Any, key: Any) -> Any:
    """The program from the inputs of a batch to the outputs of a system in its mode, a jaxpr."""
    return jax.make_jaxpr(lambda x: outputs_of(system, with_inputs(batch, x), key))(inputs(batch))


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


def violations(region: Region, clean: Any, attacked: Any) -> list[str]:
    """What shows that attacked inputs are outside of a region, in sentences."""
    found, far = [], norms(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, attacked, clean))
    for ball in balls(region):
        name, eps = norm_name(ball), concrete(ball.eps)
        if not name or eps is None or np.shape(eps) not in ((), far[name].shape):
            continue
        outside = far[name] > np.asarray(eps, np.float64) * (1 + 1e-4) + 1e-9
        if outside.any():
            found.append(f"An attacked input is {far[name][outside].max():.6g} from the clean one, outside {ball!r}.")
    for member in split(region)[2]:
        there = projected(member, *jax.tree.map(jnp.asarray, (attacked, clean)))
        away = norms(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, there, attacked))["linf"].max()
        if away > 1e-3 * far["linf"].max():
            found.append(f"An attacked input is {away:.6g} outside {member!r}.")
    low, high = value_range(attacked)
    for box in boxes(region):
        lo, hi = concrete(box.lo), concrete(box.hi)
        if lo is not None and hi is not None and (low < lo - 1e-6 * abs(lo) or high > hi + 1e-6 * abs(hi)):
            found.append(f"Attacked inputs range from {low:.6g} to {high:.6g}, outside {box!r}.")
    return found


def value_range(x: Any) -> tuple[float, float]:
    """The smallest and the largest number of a tree of arrays."""
    leaves = jax.tree.leaves(x)
    return min(float(v.min()) for v in leaves), max(float(v.max()) for v in leaves)


def require_classes(system: Any, batch: Any, key: Any) -> int:
    """The number of classes of the system's one classifier; raises if it has not exactly one, or if labels do not fit."""
    prediction, y = sole_prediction("robustness", system, batch, key), batch.y
    shape: Any = getattr(prediction.outputs, "shape", ())
    labels = jnp.issubdtype(y.dtype, jnp.integer) and y.shape == (len(batch),)
    fits = len(shape) == 2 and shape[1] > 1 and (labels or y.shape == (len(batch), shape[1]))
    if not fits or not (labels or _are_probabilities(y)):
        raise ValueError(
            f"robustness needs logits (n, classes) and integer labels y (n,), got {short(prediction.outputs)} from "
            f"{type(system).__name__} and y {short(y)}. For a regressor, measure its loss under attack by "
            "fm.evaluate(state, data, attack=…)."
        )
    check_classes(prediction, system)
    return shape[1]


def _are_probabilities(y: Any) -> bool:
    rows = np.asarray(y, np.float64)
    return bool(rows.min() >= 0 and np.abs(rows.sum(1) - 1).max() < 0.01)

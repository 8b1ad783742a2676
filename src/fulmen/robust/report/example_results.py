"""Each example's result under the attacks, collected batch by batch."""

import time
from typing import Any

import jax
import numpy as np

from fulmen.robust.report.attack_choice import name_of
from fulmen.robust.report.attack_evaluation import Evaluation, margins, norms
from fulmen.robust.report.report_progress import Progress
from fulmen.robust.report.robustness_report import Report


class ExampleResults:
    """The results of the examples that have been attacked, as a `Report` has them.

    Attributes:
        batches: the arrays of each batch of examples.
        attacks: for each attack its name and totals.
    """

    def __init__(self, evaluation: Evaluation, progress: Progress) -> None:
        self.evaluation, self.progress = evaluation, progress
        self.batches: list[dict[str, Any]] = []
        self.attacks: list[dict[str, Any]] = [
            {"name": name_of(attack), "attack": repr(attack), "given": 0, "broken": 0, "seconds": 0.0}
            for attack in evaluation.attacks
        ]

    def add(self, rows: np.ndarray) -> None:
        """Run every attack on some examples, each on those that are still correct.

        Raises:
            KeyboardInterrupt: if Ctrl-C was pressed, before anything is added. Of the first batch, the attacks that have
                finished count.
        """
        evaluation = self.evaluation
        outputs, clean = evaluation.predict(rows), evaluation.inputs(rows)
        correct = evaluation.right(rows, outputs)
        result: dict[str, Any] = dict(
            labels=evaluation.labels[rows],
            predicted=outputs.argmax(1),
            correct=correct,
            robust=correct.copy(),
            by=np.full(len(rows), -1),
            first=np.where(correct, -1, 0),
            attacked=outputs.argmax(1),
            x=jax.tree.map(np.array, clean),
            clean=clean,
            outputs=outputs.astype(np.float32) if outputs.dtype.itemsize < 4 else outputs,
            reached=np.where(correct, np.nan, 0.0)[:, None].repeat(len(self.attacks), 1),
            passes=np.zeros((len(rows), len(self.attacks)), np.int64),
        )
        counts = self._attack(rows, result)
        gradient = norms(evaluation.gradients(rows))
        result["gradient"] = {name: np.where(np.isfinite(values), values, np.nan) for name, values in gradient.items()}
        result["distance"] = norms(jax.tree.map(lambda a, b: a.astype(np.float64) - b, result["x"], clean))
        if len(counts) == len(self.attacks):
            evaluation.folder.save_batch(len(self.batches), result, counts)
        self._append(result, counts)

    def _append(self, result: dict[str, Any], counts: list[dict[str, Any]]) -> None:
        del self.attacks[len(counts) :]
        for attack, added in zip(self.attacks, counts, strict=True):
            attack.update({name: attack[name] + value for name, value in added.items()})
        self.batches.append(result)
        self.progress.logs = {"accuracy": self._mean("correct"), "robust": self._mean("robust")}

    def restore(self, rows: np.ndarray) -> bool:
        """Whether the folder had the results of the next batch, which are added."""
        stored = self.evaluation.folder.load_batch(len(self.batches), self.evaluation.inputs(rows))
        if stored is not None:
            self._append(*stored)
            for _ in self.attacks:
                self.progress.step()
        return stored is not None

    def _attack(self, rows: np.ndarray, result: dict[str, Any]) -> list[dict[str, Any]]:
        """Update a result by each attack; returns how many examples each was given and has broken, and its seconds."""
        evaluation, robust, counts = self.evaluation, result["robust"], []
        margin = np.full(len(rows), np.inf)
        for number, attack in enumerate(evaluation.attacks):
            begun, before = time.perf_counter(), int(robust.sum())
            left = np.flatnonzero(result["correct"] if evaluation.compare else robust)
            try:
                self.progress.begin(f"{self.attacks[number]['name']} on {left.size} of {len(rows)}")
                key = jax.random.fold_in(evaluation.key, number)
                ran = self._run(attack, rows[left], key) if left.size else None
            except KeyboardInterrupt:
                if self.batches or not counts:
                    raise
                break
            if ran is not None:
                found, outputs, result["reached"][left, number] = ran
                steps = np.where(found.succeeded, found.first, attack.length * attack.restarts)
                result["passes"][left, number] = steps * attack.passes + attack.last_passes
                self._update(result, margin, left, number, found, outputs)
            counts.append(dict(given=left.size, broken=before - int(robust.sum()), seconds=time.perf_counter() - begun))
            self.progress.step()
        return counts

    def _run(self, attack: Any, rows: np.ndarray, key: Any) -> tuple[Any, np.ndarray, np.ndarray]:
        """The result of an attack, the logits at its points, and the distance at which it broke each example."""
        evaluation = self.evaluation
        if evaluation.compare and attack.nearest:
            found, distance = evaluation.nearest(attack, rows, key)
        else:
            found = evaluation.attempt(attack, rows, key)
            distance = np.where(found.succeeded, evaluation.distance(found.x, evaluation.inputs(rows)), np.inf)
        return found, evaluation.predict(rows, found.x), distance

    def _update(
        self, result: dict[str, Any], margin: np.ndarray, left: np.ndarray, number: int, found: Any, outputs: np.ndarray
    ) -> None:
        """Put an attack's points into a result where they succeed, or else come nearer to the boundary.

        Attacks maximise different objectives, so points that do not succeed are compared by their margins.
        """
        margins_now = margins(outputs, result["labels"][left])
        fresh = found.succeeded & result["robust"][left]
        better = fresh | ((margins_now < margin[left]) & result["robust"][left])
        some, broken = left[better], left[fresh]
        for old, new in zip(jax.tree.leaves(result["x"]), jax.tree.leaves(found.x), strict=True):
            old[some] = new[better]
        margin[some], result["attacked"][some] = margins_now[better], outputs.argmax(1)[better]
        result["robust"][broken], result["by"][broken] = False, number
        result["first"][broken] = found.first[fresh]

    def _mean(self, name: str) -> float:
        return float(np.concatenate([batch[name] for batch in self.batches]).mean())

    def report(self, settings: dict[str, Any], versions: dict[str, str]) -> Report:
        """The report of the examples so far, without curve and findings.

        Raises:
            KeyboardInterrupt: if there are none, since Ctrl-C was pressed.
        """
        if not self.batches:
            raise KeyboardInterrupt
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *self.batches)
        self.evaluation.outputs = joined.pop("outputs")
        n, left, attacks = len(joined["labels"]), int(joined["correct"].sum()), []
        for attack in self.attacks:
            left -= attack["broken"]
            attacks.append({**attack, "accuracy": left / n})
        return Report(**joined, attacks=attacks, settings=settings, versions=versions, total=self.evaluation.n)

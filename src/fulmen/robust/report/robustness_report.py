"""`Report`, the result of `robustness`, with the `Finding` of each `Sign`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fulmen.core import Component
from fulmen.core.immutable import Immutable
from fulmen.core.verbs import plot
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.text import Picture
from fulmen.robust.report.confidence import confidence_interval
from fulmen.robust.report.pictures import report_figure
from fulmen.robust.report.report_json import VERSION, decoded, encoded
from fulmen.robust.report.report_pages import report_html, report_page, report_text, worst_first

OK, SUSPICIOUS, WRONG, UNCHECKED = "ok", "suspicious", "wrong", "not checked"


class Finding(Immutable):
    """The result of a warning sign.

    Args:
        verdict: `"ok"`, `"suspicious"`, `"wrong"` or `"not checked"`.
        text: a sentence with the numbers, and what to do.
        sign: the sign's title.
    """

    verdict: Literal["ok", "suspicious", "wrong", "not checked"]
    text: str
    sign: str = ""


class Sign(Component):
    """A sign that the results of an evaluation are wrong.

    **Extending.** Subclass it, write `examine(sign: Mine, evaluation, report)`, and pass it as
    `fm.robustness(…, signs=(*fm.robust.report.SIGNS, Mine()))`. The first line of its docstring is its title in
    reports: what should be the case.
    """

    @property
    def title(self) -> str:
        return (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")


def graded(share: float, low: float, high: float, text: str, advice: str) -> Finding:
    """The finding about a share that should be 0: ok up to `low`, suspicious up to `high`, otherwise wrong, with advice."""
    verdict: Any = OK if share <= low else SUSPICIOUS if share <= high else WRONG
    return Finding(verdict, text if verdict == OK else f"{text} {advice}")


class Report(Picture, Immutable):
    """A measurement of a classifier's robustness.

    `print(report)` shows it as a table, `fm.plot(report)` as pictures; `report.save("report.html")` and
    `report.save("report.json")` write it, and `Report.load("report.json")` reads it.

    Attributes:
        labels: `(n,)`, the classes.
        predicted: `(n,)`, the predicted classes of the clean inputs.
        correct: `(n,)`, whether the prediction is right; a tie is wrong.
        robust: `(n,)`, whether it is right, and no attack has changed it.
        by: `(n,)`, the index in `attacks` of the attack that has broken the example, or −1.
        first: `(n,)`, the number of that attack's steps, 0 if the clean input is wrong already, or −1.
        attacked: `(n,)`, the predicted classes of the attacked inputs.
        x: the attacked inputs, with the structure of a batch's attackable fields: the first point that breaks the example,
            or else the last point of the attack that came nearest to breaking it.
        clean: the clean inputs, likewise.
        distance: `(n,)` each, the distance of the attacked input from the clean one, in the norms `linf`, `l2` and `l1`,
            and the number of changed coordinates, `l0`.
        gradient: `(n,)` each, the same norms of the gradient at the clean input; NaN if it is not finite.
        attacks: for each attack its `name`, `attack` as text, the numbers of examples `given` and `broken`, the `accuracy`
            after it, and `seconds`.
        curve: for each radius `eps` the accuracy under the attacks, `robust`, and under noise of that size, `noise`.
        findings: the results of the warning signs.
        reached: `(n, attacks)`, the distance in the attacks' norm at which each attack broke each example, infinite if it did
            not, NaN if it did not run on it.
        passes: `(n, attacks)`, the forward and backward passes of each attack for each example, at most.
        settings: the system, the attack, the region, the seed and the sizes.
        versions: of the packages, and the device.
        total: the number of examples in the data.
        partial: whether Ctrl-C ended it; then results are those of the examples that were finished.
        seconds: the duration.
        certified: `(n,)`, whether the example is certified, as `with_certificate` adds it, or None.
    """

    labels: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray
    robust: np.ndarray
    by: np.ndarray
    first: np.ndarray
    attacked: np.ndarray
    x: Any
    clean: Any
    distance: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]
    attacks: list[dict[str, Any]]
    reached: np.ndarray
    passes: np.ndarray
    settings: dict[str, Any]
    versions: dict[str, str]
    total: int
    partial: bool = False
    seconds: float = 0.0
    curve: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    certified: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The share of examples whose clean input is classified correctly."""
        return float(self.correct.mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that remain correct under all attacks."""
        return float(self.robust.mean())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """A 95 % confidence interval of `accuracy` on other data of the same distribution (Clopper and Pearson)."""
        return confidence_interval(int(self.correct.sum()), len(self))

    @property
    def robust_accuracy_interval(self) -> tuple[float, float]:
        """The same of `robust_accuracy`, the accuracy under these attacks; a stronger attack may find less."""
        return confidence_interval(int(self.robust.sum()), len(self))

    @property
    def area(self) -> float | None:
        """The area under the curve of robust accuracy over the radius, from 0 to the largest one, or None without a curve."""
        if not self.curve:
            return None
        heights = np.array([self.accuracy, *self.curve["robust"]])
        return float(np.trapezoid(heights, np.array([0.0, *self.curve["eps"]])))

    @property
    def certified_accuracy(self) -> float | None:
        """The share of examples that are certified, or None. The true robust accuracy is between this and `robust_accuracy`."""
        return None if self.certified is None else float(self.certified.mean())

    def with_certificate(self, certificate: Any) -> Report:
        """The report with the result of `fm.certify` for the same examples and region beside that of the attacks.

        A certified example that an attack has broken shows that one of the two is wrong: it is added to the findings.

        Args:
            certificate: a `Certificate` of the report's examples, in their order.

        Raises:
            ValueError: if its examples or its region are others.
        """
        n = len(self)
        if len(certificate) < n or (certificate.labels[:n] != self.labels).any():
            raise ValueError(f"certificate must be of the report's {n} examples, got one of {len(certificate)} others.")
        if certificate.region != self.settings["region"]:
            raise ValueError(
                f"certificate must be for {self.settings['region']}, as the report is, got {certificate.region}."
            )
        certified = certificate.certified[:n]
        broken = int((certified & ~self.robust).sum())
        text = f"{broken} of {int(certified.sum())} certified examples are broken by the attacks."
        advice = "The certificate is for another model or other data, or a layer's method for an Interval is wrong."
        found = dataclasses.replace(graded(broken, 0, 0, text, advice), sign="No attack breaks a certified example")
        return dataclasses.replace(self, certified=certified, findings=[*self.findings, found])

    @property
    def warnings(self) -> list[Finding]:
        """The findings that are wrong, then those that are suspicious."""
        return [finding for finding in worst_first(self) if finding.verdict in ("suspicious", "wrong")]

    def per_class(self) -> dict[int, tuple[int, float, float]]:
        """For each class in the labels: the number of examples, their accuracy, and their robust accuracy."""
        members = {int(c): self.labels == c for c in np.unique(self.labels)}
        return {
            c: (int(of.sum()), float(self.correct[of].mean()), float(self.robust[of].mean())) for c, of in members.items()
        }

    def optimality(self, largest: float | None = None) -> dict[str, dict[str, float]]:
        """How near each attack comes to the best of all attacks on each example, as AttackBench defines it.

        The area under an attack's curve of robust accuracy over the radius, up to `largest`, is compared with that of the
        lower envelope of all attacks: 1 − (area − best area) / (accuracy · largest − best area). Cinà et al. 2024,
        arXiv:2404.19460.

        Args:
            largest: the end of the curves; None is the distance at which the envelope reaches 0.

        Returns:
            For each attack, `optimality` (1 for the envelope's, 0 for an attack that breaks nothing), `area`, and `passes`, the
            mean number of forward and backward passes for an example.

        Raises:
            ValueError: if not all attacks have run on all examples, or none has broken any.
        """
        if not self.settings["norm"] or self.reached is None or np.isnan(self.reached).any():
            raise ValueError(
                "optimality: each attack must run on each example, in balls of one norm. Write fm.robustness(…, compare=True)."
            )
        nearest, given = self.reached.min(1), self.correct
        finite = nearest[np.isfinite(nearest)]
        end = float(finite.max(initial=0)) if largest is None else float(largest)
        areas, best = np.minimum(self.reached, end).mean(0), float(np.minimum(nearest, end).mean())
        room = self.accuracy * end - best
        if not room > 0:
            raise ValueError(f"optimality: some attack must break an example nearer than largest, got largest={end:.6g}.")
        passes, names = self.passes[given].mean(0), [each["name"] for each in self.attacks]
        keys = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
        rows = zip(keys, areas, passes, strict=True)
        return {
            key: {"optimality": float(1 - (area - best) / room), "area": float(area), "passes": float(mean)}
            for key, area, mean in rows
        }

    def _text(self) -> str:
        return report_text(self)

    def _repr_html_(self) -> str:
        return report_html(self)

    def save(self, path: Any) -> None:
        """Write the report: as `.json`, which `load` reads, or as `.html`, one self-contained page.

        Args:
            path: the file; missing folders are made. JSON has only the hash of inputs of more than 4 MB.

        Raises:
            ValueError: for another suffix.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(encoded(self), indent=1, allow_nan=False)
        elif path.suffix == ".html":
            text = report_page(self)
        else:
            raise ValueError(f"path must be a file such as report.json or report.html, got {str(path)!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Any) -> Report:
        """A report that `save` wrote as JSON. Inputs that were too large for the file are None.

        Args:
            path: the file.

        Raises:
            ValueError: if it is not such a report.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            version = stored.pop("report")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{path} must be a report that report.save('report.json') wrote, and is not.") from None
        if version != VERSION:
            raise ValueError(
                f"{path} must be a report of version {VERSION}, got version {version}. Read it with the version of Fulmen that wrote "
                "it, or evaluate again."
            )
        fields = decoded(stored, [field.name for field in dataclasses.fields(cls)])
        return cls(**{**fields, "findings": [Finding(**each) for each in fields["findings"]]})


@dispatch
def plot(report: Report):
    return report_figure(report)

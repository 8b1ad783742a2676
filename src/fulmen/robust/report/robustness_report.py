"""`Report`, what `robustness` returns: each example's result, curves, findings, and all that they were found with."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from fulmen.core.verbs import plot
from fulmen.dispatching.registry import dispatch
from fulmen.inspect.text import Picture
from fulmen.robust.report.html import report_html
from fulmen.robust.report.page import report_page
from fulmen.robust.report.pictures import report_figure
from fulmen.robust.report.report_text import report_text
from fulmen.robust.report.warning_sign import Finding

__all__ = ["Report"]

LARGEST = 4_000_000
"""Bytes of inputs up to which they are written into a JSON file; of more it has a hash."""


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Picture):
    """What was found out about a classifier's robustness.

    `print(report)` shows it as a table, `fm.plot(report)` as pictures; `report.save("report.html")` and
    `report.save("report.json")` write it, and `Report.load("report.json")` reads it.

    Attributes:
        labels: `(n,)`, the classes.
        predicted: `(n,)`, what the system takes the clean inputs for.
        correct: `(n,)`, where that is right; a tie is wrong.
        robust: `(n,)`, where it is right, and no attack has changed it.
        by: `(n,)`, by its place in `attacks`, the attack that has broken the example, or −1.
        first: `(n,)`, after how many of its steps, 0 where the clean input is wrong already, or −1.
        attacked: `(n,)`, what the system takes the attacked inputs for.
        x: the attacked inputs, of the structure that the attacked fields of a batch have: the first point that breaks the
            example, or else the one with the smallest margin that an attack ended at.
        clean: the clean inputs, likewise.
        distance: `(n,)` each, how far the attacked input is from the clean one, in the norms `linf`, `l2` and `l1`.
        gradient: `(n,)` each, the same norms of the gradient at the clean input; NaN where it is not finite.
        attacks: for each attack its name, itself as text, how many examples it was given, and has broken, the accuracy that
            was left, and the seconds that it took.
        curve: for each radius `eps` the accuracy under the attacks (`robust`) and under noise of that size (`noise`).
        findings: what the warning signs found.
        settings: what it was found with: system, attack, region, seed, sizes.
        versions: of the packages, and the device.
        total: how many examples there were.
        partial: whether Ctrl-C ended it; then the figures are of the examples that were done with.
        seconds: how long it took.
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
    settings: dict[str, Any]
    versions: dict[str, str]
    total: int
    partial: bool = False
    seconds: float = 0.0
    curve: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """The share of the examples that are right as they are."""
        return float(self.correct.mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of the examples that are right whatever the attacks did."""
        return float(self.robust.mean())

    @property
    def warnings(self) -> list[Finding]:
        """The findings that say that something is suspicious or wrong, the worst ones first."""
        found = [finding for finding in self.findings if finding.verdict in ("suspicious", "wrong")]
        return sorted(found, key=lambda finding: finding.verdict != "wrong")

    def per_class(self) -> dict[int, tuple[int, float, float]]:
        """For each class that there is: how many examples, their accuracy, and their robust accuracy."""
        places = {int(c): self.labels == c for c in np.unique(self.labels)}
        return {
            c: (int(here.sum()), float(self.correct[here].mean()), float(self.robust[here].mean()))
            for c, here in places.items()
        }

    def _text(self) -> str:
        return report_text(self)

    def _repr_html_(self) -> str:
        return report_html(self)

    def save(self, path: Any) -> None:
        """Write it: `.json` to be loaded again, or `.html`, one page with its pictures in it.

        Args:
            path: of the file; missing folders are made. Inputs of more than 4 MB are left out of JSON, which then has their
                hash.

        Raises:
            ValueError: for a file of another kind.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(_encoded(self), indent=1, allow_nan=False)
        elif path.suffix == ".html":
            text = report_page(self)
        else:
            raise ValueError(f"path: a file such as report.json or report.html was expected, and {str(path)!r} came.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Any) -> Report:
        """A report that `save` wrote as JSON. Inputs that were too large for it are None.

        Args:
            path: of the file.

        Raises:
            ValueError: if it is no report.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            version = stored.pop("report")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{path} is no report; a file that report.save('report.json') wrote was expected.") from None
        if version != 1:
            raise ValueError(f"{path} is a report of version {version}, and this version of fulmen reads version 1.")
        return cls(**_decoded(stored))


@dispatch
def plot(report: Report):
    return report_figure(report)


# As JSON

_ARRAYS = {"labels": int, "predicted": int, "correct": bool, "robust": bool, "by": int, "first": int, "attacked": int}
_FLOATS = ("distance", "gradient", "curve")
_INPUTS = ("x", "clean")


def _encoded(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {"report": 1, "accuracy": report.accuracy, "robust_accuracy": report.robust_accuracy}
    for field in dataclasses.fields(report):
        name, value = field.name, getattr(report, field.name)
        if name in _ARRAYS:
            found[name] = value.tolist()
        elif name in _FLOATS:
            found[name] = {key: _numbers(values) for key, values in value.items()}
        elif name in _INPUTS:
            found[name] = _stored(value)
        else:
            found[name] = [dataclasses.asdict(each) for each in value] if name == "findings" else value
    return found


def _numbers(values: np.ndarray) -> list[float | None]:
    """As a list with None for what is no number: JSON has no NaN."""
    return [float(v) if np.isfinite(v) else None for v in values]


def _stored(x: Any) -> Any:
    """Inputs bit for bit, or the hash of them."""
    if x is None or isinstance(x, dict):
        return None if x is None else {"fields": {name: _stored(value) for name, value in x.items()}}
    x = np.ascontiguousarray(x)
    about = {"dtype": str(x.dtype), "shape": list(x.shape), "sha256": hashlib.sha256(x.tobytes()).hexdigest()}
    return about if x.nbytes > LARGEST else {**about, "base64": base64.b64encode(x.tobytes()).decode()}


def _decoded(stored: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(Report)):
        value = stored[name]
        if name in _ARRAYS:
            value = np.array(value, _ARRAYS[name])
        elif name in _FLOATS:
            value = {key: np.array(values, float) for key, values in value.items()}
        elif name in _INPUTS:
            value = _read(value)
        found[name] = [Finding(**each) for each in value] if name == "findings" else value
    return found


def _read(stored: Any) -> Any:
    if stored is None or "fields" in stored:
        return None if stored is None else {name: _read(value) for name, value in stored["fields"].items()}
    if "base64" not in stored:
        return None
    flat = np.frombuffer(base64.b64decode(stored["base64"]), np.dtype(stored["dtype"]))
    return flat.reshape(stored["shape"]).copy()

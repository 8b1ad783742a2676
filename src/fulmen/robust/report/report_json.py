"""A report as JSON, and back."""

import base64
import dataclasses
import hashlib
from typing import Any

import numpy as np

VERSION = 2
"""The version of the format; it changes with the fields of a report."""

LARGEST = 4_000_000
"""Inputs of more bytes are not written into a JSON file; it has their hash."""


def encoded(report: Any) -> dict[str, Any]:
    """A report as values that JSON has."""
    found: dict[str, Any] = {"report": VERSION, "accuracy": report.accuracy, "robust_accuracy": report.robust_accuracy}
    for field in dataclasses.fields(report):
        encode, _ = _FORMATS.get(field.name, _AS_IT_IS)
        found[field.name] = encode(getattr(report, field.name))
    return found


def decoded(stored: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The fields of a report; findings are dicts."""
    return {name: _FORMATS.get(name, _AS_IT_IS)[1](stored[name]) for name in names}


def _numbers(arrays: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """As lists, with None for NaN and infinity, which JSON lacks."""
    return {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in arrays.items()}


def _bytes(x: Any) -> Any:
    """Inputs bit for bit, or their hash if they are large."""
    if x is None or isinstance(x, dict):
        return None if x is None else {"fields": {name: _bytes(value) for name, value in x.items()}}
    x = np.ascontiguousarray(x)
    about = {"dtype": str(x.dtype), "shape": list(x.shape), "sha256": hashlib.sha256(x.tobytes()).hexdigest()}
    return about if x.nbytes > LARGEST else {**about, "base64": base64.b64encode(x.tobytes()).decode()}


def _from_bytes(stored: Any) -> Any:
    if stored is None or "fields" in stored:
        return None if stored is None else {name: _from_bytes(value) for name, value in stored["fields"].items()}
    if "base64" not in stored:
        return None
    flat = np.frombuffer(base64.b64decode(stored["base64"]), np.dtype(stored["dtype"]))
    return flat.reshape(stored["shape"]).copy()


_AS_IT_IS: Any = (lambda value: value,) * 2
_FORMATS: dict[str, Any] = {
    **dict.fromkeys(("labels", "predicted", "correct", "robust", "by", "first", "attacked"), (np.ndarray.tolist, np.array)),
    **dict.fromkeys(
        ("distance", "gradient", "curve"), (_numbers, lambda lists: {k: np.array(v, float) for k, v in lists.items()})
    ),
    **dict.fromkeys(("x", "clean", "reached", "passes"), (_bytes, _from_bytes)),
    "certified": (lambda found: None if found is None else found.tolist(), lambda v: None if v is None else np.array(v)),
    "findings": (lambda found: [*map(dataclasses.asdict, found)], list),
}

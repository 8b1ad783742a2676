"""`History`: the logs of a run, epoch by epoch."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fulmen.core.verbs import show

_VALIDATION = "validation/"
_PREFIX = re.compile("^((validation|valid|val|eval)|training|train)[_/]")  # of the names of metrics in other libraries
_LOWER_IS_BETTER = ("loss", "error", "rmse", "mae", "perplexity", "bits_per")
_HIGHER_IS_BETTER = ("accuracy", "precision", "recall", "f1", "r2", "top_", "auroc")


class History(dict[str, np.ndarray]):
    """A dict from names (`loss`, `accuracy`, `validation/accuracy`, `lr`) to arrays with one number per epoch.

    `fm.plot(history)` draws it, `pandas.DataFrame(history)` is a table of it. Its columns, `keys()`, have one number per epoch:
    of an entry with several numbers there is one for each, such as `accuracy/members/0`, which can be looked up too.

    Attributes:
        opposed: whether the run trained a game: its players have opposed losses, so no epoch has the best loss.
    """

    opposed: bool = False

    @property
    def epochs(self) -> int:
        """The number of epochs; validations within epochs count too."""
        return max(map(len, self.values()), default=0)

    def append(self, logs: Mapping[str, Any], instead: bool = False) -> None:
        """Add an epoch, or replace the newest row by it if `instead`; a name is NaN in epochs that do not have it."""
        done = self.epochs - instead
        for name in [*self, *logs]:
            shape = np.shape(logs[name]) if name in logs else self[name].shape[1:]
            column = self.get(name, np.full((done, *shape), np.nan))[:done]
            self[name] = np.concatenate([column, np.asarray(logs.get(name, np.full(shape, np.nan)))[None]])

    def to_dict(self) -> dict[str, Any]:
        """The entries as lists, with None for NaN and infinity, which JSON lacks."""
        return without_nan(self)

    def keys(self) -> Any:
        """The names of the columns; iterating over the history gives the names of the entries."""
        found = {
            "/".join([name, *map(str, at)]): values for name, values in self.items() for at in np.ndindex(values.shape[1:])
        }
        return found.keys()

    def __missing__(self, name: str) -> Any:
        entry, _, number = name.rpartition("/") if isinstance(name, str) else ("", "", "")
        if number.isdecimal() and (entry in self or entry.rpartition("/")[2].isdecimal()):
            values = self[entry]
            if values.ndim > 1 and int(number) < values.shape[1]:
                return values[:, int(number)]
        raise KeyError(f"no {name!r} in the history{similar_metric(name, self)}It has: {', '.join(self)}.")

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        lines = [f"{name:{width}} {np.array2string(v, precision=4, threshold=8, edgeitems=3)}" for name, v in self.items()]
        return "\n".join([f"History of {self.epochs} epochs", *lines])

    def _repr_html_(self) -> str:
        return show(self)


def without_nan(value: Any) -> Any:
    """A value of JSON's types for a tree of dicts, lists and arrays; None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    if hasattr(value, "dtype"):
        return without_nan(np.asarray(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find_metric(logs: Mapping[str, Any], name: str, who: str) -> Any:
    """The value of a metric that `who` needs, or a KeyError with the names that there are."""
    if name in logs:
        return logs[name]
    without = _meant(name).startswith(_VALIDATION) and not any(known.startswith(_VALIDATION) for known in logs)
    remedy = " Give the run validation data: fm.fit(…, validation=…)." if without else ""
    raise KeyError(
        f"{who}: no metric {name!r}{similar_metric(name, logs)}The metrics are: {', '.join(logs) or 'none'}.{remedy}"
    )


def similar_metric(name: Any, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown metric, with a similar one; `val_loss` is one of the validation."""
    if not isinstance(name, str):
        return ". "
    meant = _meant(name)
    if meant.startswith(_VALIDATION):
        names = [each for each in names if each.startswith(_VALIDATION)] or [meant]
    near = difflib.get_close_matches(meant, names, n=1)
    return f"; did you mean {near[0]!r}? " if near and near[0] != name else ". "


def best_direction(name: str, mode: str | None, who: str) -> str:
    """Which values of a metric are the best, "max" or "min", by the mode that `who` was given, or by the metric's name.

    Raises:
        ValueError: if neither tells; for another mode; and for the name of a validation metric in another library.
    """
    meant = _meant(name)
    if meant != name and meant.startswith(_VALIDATION):
        usual = [f"{_VALIDATION}loss", f"{_VALIDATION}accuracy"]
        meant = next(iter(difflib.get_close_matches(meant, usual, n=1, cutoff=0.8)), meant)
        raise ValueError(f"{who}.metric must be a name in the history, got {name!r}; write {meant!r}.")
    if mode not in ("max", "min", None):
        raise ValueError(f"{who}.mode must be 'max' or 'min', got {mode!r}.")
    highest = highest_is_best(name)
    if mode is None and highest is None:
        raise ValueError(
            f"{who}: whether a higher {name!r} is better is unknown; write {who}({name!r}, mode='max') or mode='min'."
        )
    return mode or ("max" if highest else "min")


def _meant(name: str) -> str:
    """The name of a metric here, from that in another library."""
    return _PREFIX.sub(lambda match: _VALIDATION if match[2] else "", name)


def highest_is_best(name: str) -> bool | None:
    """Whether the highest value of a metric is the best one, by its name; None if the name does not tell.

    >>> from fulmen.train.history import highest_is_best
    >>> highest_is_best("validation/accuracy"), highest_is_best("loss"), highest_is_best("norm")
    (True, False, None)
    """
    name = name.lower()
    if any(word in name for word in _LOWER_IS_BETTER):
        return False
    return True if any(word in name for word in _HIGHER_IS_BETTER) else None

"""The folder in which a robustness evaluation keeps what it has computed, so that a stopped one can continue."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr

from fulmen.core.structure import pack
from fulmen.train.checkpoints.atomic_files import replacing
from fulmen.train.checkpoints.saved_arrays import described, from_numpy, to_numpy


def digest(tree: Any) -> str:
    """A hash of all arrays and numbers of a tree."""
    found = hashlib.sha256()
    for leaf in pack(tree)[0]:
        value = to_numpy(leaf)
        found.update(f"{leaf.dtype}{leaf.shape}".encode() + value.tobytes())
    return found.hexdigest()


class Folder:
    """The results of an evaluation by batch, and of its further attacks.

    Args:
        path: the folder; None keeps nothing.
        about: what determines the results; a folder of another evaluation is refused.

    Raises:
        ValueError: if the folder holds the results of another evaluation.
    """

    def __init__(self, path: Any, about: dict[str, Any] | None = None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        settings: dict[str, Any] = json.loads(json.dumps(about or {}, default=str))
        file = self.path / "evaluation.json"
        if file.exists():
            stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            names = {**stored, **settings}
            different = sorted(name for name in names if stored.get(name) != settings.get(name))
            if different:
                raise ValueError(
                    f"resume: {self.path} holds the results of another evaluation, which differs in {', '.join(different)}. "
                    "Pass the arguments of that evaluation, or another folder."
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"resume must be a folder of `robustness`, or a new or empty one, got {self.path}.")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            _replace(file, lambda stream: stream.write(json.dumps(settings, indent=1).encode()))

    def save_batch(self, number: int, result: dict[str, Any], counts: list[dict[str, Any]]) -> None:
        """Keep the results of a batch, all but its clean inputs."""
        if self.path is None:
            return
        kept = {**result, "x": jax.tree.leaves(result["x"]), "clean": None}
        flat, _ = jax.tree_util.tree_flatten_with_path(kept)
        arrays: dict[str, Any] = {keystr(path, simple=True, separator="/"): to_numpy(leaf) for path, leaf in flat}
        _replace(self._batch(number), lambda stream: np.savez(stream, counts=json.dumps(counts), **arrays))

    def load_batch(self, number: int, clean: Any) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """The results of a batch, whose clean inputs are `clean`, and the counts of its attacks; or None."""
        if self.path is None or not self._batch(number).exists():
            return None
        with np.load(self._batch(number), allow_pickle=False) as stored:
            arrays = dict(stored)
        counts = json.loads(str(arrays.pop("counts")))
        result: dict[str, Any] = {"clean": clean}
        for name, value in arrays.items():
            group, _, key = name.partition("/")
            if not key:
                result[name] = value
            elif group != "x":
                result.setdefault(group, {})[key] = value
        flat, structure = jax.tree.flatten(clean)
        leaves = [from_numpy(arrays[f"x/{i}"], like, described(f"x/{i}", like, "")) for i, like in enumerate(flat)]
        return {**result, "x": structure.unflatten(leaves)}, counts

    def remembered(self, name: str, attacks: list[Any], rows: np.ndarray, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The result of some attacks on some rows, computed if the folder does not have it."""
        if self.path is None:
            return compute()
        text = f"{name}\n{attacks!r}\n{digest(attacks)}\n{rows.tolist()}"
        file = self.path / f"further-{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy"
        if not file.exists():
            value = compute()
            _replace(file, lambda stream: np.save(stream, value))
        return np.load(file, allow_pickle=False)

    def _batch(self, number: int) -> Path:
        assert self.path is not None
        return self.path / f"batch-{number:05d}.npz"


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file so that it is complete or missing, also after a crash."""
    with replacing(path, "robustness") as descriptor, os.fdopen(descriptor, "wb", closefd=False) as stream:
        write(stream)

"""The list of a checkpoint's files with their sizes and digests, and its reading from a file that may hold anything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

from fulmen.core.immutable import Immutable
from fulmen.train.checkpoints.saved_arrays import DamagedFileError

MANIFEST = "manifest.json"
_FORMAT = 1
_LATEST = 2**53  # steps, and seconds since 1970
_SHA256 = re.compile("[0-9a-f]{64}")


class Manifest(Immutable):
    """What a checkpoint holds.

    Attributes:
        step: the number of steps of the state.
        time: when it was saved, in seconds since 1970.
        store: the name of the store that wrote the state.
        metrics: the metrics that were measured at this step.
        best: the metrics by which the run keeps its best checkpoints, with "max" or "min".
        files: the size and the SHA-256 of each file, by its path in the folder.
    """

    step: int
    time: float
    store: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)

    def encoded(self) -> bytes:
        """The only contents of a file that are read as this manifest."""
        fields = {"format": _FORMAT, **dataclasses.asdict(self)}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return json.dumps({**fields, "sha256": digest}, sort_keys=True).encode()

    def verify(self, files: Any, *, digests: bool = True) -> None:
        """Raise a DamagedFileError unless `LocalFiles` or `RemoteFiles` have the sizes, and by option the digests, of the manifest."""
        present = files.sizes({name.partition("/")[0] for name in self.files if "/" in name})
        for name, (size, digest) in self.files.items():
            if name not in present:
                raise DamagedFileError(f"{files}/{name} is missing, or is not a regular file")
            if present[name] != size:
                raise DamagedFileError(f"{files}/{name} is damaged: it has {present[name]} bytes instead of {size}")
            if digests and files.digest(name) != digest:
                raise DamagedFileError(f"{files}/{name} is damaged: it does not have the SHA-256 in {MANIFEST}")
        added = sorted(name for name in present.keys() - self.files if "/" in name)  # others, such as notes, are not read
        if added:
            raise DamagedFileError(f"{files}/{added[0]} is not in {MANIFEST}, so it is not part of the checkpoint")


def read_manifest(files: Any, step: int) -> Manifest:
    """The manifest of the checkpoint of a step, or a DamagedFileError if it is not as it was written."""
    path = f"{files}/{MANIFEST}"
    if MANIFEST not in files.sizes(()):
        raise DamagedFileError(f"{path} is missing, or is not a regular file")
    content = files.read(MANIFEST)
    fields = parsed(path, content)
    number = fields.pop("format", None)
    fields.pop("sha256", None)
    if isinstance(number, int) and number > _FORMAT:
        raise DamagedFileError(
            f"{path} has format {number}, which a later version of fulmen wrote: pip install --upgrade fulmen"
        )
    try:
        fields["files"] = {name: tuple(value) for name, value in fields["files"].items()}
        manifest = Manifest(**fields)
        if not _is_valid(manifest) or manifest.encoded() != content:
            raise ValueError("another digest")
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError):
        raise DamagedFileError(f"{path} is damaged: its contents do not have the SHA-256 in it") from None
    if manifest.step != step:
        raise DamagedFileError(f"{path} is damaged: it is of step {manifest.step}")
    return manifest


def _is_valid(manifest: Manifest) -> bool:
    """Whether all fields have their types, so that whoever uses a manifest need not check them."""
    numbers = isinstance(manifest.step, int) and isinstance(manifest.time, float) and 0 <= manifest.step < _LATEST
    return (
        numbers
        and 0 <= manifest.time < _LATEST
        and isinstance(manifest.store, str)
        and all(isinstance(value, float) for value in manifest.metrics.values())
        and all(value in ("max", "min") for value in manifest.best.values())
        and all(isinstance(size, int) and _SHA256.fullmatch(digest) for size, digest in manifest.files.values())
        and all(is_inside(name) for name in manifest.files)
    )


def is_inside(name: str) -> bool:
    """Whether a path leads to a file in the folder that it is relative to."""
    return all(part not in ("", ".", "..") and not set(part) & set("\\:\0") for part in name.split("/"))


def parsed(path: str, content: bytes) -> dict[str, Any]:
    """The object in the contents of a JSON file, or a DamagedFileError if there is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # also for an integer of more digits than Python converts
        raise DamagedFileError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path} is damaged: it is not a JSON object")
    return found


def finite_numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics that are single finite numbers."""
    return {name: float(v) for name, v in values.items() if getattr(v, "ndim", 0) == 0 and math.isfinite(v)}

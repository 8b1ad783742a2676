"""The list of a checkpoint's files with their sizes and digests, and the reading of files that may hold anything."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from fulmen.train.checkpoints.saved_arrays import DamagedFileError

MANIFEST = "manifest.json"
_FORMAT = 1
_LARGEST_JSON = 1 << 28  # bytes of a file that is read as JSON
_MOST_DIGITS = 100  # of an integer
_LATEST = 2**53  # steps, and seconds since 1970
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Manifest:
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

    def verify(self, folder: Path, *, digests: bool = True) -> None:
        """Raise unless the files of a checkpoint are those that were written.

        Args:
            folder: of the checkpoint.
            digests: whether to read the files and compare their digests; otherwise only their sizes.

        Raises:
            DamagedFileError: with the name of the file.
        """
        folders = {name.partition("/")[0] for name in self.files if "/" in name}
        present = set(files_in(folder, folders))
        for name, (size, digest) in self.files.items():
            if name not in present:
                raise DamagedFileError(f"{folder / name} is missing, or is not a regular file")
            found = os.lstat(folder / name).st_size
            if found != size:
                raise DamagedFileError(f"{folder / name} is damaged: it has {found} bytes instead of {size}")
            if digests and file_digest(folder / name) != digest:
                raise DamagedFileError(f"{folder / name} is damaged: it does not have the SHA-256 in {MANIFEST}")
        added = sorted(name for name in present - set(self.files) if "/" in name)  # others, such as notes, are not read
        if added:
            raise DamagedFileError(f"{folder / added[0]} is not in {MANIFEST}, so it is not part of the checkpoint")


def files_in(folder: Path, inside: Container[str] | None = None) -> list[str]:
    """The paths of the regular files in a folder and in the folders in it, with "/"; links are not followed.

    Args:
        folder: an existing folder.
        inside: the names of the folders in it to look into; None for all.
    """
    found, left = [], [""]
    while left:  # not by recursion, which deep folders would exhaust
        above = left.pop()
        with os.scandir(folder / above) as entries:
            for entry in entries:
                name = f"{above}/{entry.name}" if above else entry.name
                if entry.is_file(follow_symlinks=False):
                    found.append(name)
                elif entry.is_dir(follow_symlinks=False) and (above or inside is None or name in inside):
                    left.append(name)
    return sorted(found)


def listed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """The size and the digest of each file of a checkpoint that was written, for its manifest."""
    return {name: (os.lstat(folder / name).st_size, file_digest(folder / name)) for name in files_in(folder)}


def read_manifest(folder: Path, step: int) -> Manifest:
    """The manifest of the checkpoint of a step, which may hold anything.

    Raises:
        DamagedFileError: if it is not as it was written.
    """
    path = folder / MANIFEST
    if MANIFEST not in files_in(folder, ()):
        raise DamagedFileError(f"{path} is missing, or is not a regular file")
    content = read_bytes(path)
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DamagedFileError: if it is not one.
    """
    return parsed(path, read_bytes(path))


def parsed(path: Path, content: bytes) -> dict[str, Any]:
    """The object in the contents of a JSON file."""
    try:
        found = json.loads(content, parse_int=_integer)
    except (ValueError, RecursionError):
        raise DamagedFileError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path} is damaged: it is not a JSON object")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def read_bytes(path: Path) -> bytes:
    """The contents of a small file."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_JSON:
            raise DamagedFileError(f"{path} is damaged: it is larger than {_LARGEST_JSON} bytes")
        return file.read(_LARGEST_JSON)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[Any]:
    """Open a file for reading that is neither a link, which could lead out of the folder, nor a pipe, which could block."""
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | more)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedFileError(f"{path} is not a regular file")
        yield file


def finite_numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics that are single finite numbers."""
    return {name: float(v) for name, v in values.items() if getattr(v, "ndim", 0) == 0 and math.isfinite(v)}

"""Arrays in files, of which only those rows are read that a batch has."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fulmen.core.verbs import batches, steps_per_epoch
from fulmen.data.arrays import count, cut, cuts
from fulmen.dispatching.registry import dispatch

__all__ = ["Mapped", "open"]

_LOCAL_HEADER = 30  # bytes, of a zip file's entry before its name


class Mapped:
    """Arrays that share their first axis, some of which are on disk: looked at batch by batch.

    Args:
        arrays: a memory-mapped array, or a tuple, list, dict or `Batch` with some.
    """

    def __init__(self, arrays: Any) -> None:
        self.arrays = arrays


@dispatch
def batches(data: Mapped, plan, epoch, start=0):
    return cut(data.arrays, plan, epoch, start)


@dispatch
def steps_per_epoch(data: Mapped, plan):
    return cuts(count(data.arrays), plan)


def open(path: str | os.PathLike[str]) -> Any:
    """An array in a file of `np.save`, or the arrays of one of `np.savez`, without reading them.

    A run reads the rows of each batch, and checks them then; nothing is unpickled.

    Args:
        path: of an `.npy` or an `.npz` file.

    Returns:
        An `np.memmap`, or a dict of them by name. `(fm.data.open("x.npy"), fm.data.open("y.npy"))` is data, and so is the dict
        of a file with `x` and `y`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for other files, damaged ones, compressed ones (whose parts cannot be read by themselves) and objects.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "data.npz"
    ...     np.savez(path, x=np.ones((4, 2), np.float32), y=np.arange(4))
    ...     {name: array.shape for name, array in fm.data.open(path).items()}
    {'x': (4, 2), 'y': (4,)}
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}; an .npy or .npz file was expected.")
    if path.suffix == ".npz" or zipfile.is_zipfile(path):
        return _open_npz(path)
    with path.open("rb") as file:
        return _mapped(path, file, path.stat().st_size, "")


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is no .npz file, or is damaged: {error}. np.savez({path.name!r}, x=…, y=…) writes one."
        ) from None
    found = {}
    with archive, path.open("rb") as file:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"{path} is compressed, so that no part of {name!r} can be read by itself. Write it by np.savez, or read all "
                    "of it: dict(np.load(path))."
                )
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER)
            sizes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
            begin = entry.header_offset + _LOCAL_HEADER + sum(sizes)
            file.seek(begin)
            found[name] = _mapped(path, file, begin + entry.file_size, f"{name!r} in ")
    return found


def _mapped(path: Path, file: Any, end: int, name: str) -> np.ndarray:
    """The array whose header begins where a file is open, and whose numbers go on to `end`."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name}{path} is no array that np.save wrote, or is damaged: {error}.") from None
    if dtype.hasobject:
        raise ValueError(f"{name}{path} holds Python objects, which are not unpickled; an array of numbers was expected.")
    begin, expected = file.tell(), int(np.prod(shape)) * dtype.itemsize
    if end - begin != expected:
        raise ValueError(
            f"{name}{path} is truncated or damaged: {expected} bytes of {dtype}{list(shape)} were expected, and {end - begin} found."
        )
    if not expected:  # of which there is nothing to be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape, "F" if by_columns else "C")

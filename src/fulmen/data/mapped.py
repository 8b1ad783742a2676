"""Memory-mapped arrays in files: a run reads only the rows of each batch."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_LOCAL_HEADER = 30  # bytes of a zip entry before its name


def open(path: str | os.PathLike[str]) -> Any:
    """Open the array of an `.npy` file, or the arrays of an `.npz` file, without reading them.

    A run reads and checks the rows of each batch. Nothing is unpickled.

    Args:
        path: the path of an `.npy` or `.npz` file.

    Returns:
        An `np.memmap`, or a dict of them by name. `(fm.data.open("x.npy"), fm.data.open("y.npy"))` is data, and so is the dict
        of a file with `x` and `y`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for other formats, damaged files, compressed files and arrays of Python objects.

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
        raise FileNotFoundError(f"{path} {kind}; give the path of an .npy or .npz file.")
    if path.suffix == ".npz" or zipfile.is_zipfile(path):
        return _open_npz(path)
    with path.open("rb") as file:
        return _mapped(path, file, path.stat().st_size, "")


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not an .npz file, or is damaged: {error}. Write one by np.savez({path.name!r}, x=…)."
        ) from None
    found = {}
    with archive, path.open("rb") as file:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"{path} is compressed, so {name!r} cannot be memory-mapped. Write the file by np.savez, or read all of it: "
                    "dict(np.load(path))."
                )
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER)
            sizes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
            begin = entry.header_offset + _LOCAL_HEADER + sum(sizes)
            file.seek(begin)
            found[name] = _mapped(path, file, begin + entry.file_size, f"{name!r} in ")
    return found


def _mapped(path: Path, file: Any, end: int, name: str) -> np.ndarray:
    """The array from a file's current position, where its header begins, to the offset `end`."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{name}{path} is not an array written by np.save, or is damaged: {error}.") from None
    if dtype.hasobject:
        raise ValueError(f"{name}{path} holds Python objects, which are not unpickled. Save an array of numbers.")
    begin, expected = file.tell(), int(np.prod(shape)) * dtype.itemsize
    if end - begin != expected:
        raise ValueError(
            f"{name}{path} is truncated or damaged: expected {expected} bytes of {dtype}{list(shape)}, found {end - begin}."
        )
    if not expected:  # an empty range cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", begin, shape, "F" if by_columns else "C")

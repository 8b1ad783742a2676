"""Data sets in the files in which they are published, from a folder that the user has. Nothing is downloaded or unpickled."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np

__all__ = ["cifar10", "mnist", "read_idx"]

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray]

_CLASSES = 10
_KINDS = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SIDE = 32  # pixels
_RECORD = 1 + 3 * _SIDE**2  # a label and an image's channels


def mnist(folder: str | os.PathLike[str]) -> tuple[Arrays, Arrays]:
    """MNIST, or what comes in the same four files (Fashion-MNIST, KMNIST), as they are or with gzip.

    Args:
        folder: has `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two of `t10k`, each perhaps with `.gz`.

    Returns:
        `(train, test)`, each `(x, y)`: x float32 `(n, height, width, 1)` in [0, 1], y int32 `(n,)`.

    Raises:
        FileNotFoundError: saying which file is missing.
        ValueError: for a damaged or truncated file, with what was expected and what was found.
    """
    folder = _folder(folder)
    return _digits(folder, "train"), _digits(folder, "t10k")


def _digits(folder: Path, name: str) -> Arrays:
    paths = [_find(folder, f"{name}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = (read_idx(path) for path in paths)
    for path, array, axes, what in ((paths[0], images, 3, "images"), (paths[1], labels, 1, "labels")):
        if (array.ndim, array.dtype) != (axes, np.uint8):
            raise ValueError(
                f"{path}: the magic number {0x0800 + axes:#010x} of {what} was expected, and that of {array.ndim} axes of "
                f"{array.dtype} found."
            )
    if len(images) != len(labels):
        raise ValueError(f"{paths[1]}: {len(images)} labels were expected, one for each image, and {len(labels)} found.")
    _check_labels(paths[1], labels)
    return (images[..., None] / np.float32(255)).astype(np.float32), labels.astype(np.int32)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, the format of MNIST, as it is or with gzip (http://yann.lecun.com/exdb/mnist).

    Args:
        path: of the file.

    Raises:
        ValueError: for a damaged or truncated file, with what was expected and what was found.
    """
    path = Path(path)
    found = _read(path)
    kind, axes = (found[2], found[3]) if len(found) >= 4 else (0, 0)
    if found[:2] != b"\0\0" or kind not in _KINDS or not axes:
        raise ValueError(
            f"{path}: an IDX file was expected, which begins with 00 00, a type and a number of axes, and {found[:4].hex(' ')} found."
        )
    begin = 4 + 4 * axes
    if len(found) < begin:
        raise ValueError(f"{path} is truncated: {begin} bytes of header were expected, and {len(found)} found.")
    shape = tuple(int(n) for n in np.frombuffer(found, ">u4", axes, 4))
    dtype = np.dtype(_KINDS[kind])
    expected = begin + dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(found) != expected:
        state = "truncated" if len(found) < expected else "damaged"
        raise ValueError(f"{path} is {state}: {expected} bytes were expected for {list(shape)}, and {len(found)} found.")
    array = np.frombuffer(found, dtype, offset=begin).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def cifar10(folder: str | os.PathLike[str]) -> tuple[Arrays, Arrays]:
    """CIFAR-10 from its binary version, cifar-10-binary.tar.gz unpacked.

    Args:
        folder: has `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or a folder `cifar-10-batches-bin` with them.

    Returns:
        `(train, test)`, each `(x, y)`: x float32 `(n, 32, 32, 3)` in [0, 1], y int32 `(n,)`.

    Raises:
        FileNotFoundError: saying which file is missing.
        ValueError: for a damaged or truncated file, with what was expected and what was found.
    """
    folder = _folder(folder)
    inside = folder / "cifar-10-batches-bin"
    folder = inside if inside.is_dir() else folder
    names = [[f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]]
    if not (folder / names[1][0]).is_file() and (folder / "test_batch").is_file():
        raise FileNotFoundError(
            f"{folder} has the Python version of CIFAR-10, whose pickles are not read; the binary version was expected, "
            "cifar-10-binary.tar.gz."
        )
    train, test = ([_pictures(_find(folder, name)) for name in some] for some in names)
    sizes = [len(y) for _, y in train]
    if len({*sizes}) > 1:
        raise ValueError(
            f"{folder} is truncated or damaged: as many images in each of {', '.join(names[0])} were expected, and "
            f"{', '.join(map(str, sizes))} found."
        )
    return _joined(train), _joined(test)


def _joined(parts: list[Arrays]) -> Arrays:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _pictures(path: Path) -> Arrays:
    found = _read(path)
    if not found or len(found) % _RECORD:
        raise ValueError(
            f"{path} is truncated or damaged: a multiple of {_RECORD} bytes was expected, a label and 3 x 32 x 32 of an image, and "
            f"{len(found)} found."
        )
    records = np.frombuffer(found, np.uint8).reshape(-1, _RECORD)
    _check_labels(path, records[:, 0])
    images = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return (images / np.float32(255)).astype(np.float32), records[:, 0].astype(np.int32)


def _check_labels(path: Path, labels: np.ndarray) -> None:
    if len(labels) and labels.max() >= _CLASSES:
        at = int(labels.argmax())
        raise ValueError(
            f"{path} is damaged: labels from 0 to {_CLASSES - 1} were expected, and {labels[at]} found at example {at}."
        )


def _folder(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {kind}; the folder with the data set's files was expected.")
    return folder


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    here = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(f"{folder} has no file {name}, nor {name}.gz; it has: {here}.")


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.") from None
        raise ValueError(f"{path} is no complete gzip file: {error}.") from None

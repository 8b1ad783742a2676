"""Published data sets, read from a folder on disk in their original file formats. Nothing is downloaded or unpickled."""

import gzip
import os
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray]

_CLASSES = 10
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SIDE = 32  # pixels
_RECORD = 1 + 3 * _SIDE**2  # bytes: a label and the channels of an image


def mnist(folder: str | os.PathLike[str]) -> tuple[Arrays, Arrays]:
    """MNIST, or a data set in the same four files (Fashion-MNIST, KMNIST), plain or compressed by gzip.

    Args:
        folder: has `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same two for `t10k`, each with or without `.gz`.

    Returns:
        `(train, test)`, each `(x, y)`: x float32 `(n, height, width, 1)` in [0, 1], y int32 `(n,)`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or truncated.
    """
    folder = _folder(folder)
    return _digits(folder, "train"), _digits(folder, "t10k")


def _digits(folder: Path, name: str) -> Arrays:
    paths = [_find(folder, f"{name}-{content}") for content in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = (read_idx(path) for path in paths)
    for path, array, axes in ((paths[0], images, 3), (paths[1], labels, 1)):
        if (array.ndim, array.dtype) != (axes, np.uint8):
            raise ValueError(
                f"{path} must have {axes} axes of uint8 (magic {0x0800 + axes:#010x}), got {array.ndim} of {array.dtype}."
            )
    if len(images) != len(labels):
        raise ValueError(f"{paths[1]} must have one label for each of the {len(images)} images, got {len(labels)} labels.")
    _check_labels(paths[1], labels)
    return (images[..., None] / np.float32(255)).astype(np.float32), labels.astype(np.int32)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, the format of MNIST (http://yann.lecun.com/exdb/mnist), plain or compressed by gzip.

    Args:
        path: the path of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is damaged or truncated.
    """
    path = Path(path)
    content = _read(path)
    kind, axes = (content[2], content[3]) if len(content) >= 4 else (0, 0)
    if content[:2] != b"\0\0" or kind not in _TYPES or not axes:
        raise ValueError(
            f"{path} is not an IDX file: it must begin with 00 00, a type and a number of axes, got {content[:4].hex(' ')}."
        )
    begin = 4 + 4 * axes
    if len(content) < begin:
        raise ValueError(f"{path} is truncated: expected {begin} bytes of header, found {len(content)}.")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, 4))
    dtype = np.dtype(_TYPES[kind])
    expected = begin + dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "damaged"
        raise ValueError(f"{path} is {state}: expected {expected} bytes for {list(shape)}, found {len(content)}.")
    array = np.frombuffer(content, dtype, offset=begin).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def cifar10(folder: str | os.PathLike[str]) -> tuple[Arrays, Arrays]:
    """CIFAR-10 from its binary version, the unpacked cifar-10-binary.tar.gz.

    Args:
        folder: has `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or a folder `cifar-10-batches-bin` with them.

    Returns:
        `(train, test)`, each `(x, y)`: x float32 `(n, 32, 32, 3)` in [0, 1], y int32 `(n,)`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or truncated.
    """
    folder = _folder(folder)
    inside = folder / "cifar-10-batches-bin"
    folder = inside if inside.is_dir() else folder
    names = [[f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]]
    if not (folder / names[1][0]).is_file() and (folder / "test_batch").is_file():
        raise FileNotFoundError(
            f"{folder} has the Python version of CIFAR-10, whose pickles are not read. Use the binary version, cifar-10-binary.tar.gz."
        )
    train, test = ([_pictures(_find(folder, name)) for name in some] for some in names)
    sizes = [len(y) for _, y in train]
    if len({*sizes}) > 1:
        raise ValueError(
            f"{folder} is truncated or damaged: {', '.join(names[0])} must have the same number of images, got "
            f"{', '.join(map(str, sizes))}."
        )
    return _joined(train), _joined(test)


def _joined(parts: list[Arrays]) -> Arrays:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _pictures(path: Path) -> Arrays:
    content = _read(path)
    if not content or len(content) % _RECORD:
        raise ValueError(f"{path} is truncated or damaged: expected a multiple of {_RECORD} bytes, found {len(content)}.")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    _check_labels(path, records[:, 0])
    images = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return (images / np.float32(255)).astype(np.float32), records[:, 0].astype(np.int32)


def _check_labels(path: Path, labels: np.ndarray) -> None:
    if len(labels) and labels.max() >= _CLASSES:
        index = int(labels.argmax())
        raise ValueError(
            f"{path} is damaged: labels must be from 0 to {_CLASSES - 1}, got {labels[index]} at example {index}."
        )


def _folder(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {kind}; give the folder with the files of the data set.")
    return folder


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(f"{folder} has no file {name}, nor {name}.gz; it has: {present}.")


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.") from None
        raise ValueError(f"{path} is not a complete gzip file: {error}.") from None

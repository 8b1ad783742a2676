"""`Bucket`: the objects below a URL."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fulmen.dispatching.lazy_libraries import installed
from fulmen.train.checkpoints.manifest import is_inside

_BLOCK = 1 << 26  # bytes that are read at a time
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}


class Bucket:
    """The objects below a URL such as "s3://bucket/run", by their paths from it; every error of a call is an OSError with the URL.

    Raises:
        ImportError: without the package for its kind of URLs.
        ValueError: for a URL of an unknown kind, or with a character of patterns.
    """

    def __init__(self, url: str) -> None:
        self.url, kind = url, url.partition(":")[0]
        if {*url} & {*"*?["}:  # a removal would take them for patterns
            raise ValueError(f"the URL of a directory must have no *, ? or [, got {url!r}; choose another name.")
        fsspec = installed("fsspec.core", "checkpoints in an object store", "orbax")
        try:
            self._system, self._root = fsspec.url_to_fs(self.url)
        except ImportError as error:
            package = _PACKAGES.get(kind)
            remedy = f"need the package {package}: pip install {package}" if package else f"need another package: {error}"
            raise ImportError(f"{kind}:// URLs {remedy}.") from error
        except ValueError as error:
            raise ValueError(f"directory must be a path or a URL such as s3://bucket/run, got {url!r}: {error}.") from None

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return getattr(self._system, method)(*args, **options)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, str(error), self.url) from error
        except PermissionError as error:
            raise PermissionError(errno.EACCES, str(error), self.url) from error
        except Exception as error:  # each backend has its own, such as botocore's for a server that does not answer
            number = getattr(error, "errno", None) or errno.EIO  # that of a full disk, to which a checkpoint is downloaded
            raise OSError(number, f"{type(error).__name__}: {error}", self.url) from error

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _entries(self) -> list[dict[str, Any]]:
        self._system.invalidate_cache()  # other processes write too
        with contextlib.suppress(FileNotFoundError):
            return self._call("ls", self._root, detail=True)
        return []

    def exists(self) -> bool:
        """Whether there are objects."""
        return bool(self._entries())

    def folders(self) -> set[str]:
        """The names of the folders."""
        return {each["name"].rstrip("/").rpartition("/")[2] for each in self._entries() if each["type"] == "directory"}

    def sizes(self, folder: str) -> dict[str, int]:
        """The sizes of the objects in a folder and in the folders in it."""
        self._system.invalidate_cache()
        above, found = f"{self._at(folder)}/", self._call("find", self._at(folder), detail=True)
        sizes = {name.removeprefix(above): entry["size"] for name, entry in found.items() if name.startswith(above)}
        return {name: size for name, size in sizes.items() if is_inside(name)}

    def read(self, name: str) -> bytes:
        return self._call("cat_file", self._at(name))

    def write(self, name: str, content: bytes) -> None:
        self._call("pipe_file", self._at(name), content)

    def digest(self, name: str, size: int) -> str:
        """The SHA-256 of an object's first bytes."""
        digest = hashlib.sha256()
        for start in range(0, size, _BLOCK):
            digest.update(self._call("cat_file", self._at(name), start=start, end=min(start + _BLOCK, size)))
        return digest.hexdigest()

    def upload(self, folder: Path, into: str, names: Iterable[str]) -> None:
        """Write files of a local folder as objects."""
        listed = list(names)
        self._call("put", [os.fspath(folder / name) for name in listed], [self._at(f"{into}/{name}") for name in listed])

    def download(self, folder: str, into: Path, names: Iterable[str]) -> None:
        """Write objects of a folder as files; their names must be `is_inside`."""
        listed = list(names)
        for above in {(into / name).parent for name in listed}:
            above.mkdir(parents=True, exist_ok=True)
        self._call("get", [self._at(f"{folder}/{name}") for name in listed], [os.fspath(into / name) for name in listed])

    def remove(self, folder: str, names: Iterable[str]) -> None:
        """Remove objects of a folder; some may be missing."""
        listed = [self._at(f"{folder}/{name}") for name in names]
        with contextlib.suppress(FileNotFoundError):
            if listed:
                self._call("rm", listed)

    def remove_folder(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._call("rm", self._at(folder), recursive=True)

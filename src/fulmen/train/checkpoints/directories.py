"""Which directory of checkpoints a path or URL is."""

from __future__ import annotations

import os
from pathlib import Path

from fulmen.train.checkpoints.atomic_files import local_path, remote_url
from fulmen.train.checkpoints.local_directory import Directory, LocalDirectory
from fulmen.train.checkpoints.remote_directory import RemoteDirectory


def place_of(name: str, value: str | os.PathLike[str]) -> Path | str:
    """The path, or the URL of an object store, that an argument is, or an error for anything else."""
    url = remote_url(value)
    if url is not None and url.startswith(("file:", "local:")):
        raise ValueError(f"{name} must be a path or the URL of an object store, got {url!r}; write the path.")
    return url or local_path(name, value)


def directory_at(value: str | os.PathLike[str], name: str = "directory") -> Directory:
    """The directory at a path or URL, which need not exist."""
    place = place_of(name, value)
    return LocalDirectory(place) if isinstance(place, Path) else RemoteDirectory(place)

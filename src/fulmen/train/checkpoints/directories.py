"""Which directory of checkpoints a path or URL is."""

from __future__ import annotations

import os
from pathlib import Path

from fulmen.train.checkpoints.atomic_files import local_path, remote_url
from fulmen.train.checkpoints.local_directory import Directory, LocalDirectory
from fulmen.train.checkpoints.remote_directory import RemoteDirectory


def place_of(name: str, value: str | os.PathLike[str]) -> Path | str:
    """The path, or the URL of an object store, that an argument is, or an error for anything else."""
    return remote_url(value) or local_path(name, value)


def directory_at(value: str | os.PathLike[str], name: str = "directory") -> Directory:
    """The directory at a path or URL, which need not exist."""
    place = place_of(name, value)
    return LocalDirectory(place) if isinstance(place, Path) else RemoteDirectory(place)

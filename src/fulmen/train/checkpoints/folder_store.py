"""`FolderStore`: the state of a checkpoint as one file of arrays. A store is a type with these methods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from fulmen.core.state import State
from fulmen.devices.processes import is_first
from fulmen.train.checkpoints.file_header import described_tree, host_copy, safetensors, write_arrays
from fulmen.train.checkpoints.state_file import read_tree

_FILE = "state.safetensors"
_GATHERED = 2**31  # bytes of arrays that several processes have parts of; each of them gets all of these arrays


class FolderStore:
    """Writes a state into the file `state.safetensors`, as `fm.save` does.

    With several processes the first one writes, and the arrays that all of them have parts of may have up to 2 GiB.
    """

    name = "safetensors"

    def require(self) -> None:
        """Raise ImportError before a run without the package `safetensors`: what is written must be readable."""
        safetensors()

    def snapshot(self, state: State) -> Any:
        """A copy of the state's arrays that later steps do not change, for `write`; the run waits for it.

        Raises:
            ValueError: for larger arrays that other processes have parts of.
        """
        arrays = [leaf for leaf in state.arrays if isinstance(leaf, jax.Array)]
        parted = [leaf for leaf in arrays if not leaf.is_fully_addressable]
        if (size := sum(leaf.nbytes for leaf in parted)) > _GATHERED:
            raise ValueError(
                f"the arrays that several processes share must have at most 2 GiB to be written into one file, got "
                f"{size / 2**30:.1f} GiB. Write fm.Checkpoint(directory, store=fm.OrbaxStore()), by which each process writes its part."
            )
        for leaf in arrays:
            if leaf.is_fully_addressable:
                leaf.copy_to_host_async()  # all at once
        header, leaves = described_tree(state)
        return header, {name: host_copy(leaf) for name, leaf in leaves.items()}

    def write(self, folder: Path, snapshot: Any) -> None:
        """Write what `snapshot` returned into a new folder, and flush it to the disk."""
        if not is_first():
            return
        with open(folder / _FILE, "xb") as file:
            write_arrays(file.fileno(), *snapshot)
            os.fsync(file.fileno())

    def read(self, folder: Path, like: Any, inside: str = "") -> Any:
        """The state in the folder of a checkpoint.

        Args:
            folder: of the checkpoint, whose files have the digests of its manifest.
            like: a state of the same structure, or the part of one.
            inside: the path of the part, or "".
        """
        return read_tree(folder / _FILE, like, inside)

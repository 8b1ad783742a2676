"""`FolderStore`: the state of a checkpoint as one file of arrays. A store is a type with these methods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from fulmen.core.state import State
from fulmen.train.checkpoints.file_header import described_tree, host_copy, safetensors, write_arrays
from fulmen.train.checkpoints.state_file import read_tree

_FILE = "state.safetensors"


class FolderStore:
    """Writes a state into the file `state.safetensors`, as `fm.save` does. For states on the devices of one process."""

    name = "safetensors"

    def require(self) -> None:
        """Raise ImportError before a run without the package `safetensors`: what is written must be readable."""
        safetensors()

    def snapshot(self, state: State) -> Any:
        """A copy of the state's arrays that later steps do not change, for `write`; the run waits for it.

        Raises:
            ValueError: for arrays that other processes have parts of.
        """
        for leaf in state.arrays:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                raise ValueError(
                    "the state is distributed over several processes, which write it together: fm.Checkpoint(directory, "
                    "store=fm.OrbaxStore())."
                )
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()  # all at once
        header, leaves = described_tree(state)
        return header, {name: host_copy(leaf) for name, leaf in leaves.items()}

    def write(self, folder: Path, snapshot: Any) -> None:
        """Write what `snapshot` returned into a new folder, and flush it to the disk."""
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

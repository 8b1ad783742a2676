"""`save`, `load` and `FolderStore`: a state as one file of arrays and their description, without code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from fulmen.core import State, is_part, join_path, require_arrays
from fulmen.devices.processes import is_first, wait_for_others
from fulmen.dispatching.warning import warn
from fulmen.train.checkpoints.atomic_files import local_path, replacing
from fulmen.train.checkpoints.file_header import (
    cut_array,
    described_tree,
    host_copy,
    read_header,
    read_value,
    require_same,
    safetensors,
    write_arrays,
)
from fulmen.train.checkpoints.saved_arrays import DamagedFileError, is_data, named_leaves, to_numpy

_FILE = "state.safetensors"
_GATHERED = 2**31  # bytes of arrays that several processes have parts of; each of them gets all of these arrays


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write a state into one file in the safetensors format.

    The file holds the arrays and, as JSON, the path, shape, type, role and SHA-256 of each. It is written under a temporary
    name in the same folder and then renamed, so it is never incomplete. An existing file keeps its permissions, and a symbolic
    link remains one. With several processes all of them must call it, and the first one writes.

    Args:
        path: of the file; missing folders are created.
        state: a `State`, or a component with its arrays.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: if arrays are missing, or are being traced.
        OSError: if the file cannot be written, such as for a full disk; an existing file is then unchanged.
    """
    safetensors()  # what is saved here can be loaded here
    target = local_path("path", path, "; write save(path, state).")
    if not isinstance(state, State):
        require_arrays(state, "save")
    header, leaves = described_tree(state)
    arrays = {name: to_numpy(leaf) for name, leaf in leaves.items()}
    if is_first():
        with replacing(target, "save") as descriptor:
            write_arrays(descriptor, header, arrays)
    wait_for_others(f"save {path}")


def load(path: str | os.PathLike[str], *, like: Any) -> Any:
    """Read a file that `save` wrote. Nothing in it is executed or unpickled.

    Args:
        path: of the file.
        like: a `State` or component of the same structure, such as `setup` returns; its arrays may be
            `jax.ShapeDtypeStruct`s. All but the arrays (sizes, functions, the optimizer's code, the plan) is taken from it.

    Returns:
        `like` with the file's arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if `like` is neither a state nor a component.
        ValueError: if the file is damaged or was not written by `save`, or holds the state of another system: the message
            lists the first differences by path.
    """
    require_tree(like)
    return read_tree(local_path("path", path), like)


def require_tree(like: Any) -> None:
    """Raise unless `like` is a state or a component."""
    if like is None or (not is_part(like) and jax.tree_util.all_leaves([like])):
        got = f"the class {like.__name__}" if isinstance(like, type) else type(like).__name__
        raise TypeError(
            f"like must be what was saved, got {got}; write like=fm.setup(…) with the same arguments, or give the component if "
            "that was saved."
        )


def read_tree(path: Path, like: Any, inside: str = "") -> Any:
    """`load`, where `like` may be the part of what was saved at the path `inside`, such as "system"."""
    library = safetensors()
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {problem}; path must be a file that `fm.save` wrote.")
    open(path, "rb").close()  # without permission to read it, an OSError that says so
    wanted = {name: leaf for name, leaf, _ in named_leaves(like)}
    try:
        with library.safe_open(path, framework="np") as file:
            header = read_header(path, file)
            part = header.part(inside)
            require_same(path, part, like, wanted)
            values = [read_value(file, join_path(inside, name), part.entries[name], leaf) for name, leaf in wanted.items()]
    except library.SafetensorError as error:
        cut = cut_array(path)
        if cut is not None:
            raise DamagedFileError(f"{path} is damaged: it is truncated; the array {cut} is incomplete.") from None
        raise DamagedFileError(f"{path} is damaged, or was not written by `fm.save`: {error}.") from None
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is damaged: {error}.") from None
    if header.format == 1:
        warn(
            f"{path} was written in format 1, which has no digests, so damage to its arrays is not noticed. Save it again to add "
            "them."
        )
    loaded = iter(values)
    return jax.tree.map(lambda leaf: next(loaded) if is_data(leaf) else leaf, like)


# In a checkpoint


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
        """The state in the folder of a checkpoint, whose files have the digests of its manifest, or the part of it at a path.

        `like` is a state of the same structure, or the same part of one.
        """
        return read_tree(folder / _FILE, like, inside)

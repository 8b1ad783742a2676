"""`OrbaxStore`: the state of a checkpoint as Orbax writes it, for distributed states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import State, join_path
from fulmen.devices.processes import is_first, several
from fulmen.dispatching.lazy_libraries import installed
from fulmen.train.checkpoints.atomic_files import write_file
from fulmen.train.checkpoints.checkpoint_files import read_bytes
from fulmen.train.checkpoints.file_header import Header, described_tree, parse_header, require_same
from fulmen.train.checkpoints.saved_arrays import from_numpy, is_data, is_key, named_leaves, to_numpy

_ARRAYS, _DESCRIPTION = "arrays", "state.json"


class OrbaxStore:
    """Writes a state with Orbax: each process writes the parts of arrays that it has, and reads those that it needs.

    It needs the package `orbax-checkpoint`: `pip install "fulmen[orbax]"`. Orbax reads the files of the arrays, so
    load only checkpoints that you trust.

    The directory may be the URL of an object store, such as s3://bucket/run, which needs the package s3fs, or gs://bucket/run,
    which needs gcsfs. Credentials and the server's address are configured as these packages describe, such as by the
    variables AWS_PROFILE and AWS_ENDPOINT_URL. Each process writes its parts into a folder of the system's temporary files and
    uploads them, and downloads a whole checkpoint to read it; the variable TMPDIR chooses a disk with enough space. An object
    store has no locks: if a second run begins in a directory, the first one stops with an error at its next save.

    >>> fm.Checkpoint("runs/large", store=fm.OrbaxStore())
    Checkpoint('runs/large', every=Every(epochs=1), keep=Latest(3), store=OrbaxStore())
    >>> fm.Checkpoint("s3://bucket/run", store=fm.OrbaxStore())
    Checkpoint('s3://bucket/run', every=Every(epochs=1), keep=Latest(3), store=OrbaxStore())
    """

    name = "orbax"

    def require(self) -> None:
        """Raise ImportError before a run without the package `orbax-checkpoint`."""
        _orbax()

    def snapshot(self, state: State) -> Any:
        """A copy of the state's arrays on their devices, for `write`."""
        header, leaves = described_tree(state)
        return header, {name: _stored(leaf) for name, leaf in leaves.items()}

    def write(self, folder: Path, snapshot: Any, *, shared: bool = True) -> None:
        """Write what `snapshot` returned into an existing folder; every process must call it.

        If the folder is not `shared`, each process has one, and their files will be put together.
        """
        header, leaves = snapshot
        orbax = _orbax()
        processes = orbax.options.MultiprocessingOptions(primary_host=0 if shared else None)
        # Of the format ocdbt, the first process puts the others' files together itself, if all have the same folder.
        handler = orbax.PyTreeCheckpointHandler(use_ocdbt=shared, multiprocessing_options=processes)
        with orbax.Checkpointer(handler, multiprocessing_options=processes) as writer:
            # By number: Orbax makes names of files of the keys.
            writer.save((folder / _ARRAYS).absolute(), {str(i): leaf for i, leaf in enumerate(leaves.values())})
        if is_first():
            write_file(folder / _DESCRIPTION, json.dumps(header).encode())

    def read(self, folder: Path, like: Any, inside: str = "") -> Any:
        """The state in the folder of a checkpoint; see `FolderStore.read`."""
        path = folder / _DESCRIPTION
        header = parse_header(path, read_bytes(path).decode(errors="replace"))
        part, wanted = header.part(inside), {name: leaf for name, leaf, _ in named_leaves(like)}
        require_same(path, part, like, wanted)
        values = iter(_restored(folder / _ARRAYS, header, {join_path(inside, name): v for name, v in wanted.items()}))
        return jax.tree.map(lambda leaf: next(values) if is_data(leaf) else leaf, like)

    def __repr__(self) -> str:
        return "OrbaxStore()"


def _orbax() -> Any:
    return installed("orbax.checkpoint", "checkpoints in an OrbaxStore", "orbax", "orbax-checkpoint")


def _stored(leaf: Any) -> Any:
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return jnp.copy(leaf) if _is_global(leaf) else np.array(leaf)


def _is_global(leaf: Any) -> bool:
    """Whether Orbax can write a leaf as a JAX array; in a run of several processes it refuses arrays of a single process."""
    sharding = getattr(leaf, "sharding", None)
    return sharding is not None and (not several() or not sharding.is_fully_addressable)


def _restored(folder: Path, header: Header, wanted: dict[str, Any]) -> list[Any]:
    """The leaves of some paths, each with the sharding of its counterpart in `wanted`."""
    orbax = _orbax()
    numbers = {name: str(i) for i, name in enumerate(header.entries)}
    targets = {numbers[name]: _target(leaf) for name, leaf in wanted.items()}
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as reader:
        options = orbax.checkpoint_utils.construct_restore_args(targets)
        found = reader.restore(
            folder.absolute(), args=orbax.args.PyTreeRestore(item=targets, restore_args=options, partial_restore=True)
        )
    values = {name: found[numbers[name]] for name in wanted}
    return [_leaf(values[name], leaf, header.entries[name]) for name, leaf in wanted.items()]


def _target(leaf: Any) -> Any:
    value = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    if _is_global(leaf):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=leaf.sharding)
    return np.empty(np.shape(value), value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype)


def _leaf(value: Any, like: Any, entry: Any) -> Any:
    if isinstance(value, jax.Array) and not is_key(like) and not getattr(like, "weak_type", False):
        return value
    return from_numpy(to_numpy(value), like, entry)

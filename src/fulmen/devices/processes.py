"""Several processes of `jax.distributed`: each computes the same program with its own devices."""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process writes files and shows progress."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def require_equal(what: str, value: Any) -> None:
    """Raise on all processes a ValueError with their own value if a value, called `what`, differs in its `repr` between them."""
    if several():
        text = repr(value)
        found = np.unique(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))))
        if found.size > 1:
            index, count = jax.process_index(), jax.process_count()
            raise ValueError(f"{what} must be the same in all {count} processes, got in process {index}: {text}.")


def gathered(array: Any) -> Any:
    """The whole array where this process has a part of it; all processes must call it in the same order."""
    parted = isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated)
    return multihost_utils.process_allgather(array, tiled=True) if parted else array


def from_all(value: Any) -> list[Any]:
    """The values of all processes, in their order; each must have one that JSON can hold, and gets it as JSON returns it."""
    text = json.dumps(value).encode()
    if not several():
        return [json.loads(text)]
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = text.ljust(int(sizes.max()))
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))]


def wait_for_others(name: str) -> None:
    """Wait until all processes are here."""
    if several():
        multihost_utils.sync_global_devices(name)


def own_rows(value: Any, sharding: jax.sharding.Sharding) -> Any:
    """A host array that all processes have as one array of all devices, of which each process copies its part."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

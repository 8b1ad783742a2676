"""The arrays of a tree as `save` writes them: their names, and their exact conversion to NumPy and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core import State, by_path, is_array, weakly
from fulmen.core.leaves import leaves
from fulmen.devices.processes import gathered

# The types that both NumPy and safetensors have.
_NATIVE = {"bool", "float16", "float32", "float64", "complex64"} | {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
_NUMBERS = {"bool", "int", "float", "complex"}


class DamagedFileError(ValueError):
    """A file is not as it was written, or its contents contradict its description."""


# Names and types


def named_leaves(tree: Any) -> Iterator[tuple[str, Any, str]]:
    """The path, value and role of every array and number."""
    roles, seen = _roles(tree), dict[str, int]()
    for name, leaf in by_path(tree):
        if not is_data(leaf):
            continue
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # the keys 1 and "1" of a dict
            name = f"{name}#{seen[name]}"
        yield name, leaf, roles.get(name, name.split(".")[0].replace("_", " ") if isinstance(tree, State) else "")


def _roles(tree: Any) -> dict[str, str]:
    if isinstance(tree, State):
        return {f"system.{name}": role for name, role in _roles(tree.system).items()}
    named, known = by_path(tree), leaves(tree)
    if len(named) != len(known):  # a mode is bound, and its leaves have no role
        return {}
    return {name: leaf.role for (name, _), leaf in zip(named, known, strict=True)}


def described(name: str, leaf: Any, role: str) -> dict[str, Any]:
    """The entry of a leaf in a file's description."""
    entry = {"path": name, "shape": list(_shape(leaf)), "dtype": _dtype(leaf), "role": role}
    return {**entry, "implementation": str(jax.random.key_impl(leaf))} if is_key(leaf) else entry


def array_type(entry: Mapping[str, Any]) -> str:
    """The type of a described leaf in errors, such as `float32[4, 3]`."""
    return f"{entry['dtype']}{entry['shape']}" if entry["shape"] else entry["dtype"]


def interchangeable(entry: Mapping[str, Any] | None, leaf: Any) -> bool:
    """Whether one is a Python number and the other an array of shape () and the same kind: `setup` makes numbers arrays."""
    if entry is None or leaf is None or entry["shape"] or _shape(leaf):
        return False
    names = entry["dtype"], _dtype(leaf)
    kinds = [np.dtype(name).kind if name in _NATIVE | _NUMBERS else name for name in names]
    return kinds[0] == kinds[1] and not _NUMBERS.isdisjoint(names)


def is_data(leaf: Any) -> bool:
    """Whether a leaf is saved: an array or a number."""
    return is_array(leaf) or isinstance(leaf, bool | int | float | complex)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key, or an array of them."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype) if is_array(leaf) else type(leaf).__name__


# Conversion, exact to the bit


def to_numpy(leaf: Any) -> np.ndarray:
    """The leaf as an array of a native type: a key as its data, types such as bfloat16 as bytes on another axis."""
    value = np.asarray(gathered(jax.random.key_data(leaf) if is_key(leaf) else leaf), order="C")
    if str(value.dtype) in _NATIVE:
        return value
    return np.frombuffer(value.tobytes(), np.uint8).reshape(*value.shape, value.dtype.itemsize)


def from_numpy(value: np.ndarray, like: Any, entry: Mapping[str, Any]) -> Any:
    """The leaf that `to_numpy` converted, of the type of `like`, or a DamagedFileError if it contradicts its `described` entry."""
    if is_key(like):
        return _key_from_numpy(value, like, entry)
    dtype = np.dtype(like.dtype) if is_array(like) else np.asarray(like).dtype
    if interchangeable(entry, like) and value.shape == ():
        # By the fewest digits, so that a float32 of 0.9 becomes the number 0.9.
        value = np.asarray(float(str(value)) if value.dtype.kind == "f" else value, dtype)
    if str(dtype) not in _NATIVE:
        if value.dtype != np.uint8 or value.shape != (*_shape(like), dtype.itemsize):
            raise DamagedFileError(f"{entry['path']} does not hold the bytes of {dtype}{list(_shape(like))}")
        value = value.view(dtype).reshape(_shape(like))
    if (value.dtype, value.shape) != (dtype, _shape(like)):
        raise DamagedFileError(
            f"{entry['path']} holds {value.dtype}{list(value.shape)}, but is described as {entry['dtype']}{entry['shape']}"
        )
    if isinstance(like, np.ndarray):
        return value
    if isinstance(like, np.generic):
        return value[()]
    return _on_devices_of(like, value) if is_array(like) else type(like)(value.item())


def _key_from_numpy(value: np.ndarray, like: Any, entry: Mapping[str, Any]) -> Any:
    try:
        key = jax.random.wrap_key_data(jnp.array(value), impl=entry.get("implementation"))
    except (TypeError, ValueError, AttributeError):
        raise DamagedFileError(f"{entry['path']} holds no random key") from None
    if key.shape != _shape(like):
        raise DamagedFileError(f"{entry['path']} holds keys of shape {key.shape}")
    return key


def _on_devices_of(like: Any, value: np.ndarray) -> jax.Array:
    """A JAX array with the sharding of `like`, and weakly typed if that is: another type would be another program."""
    # `jnp.array` compiles a program for each shape.
    array = weakly(value) if getattr(like, "weak_type", False) else jax.device_put(value)
    sharding = getattr(like, "sharding", None)
    return array if sharding is None or sharding == array.sharding else jax.device_put(array, sharding)

"""`save` and `load`: a state in one file of arrays and a description of them, and no code."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.component import is_part
from fulmen.core.leaves import components, is_array, leaves, require_arrays
from fulmen.core.state import State, weakly
from fulmen.core.version import __version__

__all__ = ["load", "save"]

_FORMAT = 1
_SHOWN = 5  # differences in an error
_ENTRY = {"path": str, "shape": list, "dtype": str, "role": str}
_NATIVE = {"bool", "float16", "float32", "float64", "complex64"} | {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
_NUMBERS = {"bool", "int", "float", "complex"}


class _Damaged(Exception):
    """What a file says of itself and what it holds do not agree."""


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write a state into one file, in the safetensors format.

    The file holds the arrays and, as JSON, each one's path, shape, type and role. It is complete or not there: it is
    written beside its place and then moved.

    Args:
        path: of the file; missing folders are made.
        state: a `State`, or a component whose arrays are there.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: where arrays are not there yet, or are being traced.
    """
    numpy = _safetensors()[1]
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"save takes the path and then what is saved, save(path, state), and a {type(path).__name__} came first."
        )
    path = Path(path)
    if not isinstance(state, State):
        require_arrays(state, "save")
    described, tensors = [], {}
    for name, leaf, role in _named_leaves(state):
        if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
            raise ValueError(f"save: arrays were expected, and {name} is a {type(leaf).__name__}: {leaf}.")
        tensors[name] = _to_numpy(leaf)
        described.append({"path": name, "shape": list(_shape(leaf)), "dtype": _dtype(leaf), "role": role, **_key_of(leaf)})
    step = int(state.step) if isinstance(state, State) else None
    header = {"format": _FORMAT, "version": __version__, "step": step, "types": _types(state), "leaves": described}
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a move between file systems is a copy, which can be cut short.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.touch(exist_ok=False)
        mode = beside.stat().st_mode  # as the user's umask has it; safetensors writes for the owner alone
        numpy.save_file(tensors, beside, metadata={"fulmen": json.dumps(header)})
        beside.chmod(mode)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], *, like: Any) -> Any:
    """Read what `save` wrote. Nothing in the file is run or unpickled.

    Args:
        path: of the file.
        like: a `State` or component of the same structure, such as the one that `setup` gives; its arrays may be
            `jax.ShapeDtypeStruct`s. What is no array (sizes, functions, the optimizer's code, the plan) is taken from it.

    Returns:
        `like` with the file's arrays.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if `like` is no state and no component, such as a class.
        ValueError: for a file that is damaged or not one of `save`'s, and for a state of another system: the message lists
            the first differences, each by its path.
    """
    safetensors = _safetensors()[0]
    path = Path(path)
    if like is None or (not is_part(like) and jax.tree_util.all_leaves([like])):
        came = f"the class {like.__name__}" if isinstance(like, type) else type(like).__name__
        raise TypeError(
            f"load, like: what was saved has to be made anew to take the arrays, and {came} came: a state, `fm.setup(…)` with the "
            "same arguments, or the component, if that was saved."
        )
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}; a file that `fm.save` wrote was expected.")
    wanted = {name: leaf for name, leaf, _ in _named_leaves(like)}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = _header(path, file)
            known = {entry["path"]: entry for entry in header["leaves"]}
            _compare(path, header["types"], known, _types(like), wanted)
            values = {name: _from_numpy(file.get_tensor(name), leaf, known[name]) for name, leaf in wanted.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or was not written by `fm.save`: {error}.") from None
    except _Damaged as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    flat, structure = jax.tree.flatten(like)
    loaded = iter(values.values())
    return structure.unflatten([next(loaded) if _is_data(leaf) else leaf for leaf in flat])


def _safetensors() -> tuple[Any, Any]:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError('saving and loading need the package safetensors: pip install "fulmen[save]"') from None
    return safetensors, safetensors.numpy


# What a file says of itself


def _header(path: Path, file: Any) -> dict[str, Any]:
    """The description in a file, which may be anything at all."""
    text = (file.metadata() or {}).get("fulmen")
    if text is None:
        raise ValueError(
            f"{path} is a safetensors file, and was not written by `fm.save`: it does not say what its arrays are."
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _Damaged("its description is no JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise _Damaged("its description has no format")
    if header["format"] > _FORMAT:
        raise ValueError(
            f"{path} was written by fulmen {header.get('version')} in format {header['format']}, and this one reads formats "
            f"up to {_FORMAT}: pip install --upgrade fulmen."
        )
    entries, types = header.get("leaves"), header.get("types")
    if not isinstance(entries, list) or not isinstance(types, dict):
        raise _Damaged("its description does not list the arrays")
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), kind) for k, kind in _ENTRY.items()):
            raise _Damaged("its description of an array is not complete")
    if sorted(entry["path"] for entry in entries) != sorted(file.keys()):
        raise _Damaged("its arrays are not those that it describes")
    return header


def _compare(path: Path, types: Mapping[str, Any], known: Mapping[str, Any], like: Mapping[str, str], wanted: Any) -> None:
    """Raise on what differs between a file and `like`, by path."""
    found = []
    for name in [*like, *(name for name in types if name not in like)]:
        if types.get(name) != like.get(name):
            found.append((name or "the root", types.get(name), like.get(name)))
    for name in [*wanted, *(name for name in known if name not in wanted)]:
        has = _array_type(known[name]["dtype"], known[name]["shape"]) if name in known else None
        needs = _array_type(_dtype(wanted[name]), _shape(wanted[name])) if name in wanted else None
        if has != needs and not _interchangeable(known.get(name), wanted.get(name)):
            found.append((name, has, needs))
    if not found:
        return
    saved, given = (kinds.get("", "nothing") for kinds in (types, like))
    if saved != given and "State" in (saved, given):
        how = (
            "give a state, `fm.setup(…)` with the same arguments; the component is then its `.system`"
            if saved == "State"
            else "give the component, as `like=state.system`"
        )
        raise ValueError(f"{path} holds a {saved}, and `like` is a {given}: {how}.")
    if given != "State" and types == like and all(needs is None for _, _, needs in found):
        raise ValueError(
            f"{path} has {', '.join(name for name, _, _ in found[:_SHOWN])}{', …' * (len(found) > _SHOWN)}, and in `like` they are "
            "not there yet: draw them, fm.init(component, key), or their shapes alone, jax.eval_shape(fm.init, component, key)."
        )
    lines = [
        f"    {name}: the file has {has or 'nothing'}, `like` has {needs or 'nothing'}"
        for name, has, needs in found[:_SHOWN]
    ]
    more = [f"    and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    raise ValueError(
        "\n".join([f"{path} does not fit `like`, which was given:", *lines, *more])
        + "\nGive as `like` what was saved: the same system, sizes and optimizer (`fm.setup` with the same arguments)."
    )


def _interchangeable(entry: Mapping[str, Any] | None, leaf: Any) -> bool:
    """Whether one is a Python number and the other an array of shape () and the same kind: `setup` makes arrays of numbers."""
    if entry is None or leaf is None or entry["shape"] or _shape(leaf):
        return False
    names = entry["dtype"], _dtype(leaf)
    kinds = [np.dtype(name).kind if name in _NATIVE | _NUMBERS else name for name in names]
    return kinds[0] == kinds[1] and not _NUMBERS.isdisjoint(names)


def _array_type(dtype: str, shape: Any) -> str:
    return f"{dtype}{list(shape)}" if len(shape) else dtype


# What is in a tree


def _named_leaves(tree: Any) -> Iterator[tuple[str, Any, str]]:
    """The arrays and numbers, each with its path and what it is for."""
    roles, seen = _roles(tree), dict[str, int]()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not _is_data(leaf):
            continue
        name = ".".join(map(_name, path))
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # the keys 1 and "1" of a dict
            name = f"{name}#{seen[name]}"
        yield name, leaf, roles.get(name, name.split(".")[0].replace("_", " ") if isinstance(tree, State) else "")


def _roles(tree: Any) -> dict[str, str]:
    if isinstance(tree, State):
        return {f"system.{name}": role for name, role in _roles(tree.system).items()}
    named, known = jax.tree_util.tree_flatten_with_path(tree)[0], leaves(tree)
    if len(named) != len(known):  # a mode is bound, and its leaves have no role
        return {}
    return {".".join(map(_name, path)): leaf.role for (path, _), leaf in zip(named, known, strict=True)}


def _name(key: Any) -> str:
    return next((str(getattr(key, attribute)) for attribute in ("name", "key", "idx") if hasattr(key, attribute)), str(key))


def _types(tree: Any) -> dict[str, str]:
    """The names of the types of the components, by path; without their modules, since a script's is `__main__`."""
    if isinstance(tree, State):
        inside = {f"system.{path}".rstrip("."): name for path, name in _types(tree.system).items()}
        return {"": "State", **inside}
    return {"": type(tree).__name__, **{path: type(part).__name__ for path, part in components(tree)}}


def _is_data(leaf: Any) -> bool:
    return is_array(leaf) or isinstance(leaf, bool | int | float | complex)


def _is_key(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype) if is_array(leaf) else type(leaf).__name__


# From arrays to bytes and back, bit for bit


def _key_of(leaf: Any) -> dict[str, str]:
    return {"implementation": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {}


def _to_numpy(leaf: Any) -> np.ndarray:
    """The leaf as an array of a type that safetensors has: keys as their data, what NumPy alone does not know as bytes."""
    value = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    if str(value.dtype) in _NATIVE:
        return value
    return np.frombuffer(value.tobytes(), np.uint8).reshape(*value.shape, value.dtype.itemsize)


def _from_numpy(value: np.ndarray, like: Any, entry: dict[str, Any]) -> Any:
    """What `_to_numpy` was given, in the form that the leaf of `like` has."""
    if _is_key(like):
        key = _wrap(value, entry)
        if key.shape != _shape(like):
            raise _Damaged(f"{entry['path']} holds keys of shape {key.shape}")
        return key
    dtype = np.asarray(like).dtype if not is_array(like) else np.dtype(like.dtype)
    if _interchangeable(entry, like) and value.shape == ():
        # By the fewest digits, so that a float32 of 0.9 becomes the number 0.9.
        value = np.asarray(float(str(value)) if value.dtype.kind == "f" else value, dtype)
    if str(dtype) not in _NATIVE:
        if value.dtype != np.uint8 or value.shape != (*_shape(like), dtype.itemsize):
            raise _Damaged(f"{entry['path']} does not hold the bytes of {dtype}{list(_shape(like))}")
        value = value.view(dtype).reshape(_shape(like))
    if (value.dtype, value.shape) != (dtype, _shape(like)):
        raise _Damaged(f"{entry['path']} holds {value.dtype}{list(value.shape)} and says {entry['dtype']}{entry['shape']}")
    if isinstance(like, np.ndarray):
        return value
    if isinstance(like, np.generic):
        return value[()]
    return _placed(value, like) if is_array(like) else type(like)(value.item())


def _wrap(value: np.ndarray, entry: dict[str, Any]) -> Any:
    try:
        return jax.random.wrap_key_data(jnp.array(value), impl=entry.get("implementation"))
    except (TypeError, ValueError, AttributeError):
        raise _Damaged(f"{entry['path']} holds no random key") from None


def _placed(value: np.ndarray, like: Any) -> jax.Array:
    """On the devices where `like` is, and as weakly typed: another type would be another program."""
    array = weakly(value) if getattr(like, "weak_type", False) else jnp.array(value)
    sharding = getattr(like, "sharding", None)
    return array if sharding is None or sharding == array.sharding else jax.device_put(array, sharding)

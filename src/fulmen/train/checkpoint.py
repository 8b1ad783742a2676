"""`save` and `load`: a state as one file of arrays and their description, without code."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer

from fulmen.core.component import is_part
from fulmen.core.leaves import components, require_arrays
from fulmen.core.state import State
from fulmen.core.version import __version__
from fulmen.devices.processes import is_first, wait_for_others
from fulmen.train.saved_arrays import (
    DamagedFileError,
    array_type,
    described,
    from_numpy,
    interchangeable,
    is_data,
    named_leaves,
    to_numpy,
)

_FORMAT = 1
_MOST_LISTED = 5  # differences in an error
_ENTRY = {"path": str, "shape": list, "dtype": str, "role": str}


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Write a state into one file in the safetensors format.

    The file holds the arrays and, as JSON, the path, shape, type and role of each. It is written under a temporary name in
    the same folder and then renamed, so it is never incomplete. With several processes, all must call it; the first one writes.

    Args:
        path: of the file; missing folders are created.
        state: a `State`, or a component with its arrays.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: if arrays are missing, or are being traced.
    """
    numpy = _safetensors()[1]
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, got {type(path).__name__}; write save(path, state).")
    path = Path(path)
    if not isinstance(state, State):
        require_arrays(state, "save")
    entries, tensors = [], {}
    for name, leaf, role in named_leaves(state):
        if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
            raise ValueError(f"save: {name} is a {type(leaf).__name__}, not an array: {leaf}.")
        tensors[name] = to_numpy(leaf)
        entries.append(described(name, leaf, role))
    step = int(state.step) if isinstance(state, State) else None
    header = {"format": _FORMAT, "version": __version__, "step": step, "types": _types(state), "leaves": entries}
    if is_first():
        _write(path, tensors, {"fulmen": json.dumps(header)}, numpy)
    wait_for_others(f"saved {path}")


def _write(path: Path, tensors: dict[str, Any], metadata: dict[str, str], numpy: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a move to another file system is a copy, which may remain incomplete.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # by the user's umask; safetensors gives access to the owner only
        numpy.save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    safetensors = _safetensors()[0]
    path = Path(path)
    if like is None or (not is_part(like) and jax.tree_util.all_leaves([like])):
        got = f"the class {like.__name__}" if isinstance(like, type) else type(like).__name__
        raise TypeError(
            f"like must be what was saved, got {got}; write like=fm.setup(…) with the same arguments, or give the component if "
            "that was saved."
        )
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {problem}; path must be a file that `fm.save` wrote.")
    wanted = {name: leaf for name, leaf, _ in named_leaves(like)}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = _header(path, file)
            entries = {entry["path"]: entry for entry in header["leaves"]}
            _require_same(path, header["types"], entries, _types(like), wanted)
            values = {name: from_numpy(file.get_tensor(name), leaf, entries[name]) for name, leaf in wanted.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or was not written by `fm.save`: {error}.") from None
    except DamagedFileError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    flat, structure = jax.tree.flatten(like)
    loaded = iter(values.values())
    return structure.unflatten([next(loaded) if is_data(leaf) else leaf for leaf in flat])


def _safetensors() -> tuple[Any, Any]:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError('save and load need the package safetensors: pip install "fulmen[save]"') from None
    return safetensors, safetensors.numpy


def _types(tree: Any) -> dict[str, str]:
    """The type names of the components, by path; without their modules, since a script's is `__main__`."""
    if isinstance(tree, State):
        inside = {f"system.{path}".rstrip("."): name for path, name in _types(tree.system).items()}
        return {"": "State", **inside}
    return {"": type(tree).__name__, **{path: type(part).__name__ for path, part in components(tree)}}


def _header(path: Path, file: Any) -> dict[str, Any]:
    """The description in a file, which may hold anything."""
    text = (file.metadata() or {}).get("fulmen")
    if text is None:
        raise ValueError(f"{path} is a safetensors file, but was not written by `fm.save`: it does not describe its arrays.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedFileError("its description is not JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise DamagedFileError("its description has no format")
    if header["format"] > _FORMAT:
        raise ValueError(
            f"{path} was written by fulmen {header.get('version')} in format {header['format']}; this version reads formats up to "
            f"{_FORMAT}: pip install --upgrade fulmen."
        )
    entries, types = header.get("leaves"), header.get("types")
    if not isinstance(entries, list) or not isinstance(types, dict):
        raise DamagedFileError("its description does not list the arrays")
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), kind) for k, kind in _ENTRY.items()):
            raise DamagedFileError("its description of an array is incomplete")
    if sorted(entry["path"] for entry in entries) != sorted(file.keys()):
        raise DamagedFileError("its arrays are not those that it describes")
    return header


def _require_same(
    path: Path, types: Mapping[str, Any], entries: Mapping[str, Any], like: Mapping[str, str], wanted: Any
) -> None:
    """Raise on differences between a file and `like`."""
    found = [(name or "the root", types.get(name), like.get(name)) for name in {**like, **types}]
    found = [(name, has, needs) for name, has, needs in found if has != needs]
    for name in {**wanted, **entries}:
        entry, leaf = entries.get(name), wanted.get(name)
        has, needs = entry and array_type(entry), None if leaf is None else array_type(described(name, leaf, ""))
        if has != needs and not interchangeable(entry, leaf):
            found.append((name, has, needs))
    if not found:
        return
    saved, given = (kinds.get("", "nothing") for kinds in (types, like))
    if saved != given and "State" in (saved, given):
        remedy = (
            "give a state, `fm.setup(…)` with the same arguments; the component is then its `.system`"
            if saved == "State"
            else "give the component, as `like=state.system`"
        )
        raise ValueError(f"{path} holds a {saved}, and `like` is a {given}: {remedy}.")
    listed = found[:_MOST_LISTED]
    if given != "State" and types == like and all(needs is None for _, _, needs in found):
        raise ValueError(
            f"{path} has {', '.join(name for name, _, _ in listed)}{', …' * (len(found) > _MOST_LISTED)}, which `like` does not have "
            "yet; write fm.init(component, key), or for the shapes alone jax.eval_shape(fm.init, component, key)."
        )
    lines = [f"    {name}: the file has {has or 'nothing'}, `like` has {needs or 'nothing'}" for name, has, needs in listed]
    more = [f"    and {len(found) - _MOST_LISTED} more"] if len(found) > _MOST_LISTED else []
    raise ValueError(
        "\n".join([f"{path} does not fit `like`:", *lines, *more])
        + "\n`like` must be what was saved: the same system, sizes and optimizer (`fm.setup` with the same arguments)."
    )

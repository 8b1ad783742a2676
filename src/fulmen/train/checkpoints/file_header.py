"""The description of the arrays in a file that `save` writes: their paths, types and digests, and the checks of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from fulmen.core import State, components, covers, join_path
from fulmen.core.immutable import Immutable
from fulmen.core.version import __version__
from fulmen.dispatching.lazy_libraries import installed
from fulmen.train.checkpoints.atomic_files import write_all
from fulmen.train.checkpoints.saved_arrays import (
    DamagedFileError,
    array_type,
    described,
    from_numpy,
    interchangeable,
    named_leaves,
    to_numpy,
)

_FORMAT = 2  # 1 had no digests
_MOST_LISTED = 5  # differences in an error
_LARGEST_HEADER = 100_000_000  # bytes, as in safetensors
_ENTRY = {"path": str, "shape": list, "dtype": str, "role": str}
_LETTERS = {"f": "F", "i": "I", "u": "U", "c": "C"}  # NumPy's and safetensors' kinds of numbers


class Header(Immutable):
    """The description of the arrays in a file.

    Attributes:
        format: the version of the format.
        types: the type names of the components, by path.
        entries: the description of each array, by path.
    """

    format: int
    types: dict[str, Any]
    entries: dict[str, dict[str, Any]]

    def part(self, path: str) -> Header:
        """The description of the part at a path; "" is everything."""
        if not path:
            return self
        types, entries = (
            {name.removeprefix(path).removeprefix("."): value for name, value in found.items() if covers(path, name)}
            for found in (self.types, self.entries)
        )
        return Header(self.format, types, entries)


def safetensors() -> Any:
    """The package, which is optional."""
    return installed("safetensors", "save and load", "save")


# Writing


def described_tree(tree: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description of a state or a component, without digests, and its leaves by path."""
    found = list(named_leaves(tree))
    for name, leaf, _ in found:
        if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
            raise ValueError(f"save: {name} is a {type(leaf).__name__}, not an array: {leaf}.")
    step = int(tree.step) if isinstance(tree, State) else None
    entries = [described(*each) for each in found]
    header = {"format": _FORMAT, "version": __version__, "step": step, "types": _types(tree), "leaves": entries}
    return header, {name: leaf for name, leaf, _ in found}


def host_copy(leaf: Any) -> np.ndarray:
    """The leaf as `to_numpy` converts it, in memory that is not shared with it."""
    value = to_numpy(leaf)
    shared = not isinstance(leaf, jax.Array) or any(device.platform == "cpu" for device in leaf.devices())
    return np.array(value) if shared else value


def write_arrays(descriptor: int, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a file in the safetensors format.

    It is written here, since safetensors writes by way of a temporary file that remains when the process is killed, and
    raises no OSError. The header and the leaves are those of `described_tree`, the leaves converted by `to_numpy`.
    """
    leaves = [{**entry, "sha256": _digest(_bytes(arrays[entry["path"]]))} for entry in header["leaves"]]
    text = json.dumps({**header, "leaves": leaves})
    table: dict[str, Any] = {"__metadata__": {"fulmen": text, "sha256": _digest(text.encode())}}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that each is aligned
    end = 0
    for name in order:
        value = arrays[name]
        start, end = end, end + value.nbytes
        letter = f"{_LETTERS[value.dtype.kind]}{8 * value.itemsize}" if value.dtype.kind != "b" else "BOOL"
        table[name] = {"dtype": letter, "shape": value.shape, "data_offsets": [start, end]}
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    write_all(descriptor, memoryview(len(head).to_bytes(8, "little") + head))
    for name in order:
        write_all(descriptor, _bytes(arrays[name]))


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(value: np.ndarray) -> memoryview:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _types(tree: Any) -> dict[str, str]:
    """The type names of the components, by path; without their modules, since a script's is `__main__`."""
    if isinstance(tree, State):
        inside = {join_path("system", path): name for path, name in _types(tree.system).items()}
        return {"": "State", **inside}
    return {"": type(tree).__name__, **{path: type(part).__name__ for path, part in components(tree)}}


# Reading


def read_header(path: Path, file: Any) -> Header:
    """The description in an open file, which may hold anything."""
    metadata = file.metadata() or {}
    text, digest = metadata.get("fulmen"), metadata.get("sha256")
    if text is None:
        raise ValueError(f"{path} is a safetensors file, but was not written by `fm.save`: it does not describe its arrays.")
    if digest is not None and digest != _digest(text.encode()):
        raise DamagedFileError("its description of the arrays does not have the SHA-256 that the file states")
    header = parse_header(path, text)
    if header.format > 1 and (digest is None or not all(isinstance(e.get("sha256"), str) for e in header.entries.values())):
        raise DamagedFileError("the SHA-256 of its description, or of an array, is missing")
    if sorted(header.entries) != sorted(file.keys()):
        raise DamagedFileError("its arrays are not those that it describes")
    return header


def parse_header(path: Path, text: str) -> Header:
    """The description in the text of a file, which may hold anything."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise DamagedFileError("its description is not JSON") from None
    number = header.get("format") if isinstance(header, dict) else None
    if not isinstance(number, int) or number < 1:
        raise DamagedFileError("its description has no format")
    if number > _FORMAT:
        raise ValueError(
            f"{path} was written by fulmen {header.get('version')} in format {number}; this version reads formats up to "
            f"{_FORMAT}: pip install --upgrade fulmen."
        )
    entries, types = header.get("leaves"), header.get("types")
    if not isinstance(entries, list) or not isinstance(types, dict):
        raise DamagedFileError("its description does not list the arrays")
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), kind) for k, kind in _ENTRY.items()):
            raise DamagedFileError("its description of an array is incomplete")
    return Header(number, types, {entry["path"]: entry for entry in entries})


def read_value(file: Any, name: str, entry: Mapping[str, Any], like: Any) -> Any:
    """The leaf of a name in an open file, compared with its digest."""
    value = file.get_tensor(name)
    if "sha256" in entry and entry["sha256"] != _digest(_bytes(value)):
        raise DamagedFileError(f"the array {name} does not have the SHA-256 that the file states")
    return from_numpy(value, like, entry)


def cut_array(path: Path) -> str | None:
    """The first array of a truncated file that is incomplete, or None if that cannot be read."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        room = path.stat().st_size - 8 - size
        if room < 0 or size > _LARGEST_HEADER:
            return None
        try:
            table = json.loads(file.read(size))
            ends = {name: entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"}
            return next((name for name, end in sorted(ends.items(), key=lambda item: item[1]) if end > room), None)
        except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
            return None


def require_same(path: Path, header: Header, like: Any, wanted: Mapping[str, Any]) -> None:
    """Raise on differences between a file and `like`, whose leaves by path are `wanted`."""
    types, entries, expected = header.types, header.entries, _types(like)
    found = [(name or "the root", types.get(name), expected.get(name)) for name in {**expected, **types}]
    found = [(name, has, needs) for name, has, needs in found if has != needs]
    for name in {**wanted, **entries}:
        entry, leaf = entries.get(name), wanted.get(name)
        has, needs = entry and array_type(entry), None if leaf is None else array_type(described(name, leaf, ""))
        if has != needs and not interchangeable(entry, leaf):
            found.append((name, has, needs))
    if not found:
        return
    saved, given = (kinds.get("", "nothing") for kinds in (types, expected))
    if saved != given and "State" in (saved, given):
        remedy = (
            "give a state, `fm.setup(…)` with the same arguments; the component is then its `.system`"
            if saved == "State"
            else "give the component, as `like=state.system`"
        )
        raise ValueError(f"{path} holds a {saved}, and `like` is a {given}: {remedy}.")
    listed = found[:_MOST_LISTED]
    if given != "State" and types == expected and all(needs is None for _, _, needs in found):
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

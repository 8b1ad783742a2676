"""`Structure`: the static part of a tree, with the programs compiled for it, which are dropped with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.core.component import is_foreign
from fulmen.core.leaves import is_array


class Structure:
    """The static part of a tree: its treedef, its leaves other than arrays, and extra values.

    Equal structures are the same object, so that jit compares and hashes them by identity.

    Attributes:
        programs: compiled programs and results of tracing, by key.
    """

    __slots__ = ("__weakref__", "extra", "fixed", "programs", "treedef")

    _known: ClassVar[Any] = weakref.WeakValueDictionary()
    _lock: ClassVar[Any] = threading.Lock()

    treedef: Any
    fixed: tuple[tuple[int, Any], ...]
    extra: tuple[Any, ...]
    programs: dict[Any, Any]

    def __new__(cls, treedef: Any, fixed: tuple[tuple[int, Any], ...] = (), extra: tuple[Any, ...] = ()) -> Structure:
        key = _exact(treedef), _exact(fixed), _exact(extra)
        with cls._lock:
            found = cls._known.get(key)
            if found is None:
                found = object.__new__(cls)
                found.treedef, found.fixed, found.extra = treedef, fixed, extra
                found.programs = {}
                cls._known[key] = found
            return found

    def __reduce__(self) -> Any:
        # As a tree, since a pickled treedef would lose values that another library compares by identity.
        return _structure_of, (self.unpack([_Hole] * (self.treedef.num_leaves - len(self.fixed))), self.extra)

    def __deepcopy__(self, memo: Any) -> Structure:
        return self

    def unpack(self, leaves: Any) -> Any:
        """The tree with these arrays."""
        leaves = list(leaves)
        for place, value in self.fixed:
            leaves.insert(place, value)
        return self.treedef.unflatten(leaves)


class _Hole:
    """The place of an array in a pickled structure."""


def _structure_of(tree: Any, extra: tuple[Any, ...]) -> Structure:
    leaves, treedef = jax.tree.flatten(tree)
    return Structure(treedef, tuple((i, v) for i, v in enumerate(leaves) if v is not _Hole), extra)


def _exact(value: Any) -> Any:
    """A key that differs also for values that are equal, such as 2, 2.0 and True, or 0.0 and -0.0; NaN equals itself."""
    kind = type(value)
    if kind in (int, bool, str, type(None)):
        return kind, value
    if isinstance(value, jax.tree_util.PyTreeDef):
        data = value.node_data()
        return kind, None if data is None else (data[0], _exact(data[1]), *map(_exact, value.children()))
    if isinstance(value, float | complex):
        return kind, repr(value)
    if isinstance(value, tuple | list):
        return kind, *map(_exact, value)
    if isinstance(value, dict):
        return kind, frozenset((_exact(k), _exact(v)) for k, v in value.items())
    if isinstance(value, set | frozenset):
        return kind, frozenset(map(_exact, value))
    if isinstance(value, np.generic):
        return kind, value.dtype, value.tobytes()
    if dataclasses.is_dataclass(kind) and kind.__dataclass_params__.eq and kind.__hash__ is not None:  # type: ignore[attr-defined]
        return kind, *(_exact(getattr(value, field.name)) for field in dataclasses.fields(value) if field.compare)
    return kind, value


def pack(tree: Any, *extra: Any) -> tuple[list[Any], Structure]:
    """The arrays of a tree (numbers become arrays) and its structure."""
    leaves, treedef = jax.tree.flatten(tree)
    foreign = _in_foreign_modules(tree)
    dynamic = [is_array(v) or (isinstance(v, int | float | complex) and not f) for v, f in zip(leaves, foreign, strict=True)]
    fixed = tuple((i, v) for i, v in enumerate(leaves) if not dynamic[i])
    data = [v for v, is_dynamic in zip(leaves, dynamic, strict=True) if is_dynamic]
    return [*map(_array, data)], Structure(treedef, fixed, extra)


def _in_foreign_modules(tree: Any) -> list[bool]:
    """For every leaf, whether it is in another library's module, whose numbers are static: its code may branch on them."""
    found: list[bool] = []
    for node in jax.tree.leaves(tree, is_leaf=is_foreign):
        foreign = is_foreign(node)
        found += [foreign] * (len(jax.tree.leaves(node)) if foreign else 1)
    return found


def _array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    if isinstance(leaf, np.ndarray) and not isinstance(leaf, np.ma.MaskedArray):  # which JAX refuses
        # A copy, which the caller cannot change; `jnp.asarray` makes it by a program for each shape.
        return jax.device_put(np.array(leaf))
    return jnp.asarray(leaf)  # a Python number stays weakly typed


class Recent:
    """The most recently used structures, which are kept alive."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[Structure, None] = {}

    def keep(self, structure: Structure) -> None:
        """Keep a structure, and drop the least recently used one if there are too many."""
        self._kept.pop(structure, None)
        self._kept[structure] = None
        while len(self._kept) > self._most:
            self._kept.pop(next(iter(self._kept)), None)


RECENT = Recent(8)
"""For loops that drop each state before they set up an equal system, which should not compile again."""

_kept: Any = weakref.WeakKeyDictionary()


def keep(structure: Structure, owner: Any) -> None:
    """Keep a structure, such as that of its owner under an attack, and its programs alive as long as the owner.

    The owner is a `Structure` or a component; for one that cannot be hashed, only the most recent structures are kept.
    """
    if not isinstance(owner, Structure):
        RECENT.keep(structure)  # the next call may make an equal component
    with contextlib.suppress(TypeError):
        _kept.setdefault(owner, Recent(128)).keep(structure)


class PerStructure:
    """See `per_structure`."""

    def __init__(self, function: Callable[..., Any], seldom: bool = False, **options: Any) -> None:
        self._function, self._seldom, self._options = function, seldom, options
        functools.update_wrapper(self, function)

    def __call__(self, structure: Structure, *args: Any) -> Any:
        return self.of(structure)(*args)

    def of(self, structure: Structure) -> Any:
        """The jitted function of the other arguments."""
        program = structure.programs.get(self)
        if program is None:
            program = structure.programs[self] = self._jit(weakref.ref(structure))
        return program

    def _jit(self, reference: weakref.ref[Structure]) -> Any:
        function = self._function

        # A new function for each structure, with a weak reference: JAX's caches hold their entries as long as the function.
        @functools.wraps(function)
        def run(*args: Any) -> Any:
            return function(reference(), *args)

        del run.__wrapped__  # its signature has one argument more
        return jax.jit(run, compiler_options=fast_compilation() if self._seldom else None, **self._options)


def per_structure(*, seldom: bool = False, **options: Any) -> Callable[[Callable[..., Any]], PerStructure]:
    """A decorator that compiles `f(structure, *args)` for each structure; the programs are dropped with the structure.

    Args:
        seldom: whether the program runs so seldom that it should compile fast rather than run fast.
        **options: those of `jax.jit`; argument numbers count from the argument after the structure.
    """
    return functools.partial(PerStructure, seldom=seldom, **options)


def fast_compilation() -> dict[str, Any] | None:
    """The compiler options of a program that runs seldom; None if XLA_FLAGS sets the level, or on accelerators."""
    chosen = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    # On the CPU a program that draws random numbers then compiles in half the time, most of which is LLVM's.
    return None if chosen or jax.default_backend() != "cpu" else {"xla_backend_optimization_level": 1}

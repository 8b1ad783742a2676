"""Pickling: JAX's functions by name, and classes of `__main__` or a notebook together with their methods.

cloudpickle, which joblib, dask and ray use, pickles a class that cannot be imported by value. Its methods are not in the
class, so they are pickled with the fields and registered when the class is unpickled.
"""

import copyreg
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fulmen.core.fields import kinds
from fulmen.dispatching.methods import Method
from fulmen.dispatching.redefinition import mentions
from fulmen.dispatching.registry import all_named_verbs


class Fields(dict[str, Any]):
    """The `__dataclass_fields__` of a `Tree`.

    Args:
        cls, fields: the class, and its fields by name.
        kinds: the kinds, if they were determined in another process.
    """

    __slots__ = ("cls", "kinds")

    def __init__(self, cls: type, fields: Mapping[str, Any], kinds: dict[str, str] | None = None) -> None:
        super().__init__(fields)
        self.cls, self.kinds = cls, kinds

    def __reduce__(self) -> Any:
        inherited = _inherited(self.cls)
        own = {name: field for name, field in self.items() if inherited.get(name) is not field}
        methods = [
            (verb, m.function, m.hints, m.rest, m.contexts, m.takes)
            for verb in all_named_verbs()
            for m in verb.methods
            if mentions(m, self.cls) and _importable(verb)
        ]
        return _receive, (self.cls, [*self], own, kinds(self.cls), methods)


def _inherited(cls: type) -> dict[str, Any]:
    return {
        name: field
        for base in reversed(cls.__mro__[1:])
        for name, field in vars(base).get("__dataclass_fields__", {}).items()
    }


def _receive(
    cls: type, names: Sequence[str], own: Mapping[str, Any], kinds: dict[str, str], methods: Sequence[tuple[Any, ...]]
) -> Any:
    """The fields of an unpickled class; unchanged if it is a class of this process."""
    for verb, function, *types in methods:
        method = Method(verb.__name__, function, *types, written=types[0])
        known = next((m for m in verb.methods if m.key == method.key), None)
        if known is None or _code(known) != _code(method):
            verb.register([method])
    here = vars(cls)["__dataclass_fields__"]
    if [*here] == [*names]:
        return here
    inherited = _inherited(cls)
    return Fields(cls, {name: own[name] if name in own else inherited[name] for name in names}, kinds)


def _code(method: Method) -> Any:
    return getattr(method.function, "__code__", method.function)


def _importable(value: Any) -> bool:
    """Whether another process can import a value by its name."""
    module = getattr(value, "__module__", None)
    found: Any = sys.modules.get(module or "")
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value and module != "__main__"


def _by_name(function: Any) -> Any:
    if _importable(function):
        return function.__qualname__
    for name, module in list(sys.modules.items()):
        for attribute, value in list(getattr(module, "__dict__", {}).items()) if name != "__main__" else ():
            if value is function:
                return _attribute, (name, attribute)
    if isinstance(function, _JITTED):
        return jax.jit, (function.__wrapped__,)
    return function.__reduce_ex__(4)


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


_JITTED: Any = type(jax.nn.silu)

# They would be pickled as the wrapped function, which their name does not refer to.
for _kind in (jax.custom_jvp, jax.custom_vjp, jax.numpy.ufunc, _JITTED):
    copyreg.pickle(_kind, _by_name)

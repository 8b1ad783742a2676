"""The errors of a call that has no method, or several."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import numpy as np

from fulmen.dispatching import hooks
from fulmen.dispatching.annotations import members, name_of
from fulmen.dispatching.contract import Contract
from fulmen.dispatching.lazy_libraries import hint as what_to_do
from fulmen.dispatching.location import place
from fulmen.dispatching.methods import Method


class MissingMethodError(TypeError):
    """No method of a verb fits the types of the arguments."""


class AmbiguousMethodError(TypeError):
    """Two methods of a verb fit the types of the arguments, and neither is more specific."""


class OutdatedInstanceError(MissingMethodError):
    """The argument is an instance of an earlier definition of a class."""


def missing(
    contract: Contract, methods: Sequence[Method], args: Sequence[type], context: type, options: Sequence[str]
) -> MissingMethodError:
    """The error for types without a method."""
    name = contract.name
    named = [option for option in options if option in contract.positions]
    if named:
        return MissingMethodError(by_keyword(contract, args, options, named))
    call = ", ".join([*map(_shown, args), *(f"{option}=…" for option in options)])
    lines = [f"`{name}({call})`: no method fits these types."]
    arities = sorted({len(m.hints) for m in methods})
    if arities and all(m.rest is None for m in methods) and len(args) not in arities:
        takes = f"It takes {' or '.join(map(str, arities))} positional arguments, got {len(args)}."
        lines.append(f"{takes} Call it as {contract.call}.")
    lines += [*filter(None, [what_to_do(args[0]) if args else ""])]
    remedy = hooks.remedy(name, next(iter(contract.signature.parameters), ""), args)
    lines += [*filter(None, [remedy, _undecorated(name, args)])]
    near = [m for m in methods if args and m.hints and any(issubclass(args[0], k) for k in {*m.members[0]} - {object})]
    if near:
        lines.append(f"For {_shown(args[0])} there is {', '.join(map(str, near[:4]))}.")
    firsts = [kind for m in methods if m.hints for kind in m.members[0]]
    if any(map(hooks.comes_first, args[1:])) and not hooks.comes_first(args[0]) and any(map(hooks.comes_first, firsts)):
        lines.append(f"The order of the arguments is {contract.call}.")
    elif _fits_contract(contract, args) and not (args and args[0].__module__ == "builtins"):  # nobody has methods for those
        lines += ["Write one:", "", "    @dispatch", f"    def {name}({_parameters(contract, args, args)}): …", ""]
    heads = list(dict.fromkeys(map(_shown, firsts)))
    if heads:
        more = f" and {len(heads) - 12} more" if len(heads) > 12 else ""
        lines.append(f"Types that have one: {', '.join(heads[:12])}{more}.")
    if options:
        lines.append(f"It dispatches on positional arguments, got {', '.join(f'`{o}=`' for o in options)} by keyword.")
    if any(not issubclass(context, m.contexts) for m in methods if m.contexts):
        lines.append(f"The call was made with the {contract.context_name} {context.__name__}.")
    return MissingMethodError("\n".join(lines))


def _fits_contract(contract: Contract, args: Sequence[type]) -> bool:
    """Whether the contract allows that many arguments."""
    own = [p for p in contract.signature.parameters.values() if p.name != contract.context_name]
    try:
        contract.signature.replace(parameters=own).bind(*args)
    except TypeError:
        return False
    return True


def by_keyword(contract: Contract, args: Sequence[type], options: Sequence[str], named: Sequence[str]) -> str:
    """The message for keyword arguments that must be positional, since the verb dispatches on them."""
    given = ", ".join([*map(_shown, args), *(f"{option}=…" for option in options)])
    keywords = ", ".join(f"`{name}=`" for name in named)
    return (
        f"`{contract.name}` dispatches on positional arguments, got {keywords} by keyword in {contract.name}({given}). "
        f"Write them by position: {contract.call}."
    )


def ambiguous(contract: Contract, args: Sequence[type], context: type, found: Sequence[Method]) -> AmbiguousMethodError:
    """The error for several methods of which none is the most specific."""
    lines = [
        f"`{contract.name}({', '.join(map(_shown, args))})` is ambiguous: these methods fit, and none is more specific than the others."
    ]
    lines += [f"    {method}    {method.location}" for method in found]
    hints = [
        _narrowest([m.members[i] if i < len(m.hints) else members(m.rest) for m in found], a) for i, a in enumerate(args)
    ]
    signature = _parameters(contract, args, hints)
    if len({(m.hints, m.rest) for m in found}) == 1:  # only the contexts differ, and they overlap
        signature += f", {contract.context_name}: {context.__name__}"
    lines += ["Write a method for the types that all of them accept:", "", "    @dispatch"]
    return AmbiguousMethodError("\n".join([*lines, f"    def {contract.name}({signature}): …"]))


def _undecorated(name: str, args: Sequence[type]) -> str:
    """The remedy if the module of the first argument's class has a plain function of the verb's name."""
    function = vars(sys.modules.get(args[0].__module__, object)).get(name) if args else None
    if not inspect.isfunction(function) or args[0].__module__ == "builtins":
        return ""
    code = function.__code__
    where = place(f"{code.co_filename}:{code.co_firstlineno}", function.__module__)
    return f"The function `{name}` at {where} is no method: write @dispatch above it."


def outdated(kinds: Sequence[type], old: type) -> OutdatedInstanceError:
    """The error for an instance of an earlier definition of a class."""
    what = f"This instance is of an earlier definition of `{old.__name__}`, which has been defined again"
    if old in kinds:
        return OutdatedInstanceError(f"{what}: rebuild the instance or its state: fm.rebuild(state).")
    below = next(kind for kind in kinds if old in kind.__mro__)
    return OutdatedInstanceError(
        f"{what}: run the definition of its subclass `{below.__name__}` again, then rebuild the instance or "
        "its state: fm.rebuild(state)."
    )


def _shown(kind: Any) -> str:
    return "jax.Array" if _is_array(kind) else name_of(kind)


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and (
        issubclass(kind, jax.core.Tracer) or kind.__module__.partition(".")[0] in ("jax", "jaxlib")
    )


def _parameters(contract: Contract, args: Sequence[type], hints: Sequence[Any]) -> str:
    """The parameters of a method to write, named by their class or as in the verb's contract."""
    parameters = list(contract.signature.parameters.values())
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    spelled: list[str] = []
    for i, (arg, hint) in enumerate(zip(args, hints)):
        plain = _is_array(arg) or arg is np.ndarray or hint is object
        if i == 0 and arg.__module__ != "builtins" and not plain:
            name = arg.__name__.lower().lstrip("_")
        else:
            name = names[i] if i < len(names) else "xyzuvw"[(i - len(names)) % 6]
        written = " | ".join(hooks.spelled(kind) or name_of(kind) for kind in members(hint))
        spelled.append(name if plain else f"{name}: {written}")
    return ", ".join(spelled)


def _narrowest(hints: Sequence[tuple[type, ...]], arg: type) -> type:
    """The most specific superclass of the argument's class in some hints."""
    found: type = object
    for kind in (kind for hint in hints for kind in hint):
        if issubclass(arg, kind) and issubclass(kind, found):
            found = kind
    return found

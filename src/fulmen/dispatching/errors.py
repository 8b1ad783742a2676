"""What is said when a verb finds no method, or two."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import numpy as np

from fulmen.dispatching.lazy_libraries import hint as what_to_do
from fulmen.dispatching.methods import Method, members, name_of

if TYPE_CHECKING:
    from fulmen.dispatching.registry import Verb

__all__ = ["AmbiguousMethodError", "MissingMethodError", "OutdatedInstanceError"]


class MissingMethodError(TypeError):
    """No method of a verb fits the types of the arguments."""


class AmbiguousMethodError(TypeError):
    """Two methods of a verb fit the types of the arguments, and neither is more specific."""


class OutdatedInstanceError(MissingMethodError):
    """The methods belong to a newer definition of a class than the argument's."""


def missing(verb: Verb, args: Sequence[type], context: type, options: Sequence[str]) -> MissingMethodError:
    """The error for types that no method fits."""
    from fulmen.core.component import Component
    from fulmen.core.state import State

    name = verb.__name__
    named = [option for option in options if option in verb.positions]
    if named:
        return MissingMethodError(by_keyword(verb, args, options, named))
    call = ", ".join([*map(_shown, args), *(f"{option}=…" for option in options)])
    lines = [f"`{name}({call})`: no method fits these types."]
    arities = sorted({len(m.hints) for m in verb.methods})
    if arities and all(m.rest is None for m in verb.methods) and len(args) not in arities:
        takes = f"It takes {' or '.join(map(str, arities))} positional arguments; {len(args)} came."
        lines.append(f"{takes} Call it as {name}{inspect.signature(verb.contract)}.")
    lines += [*filter(None, [what_to_do(args[0]) if args else ""])]
    near = [m for m in verb.methods if args and m.hints and any(issubclass(args[0], k) for k in {*m.members[0]} - {object})]
    if near:
        lines.append(f"For {_shown(args[0])} there is {', '.join(map(str, near[:4]))}.")
    comes_first = [issubclass(kind, Component | State) for kind in args]
    if any(comes_first) and not comes_first[0] and verb.__module__.startswith("fulmen."):
        lines.append(f"The order of the arguments is {name}{inspect.signature(verb.contract)}.")
    elif _fits_contract(verb, args):
        lines += ["Write one:", "", "    @dispatch", f"    def {name}({_parameters(verb, args, args)}): …", ""]
    heads = list(dict.fromkeys(_shown(kind) for m in verb.methods if m.hints for kind in m.members[0]))
    if heads:
        more = f" and {len(heads) - 12} more" if len(heads) > 12 else ""
        lines.append(f"Types that have one: {', '.join(heads[:12])}{more}.")
    if options:
        lines.append(f"It dispatches on positional arguments; {', '.join(f'`{o}=`' for o in options)} came by keyword.")
    if any(not issubclass(context, m.contexts) for m in verb.methods if m.contexts):
        lines.append(f"The call was made with the {verb.context_name} {context.__name__}.")
    return MissingMethodError("\n".join(lines))


def _fits_contract(verb: Verb, args: Sequence[type]) -> bool:
    """Whether a method of as many arguments is one that others would call."""
    contract = inspect.signature(verb.contract)
    own = [p for p in contract.parameters.values() if p.name != verb.context_name]
    try:
        contract.replace(parameters=own).bind(*args)
    except TypeError:
        return False
    return True


def by_keyword(verb: Verb, args: Sequence[type], options: Sequence[str], named: Sequence[str]) -> str:
    """What to say of arguments that came by keyword and are dispatched on."""
    given = ", ".join([*map(_shown, args), *(f"{option}=…" for option in options)])
    keywords = ", ".join(f"`{name}=`" for name in named)
    return (
        f"`{verb.__name__}` dispatches on positional arguments, and {keywords} came by keyword in "
        f"{verb.__name__}({given}). Write them by position: {verb.__name__}{inspect.signature(verb.contract)}."
    )


def ambiguous(verb: Verb, args: Sequence[type], context: type, found: Sequence[Method]) -> AmbiguousMethodError:
    """The error for several methods of which none is more specific."""
    lines = [f"`{verb.__name__}({', '.join(map(_shown, args))})` is ambiguous: neither method is more specific."]
    lines += [f"    {method}    {method.location}" for method in found]
    hints = [
        _narrowest([m.members[i] if i < len(m.hints) else members(m.rest) for m in found], a) for i, a in enumerate(args)
    ]
    settled = _parameters(verb, args, hints)
    if len({(m.hints, m.rest) for m in found}) == 1:  # the arguments are alike, and the contexts overlap
        settled += f", {verb.context_name}: {context.__name__}"
    lines += [
        "A method for the types that both accept settles it:",
        "",
        "    @dispatch",
        f"    def {verb.__name__}({settled}): …",
    ]
    return AmbiguousMethodError("\n".join(lines))


def outdated(kinds: Sequence[type], old: type) -> OutdatedInstanceError:
    """The error for an instance of a class that has been defined again."""
    what = f"This instance is of an earlier definition of `{old.__name__}`, which has been defined again"
    if old in kinds:
        return OutdatedInstanceError(f"{what}: rebuild the instance.")
    below = next(kind for kind in kinds if old in kind.__mro__)
    return OutdatedInstanceError(
        f"{what}: run the definition of its subclass `{below.__name__}` again, then rebuild the instance."
    )


def _shown(kind: Any) -> str:
    return "jax.Array" if _is_array(kind) else name_of(kind)


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, jax.core.Tracer) or kind.__module__.startswith("jaxlib"))


def _parameters(verb: Verb, args: Sequence[type], hints: Sequence[Any]) -> str:
    """A method's parameters, named by what they are or as in the verb's contract."""
    parameters = list(inspect.signature(verb.contract).parameters.values())
    names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL and p.kind is not p.KEYWORD_ONLY]
    spelled: list[str] = []
    for i, (arg, hint) in enumerate(zip(args, hints)):
        plain = _is_array(arg) or arg is np.ndarray or hint is object
        if i == 0 and arg.__module__ != "builtins" and not plain:
            name = arg.__name__.lower().lstrip("_")
        else:
            name = names[i] if i < len(names) else "xyzuvw"[(i - len(names)) % 6]
        spelled.append(name if plain else f"{name}: {name_of(hint)}")
    return ", ".join(spelled)


def _narrowest(hints: Sequence[tuple[type, ...]], arg: type) -> type:
    """The most specific class in some hints that the argument's is a subclass of."""
    found: type = object
    for kind in (kind for hint in hints for kind in hint):
        if issubclass(arg, kind) and issubclass(kind, found):
            found = kind
    return found

"""What the errors of verbs say in addition: where in a component they were raised, and how common mistakes are put right."""

import contextlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fulmen.core.batch import Batch
from fulmen.core.component import Component, Model, is_foreign, parts
from fulmen.core.component_methods import unbind
from fulmen.core.leaves import MissingArraysError, components, missing_arrays
from fulmen.core.paths import join_path
from fulmen.core.verbs import init, losses
from fulmen.dispatching import hooks
from fulmen.dispatching.errors import AmbiguousMethodError, MissingMethodError
from fulmen.dispatching.lazy_libraries import library_of

_ARRAYS = (np.ndarray, jax.Array)
_MODES = ("deterministic", "inference", "is_training", "mode", "train", "training")


class _Place:
    """Where an error was raised, which is kept with it while it passes the calls of verbs from the innermost to the outermost."""

    def __init__(self, component: Component) -> None:
        self.component, self.path, self.note = component, "", ""

    def move_to(self, outer: Component) -> None:
        """Make the path that of the same component in an outer one, if it is the same object there."""
        inside = components(outer)
        found = [path for path, part in inside if part is self.component] or [
            p for p, part in inside if self._is_bound(part)
        ]
        if len(found) == 1 and found != [""]:
            self.component, self.path = outer, join_path(found[0], self.path) if self.path else found[0]

    def _is_bound(self, part: Any) -> bool:
        """Whether the component is a part with a mode bound to it: a copy with the same arrays."""
        if type(part) is not type(self.component):
            return False
        values, others = (jax.tree.leaves(unbind(each)) for each in (self.component, part))
        return len(values) == len(others) and all(map(operator.is_, values, others))


def _annotate(error: Exception, verb: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Add notes to an error that a verb's method raised: what to do at the innermost call, and the path at every outer one."""
    if not args or not isinstance(args[0], Component):
        return
    place = getattr(error, "_fulmen_place", None)
    if place is None:
        error._fulmen_place = _Place(args[0])  # type: ignore[attr-defined]
        for note in filter(None, _remedies(error, verb, args[0], options)):
            error.add_note(note)
        return
    place.move_to(args[0])
    note = f"in {place.path!r} of {type(place.component).__name__}" if place.path else ""
    if note != place.note:
        notes = getattr(error, "__notes__", [])
        if place.note in notes:
            notes[notes.index(place.note)] = note
        else:
            error.add_note(note)
        place.note = note


def _remedies(error: Exception, verb: str, component: Component, options: Mapping[str, Any]) -> list[str]:
    if isinstance(error, MissingMethodError | AmbiguousMethodError):
        return []
    found = []
    with contextlib.suppress(Exception):  # the arrays cannot be drawn, for another reason
        found += [] if isinstance(error, MissingArraysError) else [missing_arrays(component, verb)]
    if isinstance(error, TypeError) and any(name in options for name in _MODES):
        found.append(
            f"The mode is no option of `{verb}`: `fit` and `evaluate` set it, and a call of your own has it last, "
            f"fm.{verb}(model, x, fm.Train(key)) or fm.Eval()."
        )
    undrawn = [name for name, value in parts(component).items() if value is None]
    if verb == "forward" and undrawn and init.method(component, None).members[0] == (Component,):
        kind = type(component).__name__
        found.append(
            f"{kind}.{undrawn[0]} is None, and {kind} has no `init` that draws it: write `def init({kind.lower()}: {kind}, key): return "
            f"fm.replace({kind.lower()}, {undrawn[0]}=…)`, with @dispatch above it."
        )
    if verb == "forward" and not is_foreign(component):
        inside = next((name for name, part in parts(component).items() if hasattr(type(part), "__stands_for__")), None)
        if inside is not None:
            found.append(
                f"{inside!r} is a module of another library: {inside}(x) calls it as that library does, perhaps with one example; "
                f"forward({inside}, x) calls it with the whole batch."
            )
    return found


hooks.annotate = _annotate


def _remedy(verb: str, first: str, args: Sequence[type]) -> str:
    """The remedy for a call without a method, from the names of the verb and of its first parameter, and the arguments' types."""
    kind = args[0] if args else object
    if kind is tuple and first in ("state", "component"):
        return "`fit` returns two values: state, history = fm.fit(…)."
    if verb == "loss" and issubclass(kind, Model) and _has_losses(kind):
        return (
            f"{kind.__name__} has a method of `losses`, which only an fm.System is trained by: write `class {kind.__name__}(fm.System)`, "
            "or one `loss`."
        )
    if verb == "loss" and (issubclass(kind, Model) or library_of(kind)) and len(args) == 2 and issubclass(args[1], Batch):
        return "fm.Classifier(model) and fm.Regressor(model) are systems that give a model a loss; or write a method for it."
    if verb == "fit" and len(args) == 3 and not issubclass(args[2], _ARRAYS):
        return f"The validation data is an option: fm.fit({first}, data, validation=…)."
    if first == "state" and len(args) == 3 and verb in ("fit", "evaluate", "train_step", "eval_step"):
        return f"The data is one argument: fm.{verb}({first}, (x, y))."
    return ""


def _has_losses(kind: type) -> bool:
    """Whether a class of models has a method of `losses`."""
    return any(issubclass(kind, each) and issubclass(each, Model) for m in losses.methods for each in m.members[0])


hooks.remedy = _remedy

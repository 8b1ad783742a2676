"""Marks: properties that a method declares, since the library cannot determine them."""

from collections.abc import Callable
from typing import Any, TypeVar

from fulmen.core.immutable import Immutable

__all__ = [
    "Mark",
    "ignores_steps",
    "keeps_points",
    "keeps_rows",
    "keeps_state",
    "standard_step",
    "sums_losses",
    "uses_outputs",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Mark(Immutable):
    """A property of methods. Written below `@dispatch`, it declares the property for one method.

    A method without the mark, on a user's type as on one of the library's, is treated as if it lacked the property.

    Args:
        name: the mark's name.

    >>> class Total(fm.System):
    ...     net: fm.Model
    >>> @fm.dispatch
    ... @fm.marks.sums_losses
    ... def loss(total: Total, batch):
    ...     return fm.reduce_losses(total, fm.losses(total, batch), batch)
    """

    name: str

    def __call__(self, function: _Function) -> _Function:
        function.__dict__["__marks__"] = {*getattr(function, "__marks__", ()), self.name}
        return function

    def on(self, method: Any) -> bool:
        """Whether a `Method`, as `verb.method(…)` returns it, has the mark."""
        return self.name in getattr(method.function, "__marks__", ())


sums_losses = Mark("sums_losses")
"""On `loss`: it reduces the entries of `losses`, so these are logged too."""

uses_outputs = Mark("uses_outputs")
"""On `losses` of a `Supervised`: it takes the model's outputs from `outputs(system, batch)`, so they are computed once."""

keeps_rows = Mark("keeps_rows")
"""On `as_batch`: row i of the raw data becomes example i of the batch, so `predict` may pad its last batch."""

standard_step = Mark("standard_step")
"""On `update`: a component around this one may make the step instead, so this one need not be outermost."""

ignores_steps = Mark("ignores_steps")
"""On `transformation`, `views` and `advance` of an attack: they do not read its number of steps, so one program serves any."""

keeps_points = Mark("keeps_points")
"""On `advance` and `finish` of an attack: `advance` keeps the best of the points that it gets before it moves, and `finish` does no
more with the last points. So a long attack takes one more step, instead of compiling `finish`."""

keeps_state = Mark("keeps_state")
"""On `finish` of an attack: it returns the state as it is, so no program is compiled for it."""

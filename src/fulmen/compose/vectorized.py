"""Internal verbs for systems that hold several members, such as a `Population`, and their methods for all other systems.

They dispatch on the innermost component: a wrapper hands on to what it is around, also where another component, such as an
average, is its part in an evaluation. `whole` is the component with its wrappers, and each member is seen with the same
wrappers around it (`around`).

**Extending.** A vectorized system of a user is trained and evaluated like a `Population` if it has methods of these verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fulmen.core.component import Wrapper, part_name
from fulmen.core.field_checks import require_dispatched
from fulmen.core.leaves import components
from fulmen.core.tree import remake
from fulmen.core.verbs import perturb, validate
from fulmen.dispatching.registry import dispatch, verb

__all__ = ["Members", "around", "inside"]  # the verbs are private


@verb(delegates=False)
def members_of(component, whole):
    """The members of `whole`, a component or a state, each as a single system or its state; empty for a single system."""


@verb(delegates=False)
def over_members(component, whole, function, *inputs, axis=0):
    """`function(member, *inputs)` of every member, in one program.

    Args:
        *inputs: shared by all members, except that each gets its own part of a `PerMember` and its own key of a `Mode`.
        axis: the axis along which the members' arrays are stacked.

    Returns:
        The result of a single system as it is; of several members, arrays are stacked and mergeable values become `Spread`s.
    """


@verb(delegates=False)
def over_states(component, state, function, *inputs):
    """`function(state, *inputs) -> (state, extra)` of every member's state, in one program.

    A member's state is what it has as a single system. `*inputs` are as in `over_members`; a `Mode` gets the key of the
    member's step. Returns the state with its members' new states, and the extras as `over_members` returns results.
    """


@verb(delegates=False)
def seeded(component, whole, seed):
    """`whole` with the members' seeds set, unless they are given: the first has `seed`, the others the numbers after it."""


@verb(delegates=False)
def check_parts(component, whole):
    """Raise on invalid values in the parts of `whole`, before any data is seen."""


@verb(delegates=False)
def check_setup(component, state, raw):
    """Raise on a new state whose arrays do not fit its members. `raw` is the first batch."""


@verb(delegates=False)
def check_attack(component, whole, attack, batch):
    """Raise on an attack that an evaluation cannot make on some data."""


@verb(delegates=False)
def attacked(component, whole, attack, batch, key):
    """The attacked batch of an evaluation: every member is attacked by itself."""


@dispatch
def members_of(component: object, whole):
    return ()


@dispatch
def over_members(component: object, whole, function, *inputs, axis=0):
    return function(whole, *inputs)


@dispatch
def over_states(component: object, state, function, *inputs):
    return function(state, *inputs)


@dispatch
def seeded(component: object, whole, seed):
    return whole


@dispatch
def check_parts(component: object, whole):
    for _, part in components(whole):
        require_dispatched(part)
        validate(part)


@dispatch
def check_setup(component: object, state, raw):
    return None


@dispatch
def check_attack(component: object, whole, attack, batch):
    validate(attack, whole, batch)


@dispatch
def attacked(component: object, whole, attack, batch, key):
    return perturb(attack, whole, batch, key, inside=True, checked=True)


def _let_wrappers_hand_on(verb: Any) -> None:
    @verb.dispatch
    def hand_on(wrapper: Wrapper, *inputs, **options):
        return verb(_part(wrapper), *inputs, **options)


for _verb in (members_of, over_members, over_states, seeded, check_parts, check_setup, check_attack, attacked):
    _let_wrappers_hand_on(_verb)


def _part(wrapper: Wrapper) -> Any:
    return getattr(wrapper, part_name(type(wrapper)))


def around(whole: Any, member: Any) -> Any:
    """The wrappers of `whole` around a member."""
    if not isinstance(whole, Wrapper):
        return member
    return remake(whole, {part_name(type(whole)): around(_part(whole), member)})


def inside(whole: Any, view: Any) -> Any:
    """The member in `around(whole, member)`."""
    while isinstance(whole, Wrapper):
        whole, view = _part(whole), _part(view)
    return view


class Members(Sequence[Any]):
    """`n` members, each of which `member(i)` makes when it is asked for."""

    def __init__(self, n: int, member: Callable[[int], Any]) -> None:
        self._n, self._member = n, member

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        found = range(self._n)[index]
        return self._member(found) if isinstance(found, int) else [*map(self._member, found)]

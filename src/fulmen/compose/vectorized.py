"""Internal verbs for systems that hold several members, such as a `Population`, and their methods for all other systems.

They dispatch on the innermost component: a wrapper passes the call to its first field, even if it evaluates another component,
such as an average. `whole` is the component with its wrappers; each member gets the same wrappers (`around`).

**Extending.** A user-defined vectorized system is trained and evaluated like a `Population` if it has methods of these verbs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fulmen.compose.loss_entries import require_own_loss
from fulmen.compose.per_member import per_member, pooled
from fulmen.core import Eval, Structure, components, keep, pack, per_structure, remake
from fulmen.core.component import Wrapper, first_field, part_name, unwrapped
from fulmen.core.field_checks import require_dispatched
from fulmen.core.verbs import as_batch, perturb, validate
from fulmen.dispatching.registry import dispatch, verb

__all__: list[str] = []  # the verbs are private


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

    A member's state is that of a single system. `*inputs` are as in `over_members`, except that a `Mode` gets the key of the
    member's step. Returns the state with the members' new states, and the extras as `over_members` returns results.
    """


@verb(delegates=False)
def seeded(component, whole, seed):
    """`whole` with the members' seeds set to `seed`, `seed + 1`, …, unless they are given."""


@verb(delegates=False)
def check_setup(component, state, raw):
    """Raise on a new state whose arrays do not fit its members. `raw` is the first batch."""


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
def check_setup(component: object, state, raw):
    return None


def _pass_to_first_field(verb: Any) -> None:
    @verb.dispatch
    def pass_on(wrapper: Wrapper, *inputs, **options):
        return verb(first_field(wrapper), *inputs, **options)


for _verb in (members_of, over_members, over_states, seeded, check_setup):
    _pass_to_first_field(_verb)


def around(whole: Any, member: Any) -> Any:
    """The wrappers of `whole` around a member."""
    if not isinstance(whole, Wrapper):
        return member
    return remake(whole, {part_name(type(whole)): around(first_field(whole), member)})


def inside(whole: Any, view: Any) -> Any:
    """The `member` in `view = around(whole, member)`."""
    while isinstance(whole, Wrapper):
        whole, view = first_field(whole), first_field(view)
    return view


def check_parts(whole: Any, everything: list[tuple[str, Any]]) -> None:
    """Raise on invalid values in the parts of a component, `everything` from `components`, before any data is seen."""
    members = members_of(whole, whole)
    if members:
        validate(unwrapped(whole))
    else:
        for _, part in everything:
            require_dispatched(part)
            if isinstance(part, Wrapper):
                require_own_loss(part)
            validate(part)
    for i, member in enumerate(members):
        try:
            check_parts(member, components(member))
        except Exception as error:
            error.add_note(f"in member {i} of the population")
            raise


def refuse_members(wrapper: Any, written: str, why: str = "") -> None:
    """Raise if a wrapper is around several members; `written` is the wrapper around one of them."""
    part = first_field(wrapper)
    if n := len(members_of(part, wrapper)):
        name, inside = type(wrapper).__name__, type(part).__name__
        raise TypeError(f"{name} must not be around a {inside}{why}; write fm.Population({written}, {n}).")


def check_attack(whole: Any, attack: Any, batch: Any) -> None:
    """Raise on an attack that an evaluation cannot apply to some data."""
    if members := members_of(whole, whole):
        whole, batch = members[0], as_batch(members[0], pooled(batch, len(members)))
    validate(attack, whole, batch)


def attacked_batch(whole: Any, attack: Any, batch: Any, key: Any) -> Any:
    """The attacked batch of an evaluation: every member is attacked separately."""
    if not members_of(whole, whole):
        return perturb(attack, whole, batch, key, inside=True, checked=True)
    leaves, structure = pack((attack, whole))
    keep(structure, pack(whole)[1])
    return per_member(_attack_each(structure, leaves, batch, key))


@per_structure()
def _attack_each(structure: Structure, leaves: list[Any], batch: Any, key: Any) -> Any:
    attack, whole = structure.unpack(leaves)
    run = lambda one, batch, mode: perturb(attack, one, batch, mode.root, inside=True, checked=True)
    return over_members(whole, whole, run, batch, Eval(key), axis=1)


class Members(Sequence[Any]):
    """`n` members; `member(i)` makes member i when it is indexed."""

    def __init__(self, n: int, member: Callable[[int], Any]) -> None:
        self._n, self._member = n, member

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        found = range(self._n)[index]
        return self._member(found) if isinstance(found, int) else [*map(self._member, found)]

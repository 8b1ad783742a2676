"""`Population`: several systems of one kind, trained side by side in one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.losses import as_figure, entry, per_example, reduced, total_loss
from fulmen.compose.per_member import PerMember, cut, per_member
from fulmen.core.batch import Batch
from fulmen.core.component import Component, Frozen, System, Wrapper, fold_name, is_foreign, part_name
from fulmen.core.leaves import is_array
from fulmen.core.marks import keeps_rows, sums_losses
from fulmen.core.mergeable import Spread
from fulmen.core.naming import concrete
from fulmen.core.stacking import each, is_own, join, split, take
from fulmen.core.tree import STATIC, Tree, children, kinds, remake, short
from fulmen.core.verbs import (
    after_update,
    as_batch,
    augment,
    bind,
    forward,
    init,
    loss,
    losses,
    metrics,
    predictions,
    reduce_losses,
    sample,
    validate,
)
from fulmen.dispatching.registry import dispatch

__all__ = ["Population"]


class Population(System):
    """Several systems of one kind that are trained side by side in one program, each as if it were alone.

    Each has its own parameters, optimizer state, buffers and randomness: member i is what `setup(system, data, seed=seed + i)`
    gives, and trains as that would on the same batches. What is said of optimizers (`optimizer=`, `lr=`, a dict by path) is
    said of one member; `lr` may be a list with a number for each. Figures come as the mean over the members, with `…/std`,
    their standard deviation (not corrected for their number), and `…/members`, `(n,)`. `fm.members(state)[i]` is one member's
    state, and `fm.best(state, …)` that of the best one.

    Data is shared by all, or each member's own: `PerMember`. An attack inside (`Population(Adversarial(system, attack), n)`)
    is each member's own; a defence outside (`Adversarial(Population(system, n), attack)`) attacks the mean of their losses,
    and all members see the same attacked batch. What has a training step of its own (`SAM(system)`) stands inside.

    Args:
        system: a description, or a system whose arrays are there, with which every member then begins (another library's
            module has its arrays: `setup` warns of copies); or a list of systems that differ in numbers and arrays alone: a
            learning rate that a method of `configure_optimizers` reads, the weight of a term, an ε, a module drawn by another
            seed. All numbers and arrays get a leading axis of size n, and may be changed without compiling anew.
        n: how many, where one system is given.
        seeds: `(n,)`, each member's seed; `setup` sets them.

    Raises:
        TypeError: if the members are of different kinds, or no components.
        ValueError: if there are fewer than one, or if they differ in structure, naming the first path that does.

    >>> population = fm.Population([fm.Classifier(fm.models.Dense(4, 3), w * fm.CrossEntropy()) for w in (0.5, 1.0)])
    >>> state = fm.setup(population, (jnp.ones((6, 4)), jnp.zeros(6, int)), optimizer=optax.adam, lr=[1e-3, 1e-2])
    >>> state.system.members.model.weight.shape, fm.members(state)[1].system.model.weight.shape
    ((2, 4, 3), (4, 3))
    """

    leading_axes: ClassVar[int] = 1

    members: Component
    n: int
    seeds: jax.Array | None = None

    def __init__(self, system: Any, n: int | None = None, *, seeds: Any = None) -> None:
        members = [system] * _number(n) if not isinstance(system, list | tuple) else [*system]
        if isinstance(system, list | tuple) and n not in (None, len(members)):
            raise ValueError(f"Population: a list of {len(members)} systems and n={n} came; one of the two was expected.")
        _require_alike(members)
        structure = jax.tree.structure(members[0])
        stacked = [stack(values) for values in zip(*map(jax.tree.leaves, members), strict=True)]
        self.__dict__.update(members=structure.unflatten(stacked), n=len(members), seeds=seeds, mode=None)

    @property
    def per_example(self) -> bool:
        """Whether its members say that they are per example."""
        return per_example(self.members)

    def __len__(self) -> int:
        return self.n


def _number(n: Any) -> int:
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"Population: how many members, such as fm.Population(system, 8), was expected, and n={n!r} came.")
    return int(n)


def _require_alike(members: list[Any]) -> None:
    if not members:
        raise ValueError("Population: at least one member was expected, and none came.")
    first = members[0]
    for i, member in enumerate(members):
        if not isinstance(member, Component):
            instead = (
                f" Put it in a system: fm.Population(fm.Classifier(module), {len(members)})." if is_foreign(member) else ""
            )
            raise TypeError(f"Population: systems were expected, and member {i} is {short(member)}.{instead}")
        if type(member) is not type(first):
            raise TypeError(
                f"Population: members of one kind were expected; member 0 is a {type(first).__name__}, and member {i} a "
                f"{type(member).__name__}. What differs in more than its numbers is a system of several parts, or several runs."
            )
        found = next(_differences(first, member, ""), None) if i else None
        if found is not None:
            path, a, b = found
            raise ValueError(
                f"Population: members may differ in numbers and not in structure; {path} is {a} in member 0, and {b} in member {i}."
            )


def _differences(a: Any, b: Any, path: str, fixed: bool = False) -> Iterator[tuple[str, str, str]]:
    """Where two trees differ in more than their numbers: the path, and what is there; `fixed` is what is static."""
    inside: Any = ({}, {}) if fixed else (dict(children(a)), dict(children(b)))
    if fixed or type(a) is not type(b) or inside[0].keys() != inside[1].keys() or not inside[0]:
        if not fixed and type(a) is type(b) and not jax.tree_util.all_leaves([a]):
            # Of a node without anything in it, or with something else.
            differ = jax.tree.structure(a) != jax.tree.structure(b)
        elif fixed or not (_is_number(a) and _is_number(b)):
            differ = a != b
        else:
            differ = (np.shape(a), np.shape(a) and a.dtype) != (np.shape(b), np.shape(b) and b.dtype)
        if differ:
            yield path, short(a), short(b)
        return
    known = kinds(type(a)) if isinstance(a, Tree) else {}
    for name, value in inside[0].items():
        below = f"{path}.{name}" if path else name
        yield from _differences(value, inside[1][name], below, known.get(name) == STATIC)


def _is_number(value: Any) -> bool:
    return is_array(value) or isinstance(value, int | float | complex)


def stack(values: Any) -> Any:
    """The members' values of a leaf as one; numbers stay weakly typed."""
    if not _is_number(values[0]):
        return values[0]  # a function in somebody else's model
    if not is_array(values[0]) and len({*map(type, values)}) > 1:
        values = [*map(float, values)]
    if isinstance(values[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(values), *values[0].shape), values[0].dtype)
    if all(v is values[0] for v in values):
        return jnp.broadcast_to(jnp.asarray(values[0]), (len(values), *np.shape(values[0])))
    return jnp.stack([jnp.asarray(v) for v in values])


# Where a population is, and what its members see


def population_in(component: Any) -> Population | None:
    """The population that a component is, or that its wrappers are around."""
    while isinstance(component, Wrapper) and not isinstance(component, Frozen):
        component = getattr(component, part_name(type(component)))
    return component if isinstance(component, Population) else None


def around(component: Any, member: Any) -> Any:
    """The component with something else in the place of its population."""
    if isinstance(component, Population):
        return member
    name = part_name(type(component))
    return remake(component, {name: around(getattr(component, name), member)})


def inside(component: Any, view: Any) -> Any:
    """What stands in a view of the component in the place of its population."""
    while not isinstance(component, Population):
        name = part_name(type(component))
        component, view = getattr(component, name), getattr(view, name)
    return view


def first(component: Any, other: Any = None) -> tuple[Any, Any]:
    """The component as its first member sees it, and the same of what goes with it; others as they are."""
    population = population_in(component)
    if population is None:
        return component, other
    return around(component, take(population.members, 0)), take(other, 0)


def seeded(component: Any, seed: int) -> Any:
    """The component with its members' seeds set, one after another."""
    population = population_in(component)
    if population is None:
        return component
    return around(component, remake(population, {"seeds": jnp.arange(population.n) + seed}))


def views(function: Callable[..., Any], component: Any, *inputs: Any, mode: Any = None, out_axes: Any = 0) -> Any:
    """`function(view, *inputs)` of the component as each member sees it, stacked.

    Args:
        function: what is computed.
        component: one with a population in it.
        *inputs: batches or arrays, that all share; of what is `PerMember`, each gets its own.
        mode: what to bind; None is what is bound to the population, if anything.
        out_axes: as in `jax.vmap`.
    """
    population = population_in(component)
    assert population is not None
    mode = population.mode if mode is None else mode

    def look(view: Any, number: Any, *inputs: Any) -> Any:
        return function(view if mode is None else bind(view, mode_of(mode, number)), *inputs)

    return over(look, component, *inputs, out_axes=out_axes)


def copies(population: Population) -> bool:
    """Whether there are several members, and no number or array that one of them has otherwise than the first."""
    own = [v for v in jax.tree.leaves(population.members) if is_own(v) and jnp.issubdtype(v.dtype, jnp.number)]
    return population.n > 1 and all(v is not None and (v[1:] == v[:1]).all() for v in map(concrete, own))


def mode_of(mode: Any, number: Any) -> Any:
    """A member's mode, of the population's."""
    return mode if mode.root is None else remake(mode, {"root": jax.random.fold_in(mode.root, number)})


def over(function: Callable[..., Any], component: Any, *inputs: Any, out_axes: Any = 0) -> Any:
    """`function(view, number, *inputs)` of the component as each member sees it, as it is stored, stacked."""
    population = population_in(component)
    assert population is not None
    varying, shared, structure = split(population.members)
    leaves, axes, build = cut(inputs)

    def run(varying: Any, number: Any, leaves: Any) -> Any:
        view = around(component, join(varying, shared, structure))
        return function(view, number, *build(view, leaves))

    return jax.vmap(run, in_axes=(0, 0, axes), out_axes=out_axes)(varying, jnp.arange(population.n), leaves)


# What a population's verbs do


@dispatch
def bind(population: Population, mode):
    # The members are bound one by one where they run: a mode that lay in them would have to be cut like their arrays.
    return remake(population, {"mode": mode.over(population.mode)})


@dispatch
def init(population: Population, key):
    seeds = population.seeds
    if seeds is None:
        seeds = jax.random.randint(key, (population.n,), 0, 2**31 - 1)

    def draw(member: Any, seed: Any) -> tuple[Any, None]:
        return init(member, fold_name(jax.random.key(seed), "init")), None

    return remake(population, {"members": each(draw, population.members, seeds)[0], "seeds": seeds})


@dispatch
def validate(population: Population):
    if population.n < 1:
        raise ValueError(f"Population, n: at least one member was expected, and n={population.n} came.")
    for path, leaf in jax.tree_util.tree_flatten_with_path(population.members)[0]:
        if is_own(leaf) and leaf.shape[0] != population.n:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"Population, members.{name}: one for each of the {population.n} members was expected, along the first axis, and "
                f"{short(leaf)} came."
            )


@dispatch
def validate(population: Population, batch):
    # What there is to say of data is the same for all members, but for numbers of theirs.
    if isinstance(batch, PerMember):
        shapes = {np.shape(v)[1:2] for v in jax.tree.leaves(batch.data)}
        if shapes != {(population.n,)}:
            raise ValueError(
                f"PerMember: data for each of the {population.n} members was expected, and {short(batch)} came."
            )
        batch = jax.tree.map(lambda v: np.asarray(v).reshape(-1, *np.shape(v)[2:]), batch.data)
    member = first(population)[0]
    validate(member, as_batch(member, batch))


@dispatch
@keeps_rows
def as_batch(population: Population, raw):
    return raw if isinstance(raw, Batch) else as_batch(first(population)[0], raw)


@dispatch
def forward(population: Population, *inputs):
    """`(n, members, …)`: examples first, as everywhere."""
    return views(forward, population, *inputs, out_axes=1)


@dispatch
def sample(population: Population, key, shape):
    return views(lambda member: sample(member, key, shape), population)


@dispatch
@sums_losses
def loss(population: Population, batch):
    return views(total_loss, population, batch).mean()


@dispatch
def losses(population: Population, batch):
    return _numbered(population, views(entry, population, batch))


@dispatch
def reduce_losses(population: Population, losses, batch):
    def value(i: int) -> Any:
        leaves, axes, build = cut(batch)
        member = take(population.members, i)
        own = build(member, [v if axis is None else v[:, i] for v, axis in zip(leaves, axes, strict=True)])
        return reduced(member, losses[str(i)], own, f"the loss of member {i}")

    return jnp.stack([value(i) for i in range(population.n)]).mean()


@dispatch
def metrics(population: Population, batch):
    def figures(member: Any, batch: Any) -> dict[str, Any]:
        return {name: as_figure(name, figure, batch) for name, figure in metrics(member, batch).items()}

    return {name: Spread(figure) for name, figure in views(figures, population, batch).items()}


@dispatch
def predictions(population: Population, batch):
    found = _numbered(population, views(predictions, population, batch))
    return {f"{i}/{name}" if name else i: p for i, each in found.items() for name, p in each.items()}


def _numbered(population: Population, stacked: Any) -> dict[str, Any]:
    return {str(i): jax.tree.map(lambda v, i=i: v[i], stacked) for i in range(population.n)}


@dispatch
def augment(population: Population, batch, mode):
    as_it_is: list[bool] = []

    def augmented(member: Any, number: Any, batch: Any) -> Any:
        after = augment(member, batch, mode_of(mode, number))
        as_it_is.append(after is batch)
        return after

    after = over(augmented, population, batch, out_axes=1)
    return batch if all(as_it_is) else per_member(after)


@dispatch
def after_update(population: Population, batch, mode):
    leaves, axes, build = cut(batch)

    def moved(member: Any, number: Any, leaves: Any) -> tuple[Any, None]:
        return after_update(member, build(member, leaves), mode_of(mode, number)), None

    members, _ = each(moved, population.members, jnp.arange(population.n), leaves, axes=(0, axes))
    return remake(population, {"members": members})

"""`Population`: several systems of one type, trained in one program."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fulmen.compose.example_means import per_example
from fulmen.core import by_path, each, is_array, is_own
from fulmen.core.component import Component, System, fold_name, is_foreign
from fulmen.core.fields import STATIC, kinds, static
from fulmen.core.tree import Tree, children, remake, short, with_article
from fulmen.core.verbs import init, validate
from fulmen.dispatching.registry import dispatch


class Population(System):
    """Several systems of one type that are trained in one program, each independently of the others.

    Each member has its own parameters, optimizer state, buffers and randomness: member i is what
    `setup(system, data, seed=seed + i)` returns, and it trains as that state would on the same batches. Optimizer options
    (`optimizer=`, `lr=`, a dict by path) are those of one member; `lr` may be a list with a rate for each, a number or a
    schedule. Metrics are means over the members, with `…/std`, the standard deviation (divided by n), and `…/members`, `(n,)`.
    `fm.members(state)[i]` is the state of one member, and `fm.best_member(state, …)` that of the best one.

    All members share the data, or each has its own: `PerMember`. With a defence inside
    (`Population(Adversarial(system, attack), n)`) each member is attacked separately; a defence outside
    (`Adversarial(Population(system, n), attack)`) attacks the mean of the losses, and all members get the same attacked batch.
    A component that defines its own training step (`SAM(system)`) must be inside. As a part of another system, its loss is the mean
    over the members, so each gets 1/n of the gradient that it would get alone.

    Args:
        system: a description; or a system with arrays, which are the initial arrays of every member (a module of another
            library has arrays: `setup` warns about copies); or a list of systems that differ only in numbers and arrays, such
            as a learning rate that `configure_optimizers` reads, the weight of a term, an ε, or a module drawn with another
            seed. All numbers and arrays get a leading axis of size n, and can be changed without recompilation.
        n: the number of members, if one system is given.
        seeds: `(n,)` integers, one seed per member; None: `setup` sets them to `seed`, `seed + 1`, and so on.

    Raises:
        TypeError: if the members are of different types, or not components.
        ValueError: if there is no member, or if the members differ in structure, with the first path that differs.

    >>> population = fm.Population([fm.Classifier(fm.models.Dense(4, 3), w * fm.CrossEntropy()) for w in (0.5, 1.0)])
    >>> state = fm.setup(population, (jnp.ones((6, 4)), jnp.zeros(6, int)), optimizer=optax.adam, lr=[1e-3, 1e-2])
    >>> state.system.members.model.weight.shape, fm.members(state)[1].system.model.weight.shape
    ((2, 4, 3), (4, 3))
    """

    leading_axes: ClassVar[int] = 1

    members: Component
    n: int = static(minimum=1)
    seeds: jax.Array | None = None

    def __init__(self, system: Any, n: int | None = None, *, seeds: Any = None) -> None:
        members = [system] * _number(n) if not isinstance(system, list | tuple) else [*system]
        if isinstance(system, list | tuple) and n not in (None, len(members)):
            raise ValueError(
                f"Population: n must be left out or {len(members)} for a list of {len(members)} systems, got {n}."
            )
        _require_alike(members)
        structure = jax.tree.structure(members[0])
        stacked = [_stack(values) for values in zip(*map(jax.tree.leaves, members), strict=True)]
        self.members, self.n = structure.unflatten(stacked), len(members)
        self.seeds = None if seeds is None else jnp.asarray(seeds)

    @property
    def per_example(self) -> bool:
        """Whether the members are per example."""
        return per_example(self.members)

    def __len__(self) -> int:
        return self.n


def _number(n: Any) -> int:
    if not isinstance(n, int | np.integer) or isinstance(n, bool):
        raise TypeError(f"Population: n must be the number of members, such as fm.Population(system, 8), got n={n!r}.")
    return int(n)


def _require_alike(members: list[Any]) -> None:
    if not members:
        raise ValueError("Population must have at least one member, got 0.")
    first = members[0]
    for i, member in enumerate(members):
        if not isinstance(member, Component):
            example = f" Write fm.Population(fm.Classifier(module), {len(members)})." if is_foreign(member) else ""
            raise TypeError(f"Population: the members must be systems, got {short(member)} as member {i}.{example}")
        if type(member) is not type(first):
            raise TypeError(
                f"Population: all members must be of one type, got {with_article(type(first))} as member 0 and "
                f"{with_article(type(member))} as member {i}. Train systems of different types in separate runs, or as parts of one system."
            )
        found = next(_differences(first, member, ""), None) if i else None
        if found is not None:
            path, a, b = found
            raise ValueError(
                f"Population: members may differ only in numbers and arrays, but {path} is {a} in member 0 and {b} in member {i}."
            )


def _differences(a: Any, b: Any, path: str, fixed: bool = False) -> Iterator[tuple[str, str, str]]:
    """Where two trees differ in more than their numbers: the path and both values; `fixed` is True for static values."""
    inside: Any = ({}, {}) if fixed else (dict(children(a)), dict(children(b)))
    if fixed or type(a) is not type(b) or inside[0].keys() != inside[1].keys() or not inside[0]:
        if not fixed and type(a) is type(b) and not jax.tree_util.all_leaves([a]):
            # A node without children, or with other children.
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


def _stack(values: Any) -> Any:
    """The members' values of a leaf, stacked; numbers stay weakly typed."""
    if not _is_number(values[0]):
        return values[0]  # a function in a module of another library
    if not is_array(values[0]) and len({*map(type, values)}) > 1:
        values = [*map(float, values)]
    if isinstance(values[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(values), *values[0].shape), values[0].dtype)
    if all(v is values[0] for v in values):
        return jnp.broadcast_to(jnp.asarray(values[0]), (len(values), *np.shape(values[0])))
    return jnp.stack([jnp.asarray(v) for v in values])


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
    n, seeds = population.n, population.seeds
    if seeds is not None and (seeds.shape != (n,) or not jnp.issubdtype(seeds.dtype, jnp.integer)):
        raise ValueError(f"Population: seeds must be {n} integers, one for each member, got {short(seeds)}.")
    require_one_per_member("Population.members.", population.members, n)


def require_one_per_member(prefix: str, tree: Any, n: int) -> None:
    """Raise unless the first axis of each array in a tree has the size of a population."""
    for path, leaf in by_path(tree):
        if is_own(leaf) and leaf.shape[0] != n:
            raise ValueError(
                f"{prefix}{path} must have one value for each of the {n} members along its first axis, got {short(leaf)}."
            )

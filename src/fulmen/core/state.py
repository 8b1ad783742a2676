"""`State`: the complete state of training, as flat leaves and a structure that jit compares by identity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fulmen.core.component import Component
from fulmen.core.leaves import BUFFER, PARAMETER, components, is_array, leaves
from fulmen.core.limits import check_limits
from fulmen.core.mode import Plan, UnreadPlan
from fulmen.core.paths import by_path, join_path
from fulmen.core.structure import Structure, pack
from fulmen.core.tree import short
from fulmen.core.verbs import show
from fulmen.dispatching import hooks

_FIELDS = ("system", "optimizer_state", "optimizer", "step", "key")


class State:
    """The complete state of training; a pytree of data.

    `pickle` needs functions with names, which a transformation such as `optax.adam(1e-3)` does not have: give the
    constructor, `optimizer=optax.adam, lr=1e-3`, or use `cloudpickle` or `fm.save`.

    Attributes:
        system: the component, with no mode bound.
        optimizer_state: a tuple with the state of each group of parameters.
        optimizer: the optimizer that `setup` was given, or None; its numbers are data.
        step: the number of steps done.
        key: the run's random key.
        plan: the known properties of the run.
        devices: the policy by which the arrays are distributed over devices, such as `fm.FSDP(mesh)`; None for one device.
        arrays, raw_key, structure: the arguments of programs: a list of all arrays, the key's data, and the static part.
    """

    __slots__ = ("_step", "_trees", "arrays", "raw_key", "structure")

    def __init__(
        self,
        system: Any,
        optimizer_state: Any = (),
        *,
        optimizer: Any = None,
        step: Any = 0,
        key: Any,
        plan: Plan | None = None,
        devices: Any = None,
    ) -> None:
        raw, implementation = _raw(key)
        self.arrays, self.structure = pack((system, optimizer_state, optimizer), plan or Plan(), implementation, devices)
        self.raw_key = raw
        self._trees: Any = None
        self._step = np.int32(step) if isinstance(step, int) else step

    @classmethod
    def of(cls, arrays: Any, raw_key: Any, step: Any, structure: Structure) -> State:
        """The state with these attributes."""
        state = object.__new__(cls)
        state.arrays, state.raw_key, state._step, state.structure, state._trees = arrays, raw_key, step, structure, None
        return state

    def _tree(self) -> Any:
        if self._trees is None:
            self._trees = self.structure.unpack(self.arrays)
        return self._trees

    @property
    def system(self) -> Any:
        return self._tree()[0]

    @property
    def optimizer_state(self) -> Any:
        return self._tree()[1]

    @property
    def optimizer(self) -> Any:
        return self._tree()[2]

    @property
    def step(self) -> Any:
        return self._step

    @property
    def plan(self) -> Plan:
        return self.structure.extra[0]

    @property
    def devices(self) -> Any:
        return self.structure.extra[2]

    @property
    def key(self) -> Any:
        implementation = self.structure.extra[1]
        return self.raw_key if implementation is None else jax.random.wrap_key_data(self.raw_key, impl=implementation)

    def replace(self, **changes: Any) -> State:
        """The state with other values of some attributes."""
        return State(**{**{name: getattr(self, name) for name in (*_FIELDS, "plan", "devices")}, **changes})

    def next(self, leaves: Any) -> State:
        """The state of the next step, with these leaves."""
        return State.of(leaves, self.raw_key, self.step + 1, self.structure)

    def __fields__(self) -> Any:
        return ((name, getattr(self, name)) for name in _FIELDS)

    def __replace_field__(self, name: str, value: Any) -> State:
        old = getattr(self, name)
        if name == "system":
            _require_same_shapes(old, value)
            for _, part in components(value):
                if isinstance(part, Component):
                    check_limits(part)
        return self.replace(**{name: _as_weak(old, value)})

    def __reduce__(self) -> Any:
        return State.of, (self.arrays, self.raw_key, self.step, self.structure)

    def __repr__(self) -> str:
        return f"State(step={self.step}, system={self.system!r})"

    def _repr_html_(self) -> str:
        return show(self)


def without_plan(structure: Structure) -> Structure:
    """The structure for programs that serve every plan; reading the plan raises `PlanRead`."""
    if "without plan" not in structure.programs:
        plan, *others = structure.extra
        extra = UnreadPlan(microbatches=plan.microbatches), *others
        structure.programs["without plan"] = Structure(structure.treedef, structure.fixed, extra)
    return structure.programs["without plan"]


def _as_weak(old: Any, new: Any) -> Any:
    """New values, weakly typed where the old ones are: another type would need another program."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        return new

    def typed(a: Any, b: Any) -> Any:
        known = isinstance(b, np.ndarray | np.generic | jax.Array) and not isinstance(b, Tracer)
        if not known or b is a or not getattr(a, "weak_type", False) or np.shape(a) != np.shape(b):
            return b
        return weakly(np.asarray(b, a.dtype))

    return jax.tree.map(typed, old, new)


def weakly(value: np.ndarray) -> jax.Array:
    """The array, weakly typed as a Python number is, if Python has numbers of its type."""
    zero, array = jnp.asarray(value.dtype.type(0).item()), jnp.array(value)
    return jnp.broadcast_to(zero, array.shape).at[...].set(array) if zero.dtype == array.dtype else array


def _require_same_shapes(old: Any, new: Any) -> None:
    """Raise for a trained array of another shape or type, which the optimizer's state would not fit."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        return  # another part, which the types check themselves
    for a, b in zip(leaves(old), leaves(new), strict=True):
        if a.role in (PARAMETER, BUFFER) and (np.shape(a.value), a.role) != (np.shape(b.value), b.role):
            raise ValueError(
                f"system.{a.path} must remain a {a.role}, {short(a.value)}, got {short(b.value)}. For other shapes or types set "
                "up a new component: fm.setup(component, data, optimizer=…)."
            )


def _raw(key: Any) -> tuple[Any, Any]:
    if not is_array(key):
        key = jax.random.key(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(key), str(jax.random.key_impl(key))
    return key, None


def _flatten(state: State) -> tuple[Any, Any]:
    return (*state.arrays, state.raw_key, state.step), state.structure


def _flatten_with_keys(state: State) -> tuple[Any, Any]:
    paths = [join_path(name, path) for name, tree in zip(_FIELDS, state._tree()) for path, _ in by_path(tree)]
    fixed = {place for place, _ in state.structure.fixed}
    names = [path for i, path in enumerate(paths) if i not in fixed]
    keys = map(jax.tree_util.GetAttrKey, (*names, "key", "step"))
    children, aux = _flatten(state)
    return list(zip(keys, children, strict=True)), aux


def _unflatten(structure: Structure, children: Any) -> State:
    *leaves, key, step = children
    return State.of(leaves, key, step, structure)


jax.tree_util.register_pytree_with_keys(State, _flatten_with_keys, _unflatten, _flatten)


hooks.comes_first = lambda kind: issubclass(kind, Component | State)

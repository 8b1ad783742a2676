"""Modes: the purpose of a call, as a type, with randomness and time; `Plan`, the known properties of a run; and `Schedule`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fulmen.core.fields import static
from fulmen.core.tree import Tree, remake, short


class Mode(Tree):
    """The purpose of a call. Methods dispatch on its type: `Train`, `Eval`, or a custom subclass.

    A mode that is bound to a component holds the run's key (`root`) and a `salt` that grows with the component's path;
    `key` combines the two, and the verb, when it is read. So each component has its own randomness in each verb, and adding
    a layer changes no other layer's. A model whose mode has a `precision` computes in that type.
    """

    root: jax.Array | None
    salt: jax.Array | None = None
    verb: str = ""
    batch: jax.Array | int | None = dataclasses.field(default=None, kw_only=True, metadata={"fulmen": "child"})
    precision: Any = static(default=None, kw_only=True)

    @property
    def key(self) -> Any:
        """The component's key, another one for each `batch`; None for a mode without a key."""
        own = self.example_key
        return own if own is None or self.batch is None else jax.random.fold_in(own, self.batch)

    @property
    def example_key(self) -> Any:
        """The key for values that each example draws by its index: the same in all batches of an evaluation or a step."""
        if self.root is None or self.salt is None:
            return self.root
        return jax.random.fold_in(self.root, self.folded)

    @property
    def folded(self) -> Any:
        """The number that is folded into the run's key, from the component's path and the verb."""
        return _mix(self.salt, self.verb) if self.verb else self.salt

    def at(self, name: str) -> Any:
        """The mode of the part `name`: the same key, another salt."""
        return remake(self, {"salt": _mix(_NO_SALT if self.salt is None else self.salt, name)})

    def fold(self, number: Any) -> Any:
        """The mode of one use of a part, such as a step of a loop: the same key, another salt. The integer may be traced."""
        return remake(self, {"salt": _combine(_NO_SALT if self.salt is None else self.salt, number)})

    def within(self, verb: str) -> Any:
        """The mode that a method of this verb gets."""
        mode = object.__new__(type(self))  # as `remake`, but faster: every call of a method that names its mode runs it
        fields = mode.__dict__
        fields |= self.__dict__
        fields["verb"] = verb
        return mode

    def over(self, bound: Mode | None) -> Any:
        """The mode to bind in place of `bound`, which is kept if it has the same key."""
        fresh = remake(self, {"salt": _NO_SALT if self.salt is None else self.salt, "verb": ""})
        if bound is None or type(bound) is not type(self) or self.root is None or bound.root is None:
            return fresh
        if bound.root is self.root:
            return bound
        old, new = _data(bound.root), _data(self.root)
        if old.shape != new.shape:
            return fresh
        if isinstance(old, jax.core.Tracer) or isinstance(new, jax.core.Tracer):
            # Under jit and remat each leaf is another tracer, so the program compares them.
            salt = jnp.where((old == new).all(), jnp.asarray(bound.salt), jnp.asarray(fresh.salt))
            return remake(fresh, {"salt": salt})
        return bound if np.array_equal(old, new) else fresh

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.root is None else 'key'})"


class Train(Mode):
    """For training.

    Args:
        key: the step's JAX random key, typed or raw.
        step: the number of steps done.
        resting: the paths of the leaves that are not updated in this step, as under `fm.optimizers.every`; static.
        microbatches: the number of parts that the step splits its batch into; static. In such a part `batch` is the part's
            position, so that each part draws differently.

    >>> import jax, fulmen as fm
    >>> fm.Train(jax.random.key(0), step=3)
    Train(key, step=3)
    """

    step: jax.Array | int = dataclasses.field(default=0, metadata={"fulmen": "child"})
    resting: frozenset[str] = static(default=frozenset())
    microbatches: int = static(default=1)

    def __init__(self, key: Any, step: Any = 0, resting: frozenset[str] = frozenset(), microbatches: int = 1) -> None:
        if not hasattr(key, "dtype"):
            raise TypeError(f"Train.key must be a random key, such as jax.random.key(0), got {key!r}.")
        self.root, self.step, self.resting, self.microbatches = key, step, resting, microbatches

    def __repr__(self) -> str:
        return f"Train(key, step={self.step})"


class Eval(Mode):
    """For evaluation.

    Args:
        key: a random key, for components that draw in evaluation too; most need none.
        batch: the position of the batch in an evaluation, so that each batch draws differently; None for a single batch.
    """

    def __init__(self, key: Any = None, batch: Any = None) -> None:
        if key is not None and not hasattr(key, "dtype"):
            raise TypeError(f"Eval.key must be a random key, such as jax.random.key(0), or None, got {key!r}.")
        self.root, self.batch = key, batch


_NO_SALT = np.zeros((), np.uint32)


@functools.lru_cache(maxsize=4096)
def name_hash(name: str) -> int:
    """32 bits of a name, the same in every process, for the randomness of the part of that name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")


def _mix(salt: Any, name: str) -> Any:
    """A new salt from an old one and a name."""
    return _combine(salt, name_hash(name))


def _combine(salt: Any, number: Any) -> Any:
    """A new salt from an old one and 32 bits: FNV's step."""
    prime, shift = 16777619, 0x9E3779B9
    if isinstance(number, int | np.integer):
        number = int(number) % 2**32
        if isinstance(salt, np.ndarray | np.generic):
            return np.asarray(((int(salt) ^ number) * prime + shift) % 2**32, np.uint32)
        number = np.uint32(number)
    return (salt ^ jnp.asarray(number).astype(jnp.uint32)) * jnp.uint32(prime) + jnp.uint32(shift)


def bound_mode(value: Any) -> Mode | None:
    """The mode that is bound to a component, or None; another library's field `mode` does not count."""
    mode = getattr(value, "mode", None)
    return mode if isinstance(mode, Mode) else None


def require_key(key: Any, who: Any) -> Any:
    """The key of a mode, or an error that names the component that needs it."""
    if key is None:
        raise ValueError(
            f"{type(who).__name__} draws at random and needs a mode with a key, such as fm.Eval(key) or fm.Train(key)."
        )
    return key


def _data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


class Plan(Tree):
    """The known properties of a run, for schedules and `batches`; unknown ones are None.

    Args:
        steps_per_epoch: batches in an epoch.
        epochs: passes over the data.
        total_steps: steps in the whole run.
        batch_size: examples in a batch.
        seed: determines the order of the data; None keeps it. A state's plan has none, since it is compiled into the step,
            which does not depend on the order.
        drop_last: whether the smaller last batch of an epoch is left out.
        microbatches: the number of parts that a step splits its batch into.
    """

    steps_per_epoch: int | None = static(default=None)
    epochs: int | None = static(default=None)
    total_steps: int | None = static(default=None)
    batch_size: int | None = static(default=None)
    seed: int | None = static(default=None)
    drop_last: bool = static(default=False)
    microbatches: int = static(default=1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))


class Schedule(Tree):
    """A function from the plan to a function of the step. Its numbers are data, its lengths follow from the plan.

    **Extending.** Subclass it with fields and `__call__(self, plan)`, and with `span(self, plan)` if it does not end with the
    run.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            cls.__call__ = _for_plans(cls.__call__)

    def __call__(self, plan: Plan) -> Any:
        raise NotImplementedError

    def span(self, plan: Plan) -> int | None:
        """The number of steps after which its value no longer changes; None if it has no end."""
        return plan.total_steps


def _for_plans(call: Callable[..., Any]) -> Callable[..., Any]:
    """A schedule's `__call__` that refuses the step, with which optax calls a learning rate."""

    @functools.wraps(call)
    def __call__(self: Any, plan: Plan) -> Any:
        if not isinstance(plan, Plan):
            raise TypeError(
                f"{self!r} must be called with the plan of a run, got {short(plan)}. optax calls a learning rate with the step, which "
                "does not tell the length of the run: write `optimizer=lambda lr: optax.chain(…, optax.adam(lr))`, and the schedule "
                "as lr=fm.cosine(1e-3)."
            )
        return call(self, plan)

    return __call__


class PlanRead(Exception):
    """A step that is compiled for every plan reads the plan."""


class UnreadPlan(Plan):
    """The plan of a step that is compiled for every plan with the same `microbatches`. Reading another field raises `PlanRead`."""

    def __getattribute__(self, name: str) -> Any:
        if name in Plan.__dataclass_fields__ and name != "microbatches":
            raise PlanRead(name)
        return super().__getattribute__(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnreadPlan) and self.microbatches == other.microbatches

    def __hash__(self) -> int:
        return hash((UnreadPlan, self.microbatches))

"""Modes: what a call is for, as a type, carrying randomness and time; and `Plan`, what is known of the run ahead."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fulmen.core.fields import static
from fulmen.core.tree import Tree, remake

__all__ = ["Eval", "Mode", "Plan", "Train"]


class Mode(Tree):
    """What a call is for. Methods dispatch on its type: `Train` or `Eval`, or a subclass of one's own.

    A mode that is bound to a component holds the run's key (`root`) and a `salt` that grows with the component's path;
    `key` folds the two, and the verb, when it is read. So each component has randomness of its own, another one in each
    verb, and adding a layer changes nobody else's.
    """

    root: jax.Array | None
    salt: jax.Array | None = None
    verb: str = ""

    @property
    def key(self) -> Any:
        """The component's own key, or None where the mode was made without one."""
        return self.example_key

    @property
    def example_key(self) -> Any:
        """The key for what each example draws by its own index: the same in all batches of an evaluation."""
        if self.root is None or self.salt is None:
            return self.root
        return jax.random.fold_in(self.root, _mix(self.salt, self.verb) if self.verb else self.salt)

    def at(self, name: str) -> Any:
        """The mode of what is called `name` inside: the same key, another salt."""
        return remake(self, {"salt": _mix(_NO_SALT if self.salt is None else self.salt, name)})

    def within(self, verb: str) -> Any:
        """The mode as a method of this verb gets it."""
        mode = object.__new__(type(self))  # `remake`, only quicker: this is in every call of a method that names its mode
        fields = mode.__dict__
        fields.update(self.__dict__)
        fields["verb"] = verb
        return mode

    def over(self, bound: Mode | None) -> Any:
        """This mode where `bound` was: what has the same key already keeps its salt."""
        fresh = remake(self, {"salt": _NO_SALT if self.salt is None else self.salt, "verb": ""})
        if bound is None or type(bound) is not type(self) or self.root is None or bound.root is None:
            return fresh
        if bound.root is self.root:
            return bound
        old, new = _data(bound.root), _data(self.root)
        if old.shape != new.shape:
            return fresh
        if isinstance(old, jax.core.Tracer) or isinstance(new, jax.core.Tracer):
            # Under jit and remat each leaf is a tracer of its own, so whether they are equal is part of the program.
            salt = jnp.where((old == new).all(), jnp.asarray(bound.salt), jnp.asarray(fresh.salt))
            return remake(fresh, {"salt": salt})
        return bound if np.array_equal(old, new) else fresh

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.root is None else 'key'})"


class Train(Mode):
    """For training.

    Args:
        key: a JAX random key (typed or raw), the step's own.
        step: how many steps have been done.
        resting: the paths of the leaves that stay as they are in this step, as under `fm.every`; static.

    >>> import jax, fulmen as fm
    >>> fm.Train(jax.random.key(0), step=3)
    Train(key, step=3)
    """

    step: jax.Array | int = dataclasses.field(default=0, metadata={"fulmen": "child"})
    resting: frozenset[str] = static(default=frozenset())

    def __init__(self, key: Any, step: Any = 0, resting: frozenset[str] = frozenset()) -> None:
        if not hasattr(key, "dtype"):
            raise TypeError(f"Train takes a random key, such as jax.random.key(0); {key!r} came.")
        self.__dict__.update(root=key, salt=None, verb="", step=step, resting=resting)

    def __repr__(self) -> str:
        return f"Train(key, step={self.step})"


class Eval(Mode):
    """For evaluation.

    Args:
        key: a random key, for what draws even then; most evaluations need none.
        batch: the position of the batch in an evaluation, so that each batch draws differently; None for a single batch.
    """

    batch: jax.Array | int | None = dataclasses.field(default=None, metadata={"fulmen": "child"})

    def __init__(self, key: Any = None, batch: Any = None) -> None:
        if key is not None and not hasattr(key, "dtype"):
            raise TypeError(f"Eval takes a random key, such as jax.random.key(0), or none; {key!r} came.")
        self.__dict__.update(root=key, salt=None, verb="", batch=batch)

    @property
    def key(self) -> Any:
        own = self.example_key
        return own if own is None or self.batch is None else jax.random.fold_in(own, self.batch)


_NO_SALT = np.zeros((), np.uint32)


@functools.lru_cache(maxsize=4096)
def name_hash(name: str) -> int:
    """32 bits of a name, the same in every process: what the randomness of the part of that name follows from."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")


def _mix(salt: Any, name: str) -> Any:
    """A new salt from an old one and a name: FNV's step over the name's hash."""
    number, prime = name_hash(name), 16777619
    if isinstance(salt, np.ndarray | np.generic):
        return np.asarray(((int(salt) ^ number) * prime + 0x9E3779B9) % 2**32, np.uint32)
    return (salt ^ jnp.uint32(number)) * jnp.uint32(prime) + jnp.uint32(0x9E3779B9)


def bound_mode(value: Any) -> Mode | None:
    """The mode that is bound to a component; a field `mode` of another library's module is none."""
    mode = getattr(value, "mode", None)
    return mode if isinstance(mode, Mode) else None


def require_key(key: Any, who: Any) -> Any:
    """The key of a mode, or an error that names the component that draws with it."""
    if key is None:
        raise ValueError(
            f"{type(who).__name__} draws at random and needs a mode with a key, such as fm.Eval(key) or fm.Train(key)."
        )
    return key


def _data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


class Plan(Tree):
    """What is known of the run ahead: plain numbers, for schedules and for `batches`. What is not known is None.

    Args:
        steps_per_epoch: batches in an epoch.
        epochs: passes over the data.
        total_steps: steps in the whole run.
        batch_size: examples in a batch.
        seed: what the order of the data follows from; None keeps it as it is. A state's plan has none: it is part of what is
            compiled, and another order is no other program.
        drop_last: whether the smaller last batch of an epoch is left out.
    """

    steps_per_epoch: int | None = static(default=None)
    epochs: int | None = static(default=None)
    total_steps: int | None = static(default=None)
    batch_size: int | None = static(default=None)
    seed: int | None = static(default=None)
    drop_last: bool = static(default=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))


class PlanRead(Exception):
    """A step that was to be compiled for every plan reads the plan."""


class UnreadPlan(Plan):
    """The plan of a step that is compiled for every plan. Reading a field of it raises `PlanRead`."""

    def __getattribute__(self, name: str) -> Any:
        if name in Plan.__dataclass_fields__:
            raise PlanRead(name)
        return super().__getattribute__(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnreadPlan)

    def __hash__(self) -> int:
        return hash(UnreadPlan)

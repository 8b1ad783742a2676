"""`Immutable`: a frozen dataclass that is not a pytree; signatures of its subclasses and of trees."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import jax
import numpy as np
import pytest

import fulmen as fm
from fulmen.core.immutable import Immutable


class Pair(Immutable):
    first: int
    second: tuple[int, ...] = ()
    hidden: str = dataclasses.field(default="", repr=False)


class Triple(Pair):
    third: list[int] = dataclasses.field(default_factory=list, kw_only=True)

    def __post_init__(self):
        if self.first < 0:
            raise ValueError("first must be at least 0")


class Values(Immutable, eq=False):
    value: np.ndarray


def test_an_immutable_is_a_dataclass():
    pair = Pair(1, (2, 3), hidden="no")
    assert dataclasses.is_dataclass(Pair) and [f.name for f in dataclasses.fields(Pair)] == ["first", "second", "hidden"]
    assert repr(pair) == "Pair(first=1, second=(2, 3))"
    assert dataclasses.replace(pair, first=4) == Pair(4, (2, 3), "no")
    assert Pair(1).second == () and Triple(1).third == [] and Triple(1).third is not Triple(1).third
    assert jax.tree.leaves(pair) == [pair]  # JAX takes it for a leaf


def test_equality_is_by_fields():
    assert Pair(1) == Pair(1) and hash(Pair(1)) == hash(Pair(1)) and len({Pair(1), Pair(1), Pair(2)}) == 2
    assert Pair(1) != Pair(2) and Pair(1) != Triple(1) and Pair(1) != 1
    value = Values(np.zeros(2))
    assert value == value and value != Values(np.zeros(2)) and len({value, Values(np.zeros(2))}) == 2


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_equal(again):
    assert again(Triple(1, (2,), third=[3])) == Triple(1, (2,), third=[3])


def test_an_immutable_cannot_be_changed():
    pair = Pair(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"cannot assign to Pair\.first"):
        pair.first = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"cannot delete Pair\.first"):
        del pair.first
    assert pair == Pair(1)


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"Pair is missing first: write Pair\(first=…\)"):
        Pair()
    with pytest.raises(TypeError, match="third"):
        Pair(1, third=[2])
    with pytest.raises(ValueError, match="first must be at least 0"):
        Triple(-1)
    with pytest.raises(TypeError, match=r"late has no default but follows early"):

        class Wrong(Immutable):
            early: int = 0
            late: int


class Layer(fm.Model):
    size: int
    scale: float = 1.0


class Custom(fm.Model):
    weights: list[int]

    def __init__(self, *sizes: int, bias: bool = True):
        self.weights = list(sizes)


class BelowCustom(Custom):
    depth: int = 1


class OfMany(Immutable):
    rows: list[Any] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    "kind, parameters",
    [
        (Pair, {"first": inspect.Parameter.empty, "second": (), "hidden": ""}),
        (Triple, {"first": inspect.Parameter.empty, "second": (), "hidden": "", "third": "<factory>"}),
        (OfMany, {"rows": "<factory>"}),
        (Layer, {"size": inspect.Parameter.empty, "scale": 1.0, "mode": None}),
        (Custom, {"sizes": inspect.Parameter.empty, "bias": True}),
        (BelowCustom, {"weights": inspect.Parameter.empty, "depth": 1, "mode": None}),
    ],
)
def test_the_signature_of_a_class_has_its_fields_or_is_that_of_its_init(kind, parameters):
    found = inspect.signature(kind).parameters
    assert {
        name: p.default if p.default.__class__.__name__ != "_Factory" else repr(p.default) for name, p in found.items()
    } == (parameters)


def test_the_signature_of_a_model_is_that_of_its_call():
    assert inspect.signature(Layer(3)) == inspect.signature(Layer(3).__call__)

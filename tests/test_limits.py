"""Limits of fields: declared numbers and choices, and the types that annotations name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen.core.limits import check_limits


class Part(fm.Model):
    """A part that says what to write."""

    __example__ = "Part()"


class Limited(fm.Model):
    size: int = fm.static(minimum=1, default=2)
    sizes: int | tuple[int, int] = fm.static(minimum=1, default=2)
    rate: float | None = fm.hyper(minimum=0, below=1, default=0.5)
    scale: float = fm.hyper(above=0, default=1.0)
    weight: float = fm.hyper(finite=True, default=1.0)
    kind: str = fm.static(choices=("a", "b"), default="a")
    mean: Literal["macro", "micro"] | None = None
    function: Callable | None = None
    flag: bool = False
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    named: dict[str, Part] | None = None
    wrapped: fm.EMA | None = None
    array: jax.Array | None = None


class Narrower(Limited):
    size: int = fm.static(maximum=4, default=2)
    rate: float | None = 0.25


VALUES = [
    ({"size": 0}, "Limited.size must be at least 1, got 0."),
    ({"sizes": (3, -1)}, "Limited.sizes must be at least 1, got -1."),
    ({"rate": 1.0}, "Limited.rate must be at least 0 and below 1, got 1."),
    ({"rate": np.float32(-0.1)}, "Limited.rate must be at least 0 and below 1, got -0.1."),
    ({"rate": float("nan")}, "Limited.rate must be at least 0 and below 1, got nan."),
    ({"rate": jnp.array([0.1, 1.5])}, "Limited.rate must be at least 0 and below 1, got 1.5 in f32[2]."),
    ({"scale": 0}, "Limited.scale must be above 0, got 0."),
    ({"scale": np.inf}, "Limited.scale must be finite, got inf."),
    ({"weight": -np.inf}, "Limited.weight must be finite, got -inf."),
    ({"kind": "c"}, "Limited.kind must be 'a' or 'b', got 'c'."),
    ({"mean": "most"}, "Limited.mean must be 'macro' or 'micro' or None, got 'most'."),
]


@pytest.mark.parametrize(("fields", "message"), VALUES, ids=lambda v: v if isinstance(v, str) else "")
def test_values_outside_the_limits(fields, message):
    with pytest.raises(ValueError) as caught:
        fm.validate(Limited(**fields))
    assert str(caught.value) == message


TYPES = [
    ({"size": 2.0}, "Limited.size must be an integer, got 2.0."),
    ({"size": True}, "Limited.size must be an integer, got True."),
    ({"sizes": (1, 2, 3)}, "Limited.sizes must be an integer or a tuple (an integer, an integer), got (1, 2, 3)."),
    ({"rate": "half"}, "Limited.rate must be a number or None, got 'half'."),
    ({"kind": 3}, "Limited.kind must be a string, got 3."),
    ({"function": 3}, "Limited.function must be a function or None, got 3."),
    ({"flag": "no"}, "Limited.flag must be True or False, got 'no'."),
    ({"part": fm.models.Flatten()}, "Limited.part must be a Part or None, got Flatten(); write Part()."),
    ({"part": Part}, "Limited.part must be a Part or None, got the class Part; write Part(…)."),
    ({"parts": Part()}, "Limited.parts must be a tuple of Parts, got Part(); write (Part(),)."),
    ({"parts": (Part(), 3)}, "Limited.parts must be a tuple of Parts, got (Part(), 3); write (Part(),)."),
    (
        {"part": fm.models.Chain(*[fm.models.Flatten()] * 9)},
        "Limited.part must be a Part or None, got Chain(…); write Part().",
    ),
    ({"rate": "half" * 20}, "Limited.rate must be a number or None, got str(…)."),
    ({"named": {"one": 1}}, "Limited.named must be a dict of Parts or None, got {'one': 1}."),
]


@pytest.mark.parametrize(("fields", "message"), TYPES, ids=lambda v: v if isinstance(v, str) else "")
def test_values_of_another_type(fields, message):
    with pytest.raises(TypeError) as caught:
        fm.validate(Limited(**fields))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "fields",
    [
        {"size": np.int64(3), "sizes": (1, 2), "rate": 0, "scale": np.float32(1e-30), "mean": "micro"},
        {"rate": None, "part": Part(), "parts": (Part(), Part()), "named": {"one": Part()}},
        {"rate": jnp.array([0.0, 0.9]), "array": "anything: an array is checked as data", "function": len},
        {"part": fm.Frozen(Part()), "parts": (fm.EMA(fm.Frozen(Part())),), "wrapped": fm.Frozen(fm.EMA(Part()))},
    ],
    ids=["numbers", "parts", "members", "wrappers"],
)
def test_values_within_the_limits(fields):
    fm.validate(Limited(**fields))


def test_limits_hold_where_a_subclass_declares_the_field_again():
    fm.validate(Narrower(size=4, rate=0.9))
    for fields in ({"size": 0}, {"size": 5}, {"rate": 1.0}):
        with pytest.raises(ValueError, match=rf"Narrower\.{next(iter(fields))} must be"):
            fm.validate(Narrower(**fields))


def test_nothing_is_said_of_tracers_and_of_shapes():
    jax.jit(lambda rate: check_limits(Limited(rate=rate)))(2.0)
    jax.vmap(lambda rate: check_limits(Limited(rate=rate)))(jnp.array([2.0, -1.0]))
    fm.validate(Limited(rate=jax.ShapeDtypeStruct((), jnp.float32)))


def test_modules_of_other_libraries_are_models():
    equinox = pytest.importorskip("equinox")
    module = equinox.nn.Linear(4, 3, key=jax.random.key(0))
    fm.validate(fm.Classifier(module))
    with pytest.raises(TypeError, match=r"Limited.part must be a Part or None"):
        fm.validate(Limited(part=module))


def test_a_method_of_a_user_is_called_after_the_limits():
    class Ordered(fm.Model):
        low: float = fm.hyper(minimum=0)
        high: float = fm.hyper(minimum=0)

    @fm.dispatch
    def validate(ordered: Ordered):
        if ordered.low > ordered.high:
            raise ValueError("low > high")

    with pytest.raises(ValueError, match=r"Ordered.high must be at least 0"):
        fm.validate(Ordered(1.0, -1.0))
    with pytest.raises(ValueError, match="low > high"):
        fm.validate(Ordered(2.0, 1.0))


def test_a_class_that_is_defined_later():
    class Early(fm.Model):
        part: Late | None = None

    fm.validate(Early(3))

    class Late(fm.Model):
        pass


def test_each_verb_checks_every_component(data=(np.ones((4, 2), np.float32), np.zeros(4, np.int32))):
    wrong = fm.Classifier(fm.models.MLP(2, 4, 3, dropout=1.5))
    state = fm.setup(fm.Classifier(fm.models.MLP(2, 3)), data, optimizer=optax.sgd(0.1))
    attack = fm.PGD(fm.LinfBall(-0.1), 0.1, 2)
    for call, words in [
        (lambda: fm.setup(wrong, data, optimizer=optax.sgd(0.1)), "Dropout.rate must be at least 0 and below 1, got 1.5"),
        (lambda: fm.evaluate(state, data, attack=attack), "LinfBall.eps must be at least 0, got -0.1"),
        (lambda: fm.perturb(attack, state, data, jax.random.key(0)), "LinfBall.eps must be at least 0, got -0.1"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()

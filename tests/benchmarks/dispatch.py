"""What a call through a verb costs, and a registration. Run it: `python tests/benchmarks/dispatch.py`."""

from __future__ import annotations

import timeit
import types

import jax
import jax.numpy as jnp
import plum

import fulmen as fm
from fulmen import bind, dispatch, forward


class Layer(fm.Model):
    weight: jax.Array


class Moded(fm.Model):
    weight: jax.Array


@fm.verb
def describe(component, x):
    """A verb without contexts."""


@dispatch
def describe(component: Layer, x):
    return x


@dispatch
def forward(layer: Layer, x):
    return x


@dispatch
def forward(layer: Moded, x, mode):
    return x


def plain(layer, x):
    return x


@plum.dispatch
def by_plum(layer: Layer, x):
    return x


def microseconds(call, number=100_000):
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def registration(methods=200, answers=200):
    """Milliseconds to register one more method, when the answers change and when they do not."""

    @fm.verb
    def many(one, other):
        """A verb with many methods."""

    def method(kind):
        def many(one, other):
            return None

        many.__annotations__ = {"one": kind}
        return many

    kinds = [types.new_class(f"Kind{i}", (fm.Model,)) for i in range(max(methods, answers))]
    for kind in kinds[:methods]:
        many.dispatch(method(kind))
    for kind in kinds[:answers]:
        many(kind(), 1)

    def once(kind):
        return min(timeit.repeat(lambda: many.dispatch(method(kind)), number=1, repeat=3)) * 1e3

    return once(types.new_class("Unrelated", (fm.Model,))), once(object)


if __name__ == "__main__":
    x, layer, moded = jnp.ones(3), Layer(jnp.ones(3)), Moded(jnp.ones(3))
    train = fm.Train(jax.random.key(0))
    bound, bound_moded = bind(layer, train), bind(moded, train)
    rows = {
        "a plain function": lambda: plain(layer, x),
        "a plum function": lambda: by_plum(layer, x),
        "a verb without contexts": lambda: describe(layer, x),
        "forward": lambda: forward(layer, x),
        "forward, a mode bound": lambda: forward(bound, x),
        "forward of a method that names the mode": lambda: forward(moded, x),
        "forward of such a method, a mode bound": lambda: forward(bound_moded, x),
        "layer(x)": lambda: layer(x),
    }
    print(f"{'a call that was seen before':45} µs")
    for name, call in rows.items():
        print(f"{name:45} {microseconds(call):.2f}")
    given = microseconds(lambda: forward(bound, x, train), 10_000)
    print(f"{'forward, the same mode given once more':45} {given:.2f}")
    unrelated, all_of_them = registration()
    print(f"\n{'a registration beside 200 methods and answers':45} ms")
    print(f"{'for an unrelated type':45} {unrelated:.2f}")
    print(f"{'for any type':45} {all_of_them:.2f}")

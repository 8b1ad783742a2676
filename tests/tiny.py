"""Small models of the tests' own, with nothing of `fulmen.models` in them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fulmen as fm
from fulmen import dispatch


class Linear(fm.Model):
    """x W + b."""

    n: int
    m: int
    weight: jax.Array | None = None
    bias: jax.Array | None = None


@dispatch
def init(layer: Linear, key):
    return fm.replace(layer, weight=jax.random.normal(key, (layer.n, layer.m)) / layer.n**0.5, bias=jnp.zeros(layer.m))


@dispatch
def forward(layer: Linear, x):
    return x @ layer.weight + layer.bias[None]


class Net(fm.Model):
    """One layer with a loss of its own."""

    layer: Linear


@dispatch
def forward(net: Net, x):
    return net.layer(x)


@dispatch
def loss(net: Net, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch.x), batch.y)


class Pair(fm.System):
    """Two models, summed."""

    one: Net
    two: Net


class Perceptron(fm.Model):
    """Two layers on the pixels of an image."""

    first: jax.Array
    second: jax.Array


@dispatch
def forward(net: Perceptron, x):
    return jnp.tanh(x.reshape(len(x), -1) @ net.first) @ net.second


def net(classes=3):
    return Net(Linear(4, classes))


def pair():
    return Pair(net(), net())


def data(n=50, classes=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, classes, n).astype(np.int32)


class Compilations:
    """Counts programs that XLA compiled while it is open."""

    def __enter__(self):
        import logging

        self.names = []

        class Handler(logging.Handler):
            def emit(_, record):
                message = record.getMessage()
                if message.startswith("Compiling "):
                    self.names.append(message.split()[1])

        self.handler, self.logger = Handler(), logging.getLogger("jax")
        self.before = jax.config.jax_log_compiles
        jax.config.update("jax_log_compiles", True)
        self.propagate, self.logger.propagate = self.logger.propagate, False
        self.logger.addHandler(self.handler)
        return self

    def __exit__(self, *exception):
        self.logger.removeHandler(self.handler)
        self.logger.propagate = self.propagate
        jax.config.update("jax_log_compiles", self.before)

    def __len__(self):
        return len(self.names)


def require_answer(call, error, words):
    """Require an error of a type whose text, with its notes, has each of some words."""
    with pytest.raises(error) as caught:
        call()
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    for word in words:
        assert word in text, f"{word!r} is missing in: {text}"

"""`fit` on Equinox and Flax NNX modules against functional `jax.jit` loops written by hand, interleaved in one process.

    python tests/benchmarks/foreign.py [--rounds 9] [--only equinox-mlp]

The loop by hand is donated and functional, gathers shuffled NumPy batches, and sums loss and accuracy, as `fit` does; for NNX,
its own loop of `nnx.jit` and `nnx.Optimizer` runs beside. Prints the median time of a step of each, and the median over
rounds of the ratios to the loop by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fulmen as fm


def data(n: int, image: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((n, 8, 8, 1) if image else (n, 64), np.float32)
    return x, rng.integers(0, 10, n).astype(np.int32)


# Models: an MLP, and a convnet with BatchNorm


def equinox_mlp() -> eqx.Module:
    return eqx.nn.MLP(64, 10, 128, 1, key=jax.random.key(0))


class EquinoxConvnet(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]
    out: eqx.nn.Linear

    def __init__(self) -> None:
        one, two, three = jax.random.split(jax.random.key(0), 3)
        self.convs = [eqx.nn.Conv2d(1, 32, 3, padding=1, key=one), eqx.nn.Conv2d(32, 64, 3, 2, padding=1, key=two)]
        self.norms = [eqx.nn.BatchNorm(32, "batch", mode="batch"), eqx.nn.BatchNorm(64, "batch", mode="batch")]
        self.out = eqx.nn.Linear(64, 10, key=three)

    def __call__(self, x: Any, state: Any) -> Any:
        x = x.transpose(2, 0, 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x, state = norm(conv(x), state)
            x = jax.nn.relu(x)
        return self.out(x.mean((1, 2))), state


class FlaxMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden, self.out = nnx.Linear(64, 128, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(jax.nn.relu(self.hidden(x)))


class FlaxConvnet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.convs = nnx.List(
            [nnx.Conv(1, 32, (3, 3), rngs=rngs), nnx.Conv(32, 64, (3, 3), 2, rngs=rngs)],
        )
        self.norms = nnx.List([nnx.BatchNorm(32, rngs=rngs), nnx.BatchNorm(64, rngs=rngs)])
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return self.out(x.mean((1, 2)))


# Loops


def figures(z: Any, y: Any) -> tuple[Any, Any]:
    right = (z >= jnp.take_along_axis(z, y[:, None], 1)).sum(1) == 1
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(), right.sum().astype(jnp.float32)


def shuffled(x: np.ndarray, y: np.ndarray, size: int, epochs: int) -> Iterator[Any]:
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(x))
        yield ((x[order[i : i + size]], y[order[i : i + size]]) for i in range(0, len(x), size))


class ByHand:
    """The functional loop: `apply(parameters, state, x) -> (outputs, state)`, donated and jitted."""

    def __init__(self, parameters: Any, state: Any, apply: Callable[..., Any], size: int) -> None:
        self.optimizer, self.apply, self.size = optax.adam(1e-3), apply, size
        # As a flat list: a module's own flattening, at every call, costs more than a small step does.
        leaves, self.structure = jax.tree.flatten((parameters, self.optimizer.init(parameters), state))
        self.carried = [jnp.copy(leaf) for leaf in leaves]
        self.step = jax.jit(self._step, donate_argnums=(0, 1))

    def _step(self, carried: Any, sums: Any, x: Any, y: Any) -> Any:
        parameters, moments, state = self.structure.unflatten(carried)

        def loss(parameters: Any) -> Any:
            z, new = self.apply(parameters, state, x)
            value, right = figures(z, y)
            return value, (right, new)

        (value, (right, state)), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = self.optimizer.update(gradient, moments)
        carried = jax.tree.leaves((optax.apply_updates(parameters, updates), moments, state))
        return carried, sums + jnp.stack([value * len(y), right])

    def run(self, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
        for batches in shuffled(x, y, self.size, epochs):
            sums = jnp.zeros(2)
            for one in batches:
                self.carried, sums = self.step(self.carried, sums, *one)
            np.asarray(sums)


def equinox_by_hand(model: Any, size: int) -> ByHand:
    stateful = isinstance(model, EquinoxConvnet)
    model, state = eqx.nn.make_with_state(lambda: model)()
    parameters, fixed = eqx.partition(model, eqx.is_inexact_array)

    def apply(parameters: Any, state: Any, x: Any) -> Any:
        model = eqx.combine(parameters, fixed)
        if not stateful:
            return jax.vmap(model)(x), state
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    return ByHand(parameters, state, apply, size)


def flax_by_hand(model: Any, size: int) -> ByHand:
    graph, parameters, state = nnx.split(model, nnx.Param, ...)

    def apply(parameters: Any, state: Any, x: Any) -> Any:
        model = nnx.merge(graph, parameters, state, copy=True)  # else its variables may not be written to
        z = model(x)
        return z, nnx.split(model, nnx.Param, ...)[2]

    return ByHand(parameters, state, apply, size)


class FlaxOwn:
    """NNX's own loop."""

    def __init__(self, model: Any, size: int) -> None:
        self.model = nnx.clone(model)
        self.model.train()
        self.optimizer, self.size = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param), size
        self.metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Average("right"))

        @nnx.jit
        def step(model: Any, optimizer: Any, metrics: Any, x: Any, y: Any) -> None:
            (value, right), gradient = nnx.value_and_grad(lambda model: figures(model(x), y), has_aux=True)(model)
            optimizer.update(model, gradient)
            metrics.update(loss=value, right=right / len(y))

        self.step = step

    def run(self, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
        for batches in shuffled(x, y, self.size, epochs):
            for one in batches:
                self.step(self.model, self.optimizer, self.metrics, *one)
            self.metrics.compute(), self.metrics.reset()


class ByFit:
    def __init__(self, model: Any, size: int, x: np.ndarray, y: np.ndarray) -> None:
        self.state = fm.setup(fm.Classifier(model), (x, y), optimizer=optax.adam, lr=1e-3, batch_size=size)

    def run(self, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
        from fulmen.train.progress import ProgressBar

        with contextlib.redirect_stdout(io.StringIO()):
            self.state, _ = fm.fit(self.state, (x, y), epochs=epochs, progress=ProgressBar())
        jax.block_until_ready(self.state)


CASES = {
    "equinox-mlp": (equinox_mlp, equinox_by_hand, 32, 32 * 400, False, 8),
    "nnx-mlp": (lambda: FlaxMLP(nnx.Rngs(0)), flax_by_hand, 32, 32 * 400, False, 8),
    "equinox-convnet": (EquinoxConvnet, equinox_by_hand, 64, 64 * 30, True, 6),
    "nnx-convnet": (lambda: FlaxConvnet(nnx.Rngs(0)), flax_by_hand, 64, 64 * 30, True, 6),
}


def compare(name: str, rounds: int) -> None:
    make, by_hand, size, n, image, epochs = CASES[name]
    x, y = data(n, image)
    loops = {"by hand": by_hand(make(), size), "fit": ByFit(make(), size, x, y)}
    if name.startswith("nnx"):
        loops["nnx.jit"] = FlaxOwn(make(), size)
    times: dict[str, list[float]] = {kind: [] for kind in loops}
    for loop in loops.values():
        loop.run(x, y, 1)
    for _ in range(rounds):
        for kind, loop in loops.items():
            own = 1 if kind == "nnx.jit" else epochs  # it takes longer, and is not what is compared
            begun = time.perf_counter()
            loop.run(x, y, own)
            times[kind].append((time.perf_counter() - begun) / (own * n // size))
    hand = times.pop("by hand")
    line = f"{name:16} batch {size:3}  by hand {statistics.median(hand) * 1e6:8.1f} µs"
    for kind, taken in times.items():
        ratio = statistics.median(b / a for a, b in zip(hand, taken, strict=True))
        line += f"  {kind} {statistics.median(taken) * 1e6:8.1f} µs, ratio {ratio:.3f}"
    print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=list(CASES))
    options = parser.parse_args()
    for case in [options.only] if options.only else CASES:
        compare(case, options.rounds)

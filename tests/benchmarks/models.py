"""A step of larger models by `fit`, and `train_step` by hand, against the same written in plain JAX, interleaved in one process.

    python tests/benchmarks/models.py [--rounds 9] [--only resnet|gpt|train_step]

ResNet-18 with the CIFAR stem at batch 32, and a GPT of six layers, each trained with Adam, with loss and accuracy (perplexity)
summed over the epoch. What is written by hand holds its parameters in dicts and names every operation itself. Prints the
median time of a step of each, the median over rounds of their ratio, and how far the losses of the first step are apart.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import fulmen as fm

# ResNet-18 by hand


def convolve(x: Any, w: Any, stride: int = 1) -> Any:
    pad = w.shape[0] // 2
    return lax.conv_general_dilated(
        x, w, (stride, stride), [(pad, pad), (pad, pad)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def batch_norm(x: Any, p: Any, s: Any) -> tuple[Any, Any]:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    count = x.size // x.shape[-1]
    moved = {
        "mean": 0.9 * s["mean"] + 0.1 * mean,
        "variance": 0.9 * s["variance"] + 0.1 * variance * (count / (count - 1)),
    }
    return (x - mean) * (lax.rsqrt(variance + 1e-5) * p["scale"]) + p["shift"], moved


def residual(x: Any, p: Any, s: Any, stride: int) -> tuple[Any, Any]:
    new = {}
    y, new["a"] = batch_norm(convolve(x, p["wa"], stride), p["a"], s["a"])
    y, new["b"] = batch_norm(convolve(jax.nn.relu(y), p["wb"]), p["b"], s["b"])
    if "wc" in p:
        x, new["c"] = batch_norm(convolve(x, p["wc"], stride), p["c"], s["c"])
    return jax.nn.relu(y + x), new


def resnet(p: Any, s: Any, x: Any) -> tuple[Any, Any]:
    new = {}
    x, new["stem"] = batch_norm(convolve(x, p["stem_w"]), p["stem"], s["stem"])
    x = jax.nn.relu(x)
    for stage in range(4):
        for block in range(2):
            name = f"{stage}{block}"
            x, new[name] = residual(x, p[name], s[name], 2 if stage and not block else 1)
    return x.mean((1, 2)) @ p["head_w"] + p["head_b"], new


def resnet_parameters(model: Any) -> tuple[Any, Any]:
    norm = lambda layer: (
        {"scale": layer.weight, "shift": layer.bias},
        {"mean": layer.mean.value, "variance": layer.variance.value},
    )
    p: dict[str, Any] = {
        "stem_w": model.stem[0].weight,
        "head_w": model.head.weight,
        "head_b": model.head.bias,
    }
    s: dict[str, Any] = {}
    p["stem"], s["stem"] = norm(model.stem[1])
    for stage in range(4):
        for i in range(2):
            block, q, r = model.stages[stage][i], {}, {}
            q["wa"], q["wb"] = block.inner[0].weight, block.inner[3].weight
            q["a"], r["a"] = norm(block.inner[1])
            q["b"], r["b"] = norm(block.inner[4])
            if len(block.shortcut):
                q["wc"] = block.shortcut[0].weight
                q["c"], r["c"] = norm(block.shortcut[1])
            p[f"{stage}{i}"], s[f"{stage}{i}"] = q, r
    return p, s


def resnet_loss(p: Any, s: Any, batch: Any) -> Any:
    x, y = batch
    z, s = resnet(p, s, x)
    z = z.astype(jnp.float32)
    right = ((z >= jnp.take_along_axis(z, y[:, None], 1)).sum(1) == 1).sum()
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(), (s, right.astype(jnp.float32), len(y))


# A GPT by hand


def normalize(x: Any, p: Any) -> Any:
    inverse = lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return (x - x.mean(-1, keepdims=True)) * (inverse * p["scale"]) + p["shift"]


def gpt(p: Any, tokens: Any, heads: int, attention: str | None = None) -> Any:
    n, length = tokens.shape

    def block(x: Any, q: Any) -> tuple[Any, None]:
        joint = (normalize(x, q["norm_a"]) @ q["w_qkv"] + q["b_qkv"]).reshape(n, length, 3, heads, -1)
        y = jax.nn.dot_product_attention(*(joint[:, :, i] for i in range(3)), is_causal=True, implementation=attention)
        # Without the brackets, and with the tokens transposed below, the step takes half as long again.
        x = x + (y.reshape(n, length, -1) @ q["w_out"] + q["b_out"])
        hidden = jax.nn.gelu(normalize(x, q["norm_b"]) @ q["w_up"] + q["b_up"])
        return x + (hidden @ q["w_down"] + q["b_down"]), None

    x = p["tokens"][tokens] + p["positions"][:length]
    if isinstance(p["layers"], list):
        for q in p["layers"]:
            x, _ = block(x, q)
    else:
        x, _ = lax.scan(block, x, p["layers"])
    return jnp.einsum("nlf,vf->nlv", normalize(x, p["norm"]), p["tokens"])


def gpt_parameters(model: Any) -> Any:
    norm = lambda layer: {"scale": layer.weight, "shift": layer.bias}
    layers = [
        {
            "norm_a": norm(block.attention_norm),
            "norm_b": norm(block.mlp_norm),
            "w_qkv": block.attention.qkv.weight,
            "b_qkv": block.attention.qkv.bias,
            "w_out": block.attention.out.weight,
            "b_out": block.attention.out.bias,
            "w_up": block.mlp[0].weight,
            "b_up": block.mlp[0].bias,
            "w_down": block.mlp[2].weight,
            "b_down": block.mlp[2].bias,
        }
        for block in model.blocks
    ]
    ends = {"tokens": model.tokens.weight, "positions": model.positions.weight, "norm": norm(model.norm)}
    return {**ends, "layers": layers}


def gpt_loss(heads: int, p: Any, s: Any, batch: Any, attention: str | None = None) -> Any:
    (tokens,) = batch
    z, y = gpt(p, tokens[:, :-1], heads, attention).astype(jnp.float32), tokens[:, 1:]
    value = optax.softmax_cross_entropy_with_integer_labels(z, y).mean()
    return value, (s, value * y.size, y.size)


# The two loops


class ByHand:
    """A donated jitted step, shuffled NumPy batches, sums read once an epoch."""

    def __init__(self, loss: Any, parameters: Any, statistics: Any, batch_size: int) -> None:
        self.loss, self.batch_size, self.optimizer = loss, batch_size, optax.adam(1e-3)
        copied = jax.tree.map(jnp.copy, (parameters, statistics))
        self.state = (copied[0], self.optimizer.init(copied[0]), copied[1])
        self.step = jax.jit(self._step, donate_argnums=(0, 1))

    def _step(self, state: Any, sums: Any, batch: Any) -> Any:
        parameters, moments, still = state
        found, gradient = jax.value_and_grad(self.loss, has_aux=True)(parameters, still, batch)
        value, (still, figure, count) = found
        updates, moments = self.optimizer.update(gradient, moments)
        sums = sums + jnp.stack([value * count, figure])
        return (optax.apply_updates(parameters, updates), moments, still), sums

    def run(self, data: Any) -> np.ndarray:
        order = np.random.default_rng(0).permutation(len(data[0]))
        sums = jnp.zeros(2)
        for i in range(0, len(order), self.batch_size):
            rows = order[i : i + self.batch_size]
            self.state, sums = self.step(self.state, sums, tuple(v[rows] for v in data))
        return np.asarray(sums)


class ByFit:
    def __init__(self, system: Any, data: Any, batch_size: int) -> None:
        data = data if len(data) > 1 else data[0]
        self.state = fm.setup(system, data, optimizer=optax.adam, lr=1e-3, batch_size=batch_size)

    def run(self, data: Any) -> Any:
        self.state, history = fm.fit(self.state, data if len(data) > 1 else data[0], epochs=1, progress=False)
        jax.block_until_ready(self.state)
        return history


def interleaved(name: str, hand: Any, ours: Any, data: Any, batch_size: int, rounds: int) -> None:
    hand.run(data), ours.run(data)
    steps, times = len(data[0]) // batch_size, ([], [])
    for i in range(rounds):
        for runner, record in sorted(
            zip((hand, ours), times, strict=True), key=lambda pair: (pair[0] is hand) == (i % 2 == 1)
        ):
            begun = time.perf_counter()
            runner.run(data)
            record.append((time.perf_counter() - begun) / steps)
    report(name, times)


def report(name: str, times: Any, against: str = "fit") -> None:
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    milli = [statistics.median(t) * 1e3 for t in times]
    print(f"{name:24} by hand {milli[0]:9.3f} ms  {against} {milli[1]:9.3f} ms  ratio {ratio:.3f}", flush=True)


def first_losses(hand: ByHand, ours: ByFit, batch: Any) -> str:
    value = hand.loss(hand.state[0], hand.state[2], batch)[0]
    _, logs = fm.train_step(ours.state, batch if len(batch) > 1 else batch[0])
    return f"{float(value):.6f} and {float(logs['loss']):.6f}"


def compare_resnet(rounds: int, batch_size: int = 32, steps: int = 4) -> None:
    rng = np.random.default_rng(0)
    n = batch_size * steps
    data = rng.normal(size=(n, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)
    ours = ByFit(fm.Classifier(fm.models.resnet18(10, stem="cifar")), data, batch_size)
    hand = ByHand(resnet_loss, *resnet_parameters(ours.state.system.model), batch_size)
    print("first losses:", first_losses(hand, ours, tuple(v[:batch_size] for v in data)))
    interleaved("ResNet-18, batch 32", hand, ours, data, batch_size, rounds)


def compare_gpt(rounds: int, unroll: bool, batch_size: int = 16, steps: int = 20) -> None:
    """Layers one after the other in both, or in a loop over parameters that are stacked in both."""
    sizes = {"vocabulary": 128, "length": 64, "features": 128, "heads": 4, "layers": 6}
    data = (np.random.default_rng(0).integers(0, 128, (batch_size * steps, 65)).astype(np.int32),)
    ours = ByFit(fm.LanguageModel(fm.models.Transformer(**sizes, unroll=unroll)), data, batch_size)
    parameters = gpt_parameters(ours.state.system.model)
    if not unroll:
        parameters["layers"] = jax.tree.map(lambda *layers: jnp.stack(layers), *parameters["layers"])
    hand = ByHand(functools.partial(gpt_loss, sizes["heads"]), parameters, {}, batch_size)
    print("first losses:", first_losses(hand, ours, (data[0][:batch_size],)))
    interleaved("GPT, " + ("unrolled" if unroll else "scanned"), hand, ours, data, batch_size, rounds)


def compare_train_step(rounds: int, calls: int = 2000) -> None:
    """`train_step` by hand against a plain jit that takes and gives the same arrays as dicts, neither donated."""
    rng = np.random.default_rng(0)
    batch = rng.random((32, 64), np.float32), rng.integers(0, 10, 32).astype(np.int32)
    state = fm.setup(fm.Classifier(fm.models.MLP(64, 128, 10)), batch, optimizer=optax.adam, lr=1e-3)
    layers = state.system.model.layers
    optimizer = optax.adam(1e-3)
    parameters = {str(i): {"w": layer.weight, "b": layer.bias} for i, layer in enumerate(layers) if hasattr(layer, "weight")}

    @jax.jit
    def step(parameters: Any, moments: Any, batch: Any) -> Any:
        def loss(p: Any) -> Any:
            (x, y), last = batch, list(p)[-1]
            z = jax.nn.relu(x @ p["0"]["w"] + p["0"]["b"]) @ p[last]["w"] + p[last]["b"]
            right = (z >= jnp.take_along_axis(z, y[:, None], 1)).sum(1) == 1
            return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(), right.mean()

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(parameters, updates), moments, {"loss": value, "accuracy": accuracy}

    def by_hand() -> None:
        p, m = parameters, optimizer.init(parameters)
        for _ in range(calls):
            p, m, logs = step(p, m, batch)
        jax.block_until_ready((p, logs))

    def ours() -> None:
        s = state
        for _ in range(calls):
            s, logs = fm.train_step(s, batch)
        jax.block_until_ready((s, logs))

    times: tuple[list[float], list[float]] = ([], [])
    by_hand(), ours()
    for _ in range(rounds):
        for runner, record in zip((by_hand, ours), times, strict=True):
            begun = time.perf_counter()
            runner()
            record.append((time.perf_counter() - begun) / calls)
    report("train_step of an MLP", times, "train_step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=["resnet", "gpt", "train_step"])
    options = parser.parse_args()
    if options.only in (None, "train_step"):
        compare_train_step(options.rounds)
    if options.only in (None, "gpt"):
        compare_gpt(options.rounds, unroll=True)
        compare_gpt(options.rounds, unroll=False)
    if options.only in (None, "resnet"):
        compare_resnet(options.rounds)

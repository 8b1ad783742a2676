"""The DCGAN of Equinox's documentation as a `Game`, beside a loop written by hand in Equinox and optax with the same networks.

    python tests/benchmarks/dcgan.py [--rounds 9] [--width 16] [--size 32]

Prints the lines of user code of each (what stands between the marks below: networks, losses, optimizers, loop; no comments, no
blank lines) and the median time of a step, with the median over rounds of the ratio, interleaved in one process. Both draw their
images from one array; what is drawn at random differs. Radford, Metz and Chintala 2016, arXiv:1511.06434.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fulmen as fm
from fulmen import configure_optimizers, dispatch, forward, init, losses

# by hand


class EqxGenerator(eqx.Module):
    layers: list[eqx.nn.ConvTranspose2d]
    norms: list[eqx.nn.BatchNorm]

    def __init__(self, latent: int, width: int, size: int, key: Any):
        depth = size.bit_length() - 3
        widths = [latent, *(width * 2**i for i in reversed(range(depth))), 1]
        keys = jax.random.split(key, depth + 1)
        self.layers = [
            eqx.nn.ConvTranspose2d(n, m, 4, stride=2 if i else 1, padding=1 if i else 0, use_bias=False, key=keys[i])
            for i, (n, m) in enumerate(itertools.pairwise(widths))
        ]
        self.norms = [eqx.nn.BatchNorm(m, axis_name="batch", mode="batch") for m in widths[1:-1]]

    def __call__(self, z, state):
        x = z[:, None, None]
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x, state = norm(layer(x), state)
            x = jax.nn.relu(x)
        return jnp.tanh(self.layers[-1](x)), state


class EqxCritic(eqx.Module):
    layers: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.BatchNorm]

    def __init__(self, width: int, size: int, key: Any):
        depth = size.bit_length() - 3
        widths = [1, *(width * 2**i for i in range(depth)), 1]
        keys = jax.random.split(key, depth + 1)
        self.layers = [
            eqx.nn.Conv2d(n, m, 4, stride=2 if i < depth else 1, padding=1 if i < depth else 0, use_bias=False, key=keys[i])
            for i, (n, m) in enumerate(itertools.pairwise(widths))
        ]
        self.norms = [eqx.nn.BatchNorm(m, axis_name="batch", mode="batch") for m in widths[2:-1]]

    def __call__(self, x, state):
        x = jax.nn.leaky_relu(self.layers[0](x), 0.2)
        for layer, norm in zip(self.layers[1:-1], self.norms, strict=True):
            x, state = norm(layer(x), state)
            x = jax.nn.leaky_relu(x, 0.2)
        return self.layers[-1](x).reshape(()), state


def eqx_over(model, state, x):
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


def eqx_critic_loss(critic, generator, critic_state, generator_state, z, real):
    fake, _ = eqx_over(generator, generator_state, z)
    on_real, critic_state = eqx_over(critic, critic_state, real)
    on_fake, critic_state = eqx_over(critic, critic_state, fake)
    return jax.nn.softplus(-on_real).mean() + jax.nn.softplus(on_fake).mean(), critic_state


def eqx_generator_loss(generator, critic, generator_state, critic_state, z):
    fake, generator_state = eqx_over(generator, generator_state, z)
    on_fake, _ = eqx_over(critic, critic_state, fake)
    return jax.nn.softplus(-on_fake).mean(), generator_state


class EqxRun:
    def __init__(self, latent: int, width: int, size: int, batch_size: int):
        one, two, self.key = jax.random.split(jax.random.key(0), 3)
        generator, generator_state = eqx.nn.make_with_state(EqxGenerator)(latent, width, size, one)
        critic, critic_state = eqx.nn.make_with_state(EqxCritic)(width, size, two)
        self.optimizer = optax.adam(2e-4, b1=0.5)
        moments = [self.optimizer.init(eqx.filter(model, eqx.is_inexact_array)) for model in (generator, critic)]
        self.models, self.moments, self.states = (generator, critic), moments, (generator_state, critic_state)
        self.latent, self.batch_size, self.step = latent, batch_size, eqx.filter_jit(self._step)

    @staticmethod
    def _step(fixed, models, moments, states, real):
        (optimizer, latent), key = fixed
        (generator, critic), (generator_state, critic_state) = models, states
        z = jax.random.normal(key, (len(real), latent))
        critic_grad = eqx.filter_value_and_grad(eqx_critic_loss, has_aux=True)
        generator_grad = eqx.filter_value_and_grad(eqx_generator_loss, has_aux=True)
        (critic_value, new_critic), critic_slope = critic_grad(critic, generator, critic_state, generator_state, z, real)
        (value, new_generator), slope = generator_grad(generator, critic, generator_state, critic_state, z)
        updates, first = optimizer.update(slope, moments[0])
        generator = eqx.apply_updates(generator, updates)
        updates, second = optimizer.update(critic_slope, moments[1])
        critic = eqx.apply_updates(critic, updates)
        return (generator, critic), [first, second], (new_generator, new_critic), value, critic_value

    def run(self, images, epochs):
        for epoch in range(epochs):
            order, values = np.random.default_rng(epoch).permutation(len(images)), []
            for i in range(0, len(images), self.batch_size):
                self.key, key = jax.random.split(self.key)
                batch = images[order[i : i + self.batch_size]]
                fixed = (self.optimizer, self.latent), key
                self.models, self.moments, self.states, *losses = self.step(
                    fixed, self.models, self.moments, self.states, batch
                )
                values.append(losses)
            np.mean(jax.device_get(values), 0)


# end


# fulmen


class Up(fm.Model):
    n: int
    m: int
    stride: int
    weight: jax.Array | None = None


@dispatch
def init(up: Up, key):
    return fm.replace(up, weight=jax.random.normal(key, (4, 4, up.n, up.m)) / (16 * up.n) ** 0.5)


@dispatch
def forward(up: Up, x):
    return jax.lax.conv_transpose(x, up.weight, (up.stride,) * 2, "SAME" if up.stride > 1 else "VALID")


class Generator(fm.Model):
    net: fm.models.Chain


@dispatch
def forward(generator: Generator, z):
    return jnp.tanh(generator.net(z[:, None, None]))


class DCGAN(fm.Game):
    generator: Generator
    critic: fm.models.Chain
    latent: int


@dispatch
def losses(gan: DCGAN, batch, mode):
    fake = gan.generator(jax.random.normal(mode.key, (len(batch), gan.latent)))
    on_real, on_fake = gan.critic(batch.x), gan.critic(fake)
    return dict(
        generator=jax.nn.softplus(-on_fake).mean(), critic=jax.nn.softplus(-on_real).mean() + jax.nn.softplus(on_fake).mean()
    )


@dispatch
def configure_optimizers(gan: DCGAN):
    return dict(generator=optax.adam(2e-4, b1=0.5), critic=optax.adam(2e-4, b1=0.5))


def leaky(x):
    return jax.nn.leaky_relu(x, 0.2)


def dcgan(latent, width, size):
    depth, conv, norm = size.bit_length() - 3, fm.models.Conv, fm.models.BatchNorm
    widths = [width * 2**i for i in range(depth)]
    down, up = itertools.pairwise(widths), zip(widths[:0:-1], widths[-2::-1], strict=True)
    generator = [Up(latent, widths[-1], 1), norm(widths[-1]), jax.nn.relu]
    generator += [layer for n, m in up for layer in (Up(n, m, 2), norm(m), jax.nn.relu)] + [Up(widths[0], 1, 2)]
    critic = [conv(1, width, 4, 2, 1, use_bias=False), leaky]
    critic += [layer for n, m in down for layer in (conv(n, m, 4, 2, 1, use_bias=False), norm(m), leaky)]
    critic += [conv(widths[-1], 1, 4, 1, 0, use_bias=False)]
    return DCGAN(Generator(fm.models.Chain(*generator)), fm.models.Chain(*critic), latent)


class FulmenRun:
    def __init__(self, latent, width, size, batch_size, images):
        self.state = fm.setup(dcgan(latent, width, size), images, batch_size=batch_size)

    def run(self, images, epochs):
        self.state, self.history = fm.fit(self.state, images, epochs=epochs, progress=False)


# end


def lines() -> dict[str, int]:
    """The lines of code between the marks."""
    counts: dict[str, int] = {}
    name = None
    for line in Path(__file__).read_text().splitlines():
        if line in ("# by hand", "# fulmen", "# end"):
            name = None if line == "# end" else line[2:]
        elif name and line.strip() and not line.strip().startswith("#"):
            counts[name] = counts.get(name, 0) + 1
    return counts


def parameters(tree: Any) -> int:
    return sum(v.size for v in jax.tree.leaves(tree))


def compare(rounds: int, width: int, size: int, batch_size: int, steps: int) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (steps * batch_size, size, size, 1)).astype(np.float32)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    hand, ours = EqxRun(100, width, size, batch_size), FulmenRun(100, width, size, batch_size, images)
    theirs = [parameters(eqx.filter(model, eqx.is_inexact_array)) for model in hand.models]
    known = [fm.count_parameters(part) for part in (ours.state.system.generator, ours.state.system.critic)]
    print(f"parameters  by hand {theirs}  fulmen {known}")
    runs = ((hand, channels_first), (ours, images))
    for run, data in runs:
        run.run(data, 1)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for (run, data), record in zip(runs, times, strict=True):
            begun = time.perf_counter()
            run.run(data, 1)
            record.append((time.perf_counter() - begun) / steps)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    first, second = (statistics.median(t) * 1e3 for t in times)
    counts = lines()
    print(f"lines       by hand {counts['by hand']:6}     fulmen {counts['fulmen']:6}")
    print(f"step        by hand {first:6.1f} ms  fulmen {second:6.1f} ms  ratio {ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option, default in dict(rounds=9, width=16, size=32, batch_size=32, steps=10).items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=default)
    compare(**vars(parser.parse_args()))

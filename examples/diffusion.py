"""Denoising diffusion (DDPM) on digits, with its sampler.

    python examples/diffusion.py

The system has its own loss and its own `sample`: two methods. Writes `diffusion.png`, samples at several times of the reverse process.
Ho, Jain and Abbeel 2020, arXiv:2006.11239, with the cosine schedule of Nichol and Dhariwal 2021, arXiv:2102.09672.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm
from fulmen import dispatch, forward, losses, sample
from fulmen.models import MLP, Dense, LayerNorm, Stacked


class TimedBlock(fm.Model):
    """A residual block of two linear maps, where the time shifts the features."""

    norm: LayerNorm
    time: Dense
    first: Dense
    second: Dense


@dispatch
def forward(block: TimedBlock, x, time):
    y = block.first(block.norm(x)) + block.time(time)
    return x + block.second(jax.nn.silu(y))


class Denoiser(fm.Model):
    """Noisy images `(n, 64)` and times in [0, 1], `(n,)`, to the noise."""

    enter: Dense
    time: MLP
    blocks: Stacked
    leave: Dense


def denoiser(width, depth):
    block = TimedBlock(LayerNorm(width), Dense(width, width), Dense(width, width), Dense(width, width))
    time = MLP(64, width, width, activation=jax.nn.silu)
    return Denoiser(Dense(64, width), time, Stacked(block, depth, unroll=True), Dense(width, 64))


@dispatch
def forward(net: Denoiser, x, time):
    angles = time[:, None] * jnp.exp(jnp.linspace(0, 6, 32))[None]
    time = net.time(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))
    return net.leave(net.blocks(net.enter(x), time))


class Diffusion(fm.System):
    """Images x in [-1, 1] become noise in `steps` steps, and the network learns to predict the noise."""

    net: Denoiser
    steps: int = 100

    def signal(self, step):
        """The share of the image's variance after a number of steps."""
        return jnp.cos(step / self.steps * 0.98 * jnp.pi / 2) ** 2


@dispatch
def losses(system: Diffusion, batch, mode):
    time_key, noise_key = jax.random.split(mode.key)
    step = jax.random.randint(time_key, (len(batch),), 1, system.steps + 1)
    noise = jax.random.normal(noise_key, batch.x.shape)
    signal = system.signal(step)[:, None]
    found = system.net(signal**0.5 * batch.x + (1 - signal) ** 0.5 * noise, step / system.steps)
    return dict(noise=((found - noise) ** 2).mean(1))


@dispatch
def sample(system: Diffusion, key, shape):
    """Images at each tenth of the reverse process, `(11, *shape)`."""

    def back(x, step):
        now, before = system.signal(step), system.signal(step - 1)
        noise = system.net(x, jnp.full(shape[0], step / system.steps))
        clean = jnp.clip((x - (1 - now) ** 0.5 * noise) / now**0.5, -1, 1)
        ratio = now / before
        mean = ratio**0.5 * (1 - before) / (1 - now) * x + before**0.5 * (1 - ratio) / (1 - now) * clean
        std = ((1 - ratio) * (1 - before) / (1 - now)) ** 0.5
        return mean + std * jax.random.normal(jax.random.fold_in(key, step), shape), x

    last, passed = jax.lax.scan(back, jax.random.normal(key, shape), jnp.arange(system.steps, 0, -1))
    return jnp.concatenate([passed[:: system.steps // 10], last[None]])


def main(epochs=300, width=256, depth=3, picture="diffusion.png"):
    x = load_digits().data.astype(np.float32) / 8 - 1
    system = fm.EMA(Diffusion(denoiser(width, depth)), decay=0.998, warmup=9)
    state, _ = fm.fit(system, x, optimizer=optax.adam, lr=fm.cosine(2e-3, warmup=0.05), epochs=epochs, batch_size=128)
    images = jax.jit(lambda system, key: fm.sample(system, key, (160, 64)))(state.system, jax.random.key(0))
    draw(images.reshape(11, 160, 8, 8), picture)
    return images


def draw(images, picture):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", width_ratios=(1.1, 1.6))
    rows = {"from noise to digits": images[::2, :10], "samples": images[-1].reshape(10, 16, 8, 8)}
    for axes, (title, v) in zip((left, right), rows.items()):
        sheet = np.pad(v, ((0, 0), (0, 0), (0, 2), (0, 2)), constant_values=-1).swapaxes(1, 2)
        axes.imshow(sheet.reshape(10 * len(v), -1), cmap="gray_r", vmin=-1, vmax=1)
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()

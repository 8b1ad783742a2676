"""WGAN-GP on digits: a generator and a critic, each with its own optimizer.

    python examples/wgan.py

The critic is updated in every step and the generator in every third. Writes `wgan.png`: samples, and the critic's estimate of the
Wasserstein distance. Gulrajani et al. 2017, arXiv:1704.00028.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm
from fulmen import configure_optimizers, dispatch, forward
from fulmen.models import MLP


class Generator(fm.Model):
    net: MLP


class Critic(fm.Model):
    net: MLP


@dispatch
def forward(generator: Generator, z):
    return jax.nn.sigmoid(generator.net(z))


@dispatch
def forward(critic: Critic, x):
    return critic.net(x)[:, 0]


@dispatch
def configure_optimizers(generator: Generator):
    return fm.optimizers.Optimizer(optax.adam, fm.schedules.linear(4e-4), b1=0.0, b2=0.9)


@dispatch
def configure_optimizers(critic: Critic):
    return fm.optimizers.Optimizer(optax.adam, fm.schedules.linear(4e-4), b1=0.0, b2=0.9)


def main(steps=9000, width=256, picture="wgan.png"):
    x = load_digits().data.astype(np.float32) / 16
    smooth = lambda v: jax.nn.leaky_relu(v, 0.2)
    gan = fm.GAN(
        Generator(MLP(32, width, width, 64)),
        Critic(MLP(64, width, width, 1, activation=smooth)),
        objective=fm.systems.Wasserstein(penalty=1.0),
        latent=32,
        critic_steps=3,
    )
    state, history = fm.fit(fm.EMA(gan, 0.998, warmup=9), x, steps=steps, batch_size=64)
    images = fm.sample(state.system, jax.random.key(1), (160, 32))
    distance = -(history["loss/critic/real"] + history["loss/critic/fake"])
    draw(images, distance, picture)
    return distance


def draw(images, distance, picture):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", width_ratios=(1, 1.6))
    left.plot(distance)
    left.set(title="the critic's distance", xlabel="epoch", ylim=(0, None))
    left.spines[["top", "right"]].set_visible(False)
    sheet = np.pad(np.asarray(images).reshape(10, 16, 8, 8), ((0, 0), (0, 0), (0, 2), (0, 2)))
    right.imshow(sheet.swapaxes(1, 2).reshape(100, 160), cmap="gray_r", vmin=0, vmax=1)
    right.set(title="samples", xticks=[], yticks=[])
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""A small system of each kind, with data."""

from typing import Any

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen.core import Component, Game, Labeled, Model, System
from fulmen.core.suggestions import nearest
from fulmen.core.verbs import forward, loss, losses
from fulmen.dispatching.registry import dispatch
from fulmen.systems.language import LanguageModel

FEATURES, CLASSES, EXAMPLES, LENGTH = 4, 3, 20, 6


class Net(Model):
    """A model with a loss.

    Args:
        layer: maps 4 features to 3 classes.
    """

    layer: Model


@dispatch
def forward(net: Net, x):
    return net.layer(x)


@dispatch
def loss(net: Net, batch: Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch.x), batch.y)


class Pair(System):
    """Two models; their losses are summed."""

    one: Net
    two: Net


class Duel(Game):
    """A generator that maps noise to features, and a critic that distinguishes them from the data."""

    generator: Model
    critic: Model


@dispatch
def losses(duel: Duel, batch, mode):
    made = duel.generator(jax.random.normal(mode.key, (len(batch), 2)))
    real, fake = duel.critic(batch.x)[:, 0], duel.critic(made)[:, 0]
    return dict(generator=jax.nn.softplus(-fake), critic=dict(real=jax.nn.softplus(-real), fake=jax.nn.softplus(fake)))


def systems() -> dict[str, tuple[Component, Any]]:
    """Small systems of every kind, as `(system, data)` by name. Only teachers have arrays; data is 10 or 20 examples.

    >>> sorted(fm.testing.systems())  # doctest: +ELLIPSIS
    ['actor_critic', 'adversarial', 'alternating', ..., 'vqvae', 'weighted']
    """
    random = np.random.default_rng(0)
    x = random.uniform(size=(EXAMPLES, FEATURES)).astype(np.float32)
    y = random.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    tokens = random.integers(0, CLASSES, (EXAMPLES, LENGTH)).astype(np.int32)

    def dense(n: int = FEATURES, m: int = CLASSES) -> Model:
        return fm.models.Dense(n, m)

    norm = fm.models.Chain(
        fm.models.Dense(FEATURES, 8), fm.models.BatchNorm(8), jax.nn.relu, fm.models.Dropout(0.5), dense(8)
    )
    stacked = fm.models.Chain(fm.models.Stacked(dense(FEATURES, FEATURES), 2), dense())
    attack = fm.PGD(fm.LinfBall(0.1) & fm.Box(0.0, 1.0), step_size=0.05, steps=2)
    text = fm.models.Transformer(CLASSES, LENGTH, features=4, heads=2, layers=1)
    halves = x[:, :2] - x[:, 2:]
    teacher = fm.init(dense(), jax.random.key(0))
    mean_teacher = fm.systems.MeanTeacher(fm.EMA(fm.Classifier(dense(), augment=fm.augmentations.Noise(0.1)), 0.9))
    pole = fm.environments.CartPole()
    agents = fm.systems.ActorCritic(dense(m=2), dense(m=1), pole, agents=EXAMPLES // 2, horizon=4)

    def tasks() -> System:
        return fm.MultiTask(dense(m=5), {"label": fm.Classifier(dense(5)), "halves": fm.Regressor(dense(5, 2))})

    return {
        "classifier": (fm.Classifier(dense(), fm.CrossEntropy() + 1e-3 * fm.L2()), (x, y)),
        "regressor": (fm.Regressor(dense(m=2)), (x, halves)),
        "model": (Net(dense()), (x, y)),
        "pair": (Pair(Net(dense()), Net(dense())), (x, y)),
        "game": (Duel(dense(2, FEATURES), dense(m=1)), x),
        "alternating": (fm.systems.Alternating(Duel(dense(2, FEATURES), dense(m=1))), x),
        "gan": (fm.GAN(dense(2, FEATURES), dense(m=1), latent=2), x),
        "actor_critic": (agents, np.arange(EXAMPLES // 2)),
        "batch_norm_and_dropout": (fm.Classifier(norm), (x, y)),
        "scanned": (fm.Classifier(stacked), (x, y)),
        "frozen": (fm.Classifier(fm.models.Chain(fm.Frozen(dense(m=8)), dense(8))), (x, y)),
        "adversarial": (fm.Adversarial(fm.Classifier(dense()), attack), (x, y)),
        "language_model": (LanguageModel(text), tokens),
        "population": (fm.Population([fm.Classifier(dense(), w * fm.CrossEntropy()) for w in (0.5, 1.0)]), (x, y)),
        "vae": (fm.VAE(dense(m=4), dense(2, FEATURES)), x),
        "vqvae": (fm.systems.VQVAE(dense(m=2), fm.models.Quantizer(5, 2), dense(2, FEATURES)), x),
        "ema": (fm.EMA(fm.Classifier(norm), 0.9), (x, y)),
        "distillation": (fm.Distillation(fm.Frozen(teacher), fm.Classifier(dense())), (x, y)),
        "mean_teacher": (mean_teacher, (x, y)),
        "semi_supervised": (fm.systems.SemiSupervised(mean_teacher), fm.data.Mixed((x[:12], y[:12]), x)),
        "simclr": (fm.systems.SelfSupervised(dense(), augment=fm.augmentations.Noise(0.1)), x),
        "byol": (fm.systems.BYOL(fm.EMA(dense(), 0.9), predictor=dense(CLASSES), augment=fm.augmentations.Noise(0.1)), x),
        "clip": (fm.systems.CLIP(dense(m=2), dense(2, 2)), (x, halves)),
        "multi_task": (tasks(), {"x": x, "label": y, "halves": halves}),
        "weighted": (
            fm.Weighted(tasks(), fm.systems.Uncertainty("label", "halves")),
            {"x": x, "label": y, "halves": halves},
        ),
    }


def tiny(kind: str = "classifier") -> tuple[Component, Any]:
    """One of `systems()`, as `(system, data)`.

    Args:
        kind: its name.

    Raises:
        ValueError: for an unknown name.

    >>> system, data = fm.testing.tiny("regressor")
    >>> state, history = fm.fit(system, data, epochs=1, batch_size=10, optimizer=optax.sgd, lr=0.1, progress=False)
    """
    found = systems()
    if kind not in found:
        near = nearest(kind, found)
        hint = f"did you mean {near!r}?" if near else f"use one of {', '.join(found)}."
        raise ValueError(f"testing.tiny: no system {kind!r}; {hint}")
    return found[kind]

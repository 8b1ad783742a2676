"""How quickly `ActorCritic` learns to balance a pole: the mean return of the episodes that ended, epoch by epoch.

    python tests/benchmarks/cartpole.py [--seeds 3] [--epochs 20]

An epoch is 100 steps of 16 agents with 32 steps of the environment each; an episode is worth 500 at most. The last figure is
that of whole episodes that are played after training, by drawn actions.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import optax

import fulmen as fm
from fulmen.environments import CartPole


def train(seed: int, epochs: int) -> None:
    system = fm.systems.ActorCritic(fm.models.MLP(4, 64, 2), fm.models.MLP(4, 64, 1), CartPole(), agents=16, horizon=32)
    begun = time.perf_counter()
    state, history = fm.fit(
        system,
        np.arange(1600),
        batch_size=16,
        optimizer=optax.adam,
        lr=fm.schedules.linear(3e-3),
        epochs=epochs,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - begun
    returns = " ".join(f"{value:.0f}" for value in history["return"])
    after = fm.evaluate(state, np.arange(64), batch_size=16)["return"]
    print(
        f"seed {seed}: {returns}; afterwards {after:.0f}; {seconds:.1f} s, of which steps {history['seconds'][1:].sum():.1f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    for seed in range(options.seeds):
        train(seed, options.epochs)

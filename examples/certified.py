"""Adversarial training and a certified network: upper and lower bounds of robust accuracy.

    python examples/certified.py

The same convolutional network is trained plainly, on PGD's attacks, and on interval bounds. PGD bounds the accuracy under any
attack from above, a certificate from below. Prints a table, and writes `certified.png`.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm
from fulmen.models import Chain, Conv, Dense, Flatten


def region(eps):
    return fm.LinfBall(eps) & fm.Box(0, 1)


def bounds(state, test, eps, steps):
    """The accuracy under PGD, and the certified accuracy."""
    attacked = fm.evaluate(state, test, attack=fm.PGD(region(eps), step_size=4 * eps / steps, steps=steps))
    return attacked["robust/accuracy"], fm.certify(state, test, region(eps)).certified_accuracy


def main(
    kinds=("plain", "PGD", "interval bounds"),
    epochs=30,
    eps=0.1,
    radii=(0.025, 0.05, 0.075, 0.1, 0.125, 0.15),
    steps=40,
    picture="certified.png",
):
    x, y = load_digits(return_X_y=True)
    train, test = fm.split((x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y), 0.8, seed=0)
    net = Chain(
        Conv(1, 16), jax.nn.relu, Conv(16, 32, stride=2), jax.nn.relu, Flatten(), Dense(512, 64), jax.nn.relu, Dense(64, 10)
    )
    plain, length = fm.Classifier(net), epochs * -(-len(train[1]) // 64)  # the length of a run in steps
    systems = {
        "plain": plain,
        "PGD": fm.Adversarial(plain, fm.PGD(region(eps), step_size=eps / 3, steps=5)),
        "interval bounds": fm.IBP(plain, region(eps), warmup=0.1 * length, ramp=0.5 * length),
    }
    found = {}
    for name in kinds:
        state, _ = fm.fit(systems[name], train, optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=epochs, batch_size=64)
        found[name] = fm.evaluate(state, test)["accuracy"], [bounds(state, test, radius, steps) for radius in radii]
    print(f"trained on       clean   ε = {eps}: PGD   certified")
    for name, (clean, curve) in found.items():
        attacked, certified = curve[radii.index(eps)]
        print(f"{name:15}  {clean:.3f}       {attacked:.3f}        {certified:.3f}")
    draw(found, radii, eps, picture)
    return found


def draw(found, radii, eps, picture):
    figure, grid = plt.subplots(1, len(found), figsize=(9, 3.2), sharey=True, squeeze=False, layout="constrained")
    for axes, (name, (clean, curve)) in zip(grid[0], found.items()):
        upper, lower = ([clean, *values] for values in zip(*curve))
        axes.plot([0, *radii], upper, "-", color="C0", label="under PGD")
        axes.plot([0, *radii], lower, "--", color="C0", label="certified")
        axes.fill_between([0, *radii], lower, upper, color="C0", alpha=0.15, lw=0)
        axes.axvline(eps, color="grey", lw=0.8, ls=":")
        axes.set(xlabel="ε (L∞)", ylim=(0, 1.02), title=f"trained on {name}" if name != "plain" else "trained plainly")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("robust accuracy")
    grid[0, -1].legend(frameon=False, loc="lower left")
    figure.savefig(picture, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()

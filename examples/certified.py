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
    epochs=40,
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
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for i, (name, (clean, curve)) in enumerate(found.items()):
        upper, lower = ([clean, *values] for values in zip(*curve))
        axes.plot([0, *radii], upper, "-", color=f"C{i}", label=f"{name}: under PGD")
        axes.plot([0, *radii], lower, "--", color=f"C{i}", label=f"{name}: certified")
        axes.fill_between([0, *radii], lower, upper, color=f"C{i}", alpha=0.1, lw=0)
    axes.axvline(eps, color="grey", lw=0.8, ls=":")
    axes.set(xlabel="ε (L∞)", ylabel="accuracy", ylim=(0, 1.02), title="The robust accuracy lies between the lines")
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()

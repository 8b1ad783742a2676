"""Makes the README's picture: three trainings of one convnet on handwritten digits, under attack and certified.

`python docs/_pictures/robustness.py` takes about three minutes on two cores, and writes `docs/_static/robustness.png` and
`robustness.json`. It keeps what it has computed: the trained states in the folder `picture`, and the accuracies in the JSON file.
"""

import functools
import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm

STATIC = Path(__file__).parents[1] / "_static"
EPS, SHOWN, RADII = 0.1, 0.125, (0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2)
COLOURS = {"trained plainly": "#c0392b", "adversarial training": "#2471a3", "interval bounds": "#1e8449"}
GREEN, RED, GREY = "#1e8449", "#c0392b", "#555555"

x, y = load_digits(return_X_y=True)
train, test = fm.split((x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y), 0.8, seed=0)


def region(eps):
    return fm.LinfBall(eps) & fm.Box(0, 1)


def pgd(eps):
    return fm.PGD(region(eps), step_size=max(eps / 10, 1e-6), steps=40)


EPOCHS = 60
plain = fm.Classifier(fm.models.ConvNet(in_channels=1, classes=10))
steps = EPOCHS * 23
SYSTEMS = {
    "trained plainly": plain,
    "adversarial training": fm.Adversarial(plain, fm.FGSM(region(EPS), step_size=0.125, start=fm.attacks.Uniform())),
    "interval bounds": fm.IBP(plain, region(EPS), warmup=steps // 10, ramp=steps // 2),
}


@functools.cache
def trained(name):
    folder = f"picture/{name}"
    options = dict(optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=EPOCHS, batch_size=64)
    saving = fm.Checkpoint(folder, every=fm.Every(epochs=10), keep=fm.Latest(1))
    return fm.fit(SYSTEMS[name], train, callbacks=[saving], resume=folder, **options)[0]


def accuracies():
    """The accuracies under attack by training and radius, and the certified ones."""
    file = STATIC / "robustness.json"
    if not file.exists():
        attacked = {
            name: [fm.evaluate(trained(name), test, attack=pgd(eps))["robust/accuracy"] for eps in RADII] for name in SYSTEMS
        }
        bounds = [fm.certify(trained("interval bounds"), test, region(eps)).certified_accuracy for eps in RADII]
        file.write_text(json.dumps(dict(radii=RADII, attacked=attacked, certified=bounds), indent=1, default=float) + "\n")
    return json.loads(file.read_text())


def draw_digits(figure, columns=8, size=0.58, gap=0.07):
    """The first test digits, clean and attacked, with the predicted classes below. Lengths are in inches."""
    width, height = figure.get_size_inches()
    images, labels = (v[:columns] for v in test)
    rows = [("test digits", images, labels, GREY)]
    for name in list(SYSTEMS)[:2]:
        found = fm.perturb(pgd(SHOWN), trained(name), fm.Labeled(images, labels), jax.random.key(0)).x
        rows.append(
            (f"attacked with ε = {SHOWN:g}: {name}", found, fm.predict(trained(name), found).argmax(1), COLOURS[name])
        )
    for i, (title, shown, guesses, colour) in enumerate(rows):
        top = height - 0.30 - i * 1.14
        figure.text(0.1 / width, (top + 0.06) / height, title, color=colour, fontsize=9, fontweight="bold")
        for j, (image, guess, label) in enumerate(zip(shown, guesses, labels, strict=True)):
            left = 0.1 + j * (size + gap)
            axes = figure.add_axes((left / width, (top - size) / height, size / width, size / height), xticks=[], yticks=[])
            axes.imshow(np.asarray(image)[..., 0], cmap="gray_r", vmin=0, vmax=1)
            axes.spines[:].set(color="#cccccc")
            right = guess == label
            axes.set_xlabel(str(guess), color=GREEN if right else RED, fontsize=9, fontweight="bold", labelpad=2)
    figure.text(0.1 / width, 0.1 / height, "below each digit the predicted class, wrong ones in red", color=GREY, fontsize=8)


def draw_curves(figure, left=0.6):
    found = accuracies()
    axes = figure.add_axes((left, 0.14, 0.985 - left, 0.75))
    for name, values in found["attacked"].items():
        axes.plot(RADII, values, "o-", color=COLOURS[name], label=f"{name}, under PGD-40", ms=4, lw=1.8)
    bounded, bounds = found["attacked"]["interval bounds"], found["certified"]
    axes.plot(RADII, bounds, "--", color=COLOURS["interval bounds"], label="interval bounds, certified", lw=1.8)
    axes.fill_between(RADII, bounds, bounded, color=COLOURS["interval bounds"], alpha=0.15, lw=0)
    axes.axvline(EPS, color="#999999", lw=0.8, ls=":")
    axes.text(EPS, 1.03, "ε of training", ha="center", color="#777777", fontsize=8)
    axes.set(xlabel="ε (L∞)", ylabel="accuracy on the test digits", ylim=(0, 1.02), xlim=(-0.003, 0.203))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    picture = plt.figure(figsize=(10, 3.75))
    draw_digits(picture)
    draw_curves(picture)
    picture.savefig(STATIC / "robustness.png", dpi=150)

"""The main job: a convnet on handwritten digits, trained plainly and against FGSM, both attacked with PGD, and its pictures."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen.dispatching.lazy_libraries import installed
from fulmen.inspect.text import align, drawable
from fulmen.robust.report.confidence import confidence_interval
from fulmen.robust.report.robustness import versions

_STYLES = (("#c0392b", "o"), ("#2471a3", "s"))  # a colour and a marker for each training


def digits(
    epochs: int = 40, eps: float = 0.1, seed: int = 0, out: Path = Path("fulmen-digits"), progress: bool = True
) -> None:
    """Train a convnet on scikit-learn's digits plainly and against FGSM with a random start, and attack both with PGD-40.

    Args:
        epochs: passes over the 1437 training images.
        eps: the radius of the attacks, as a fraction of the range from black to white; the curve goes to twice that.
        seed: the seed of all randomness.
        out: the folder for the pictures `robustness` and `attacked`, each as PNG and SVG, and for `metrics.json`.
        progress: whether to show progress.
    """
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must be between 0 and 0.5, got {eps}.")
    begun = time.perf_counter()
    load_digits = _installed("sklearn.datasets").load_digits
    _installed("matplotlib").use("Agg")
    plt = _installed("matplotlib.pyplot")  # a missing package is reported before the training
    say = print if progress else lambda *text, **options: None
    x, y = load_digits(return_X_y=True)
    data = (x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y)
    train, test = fm.split(data, 0.8, seed=seed)

    region = fm.LinfBall(eps) & fm.Box(0.0, 1.0)
    plain = fm.Classifier(fm.models.ConvNet(in_channels=1, classes=10))
    systems = {
        "plainly": plain,
        "against FGSM": fm.Adversarial(plain, fm.FGSM(region, step_size=1.25 * eps, start=fm.attacks.Uniform())),
    }
    radii = [round(eps * part, 4) for part in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)]
    states, results = {}, {}
    say(
        f"A convnet is trained {epochs} epochs on {len(train[1])} handwritten digits, twice, and attacked on {len(test[1])} others."
    )
    for i, (name, system) in enumerate(systems.items(), 1):
        say(f"\n{i} of {len(systems)}: training {name}", flush=True)
        started = time.perf_counter()
        options: dict[str, Any] = dict(optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=epochs, batch_size=64, seed=seed)
        state, history = fm.fit(system, train, progress=progress, **options)
        trained = time.perf_counter()
        results[name] = {
            **_attacked(state, test, radii, say),
            "training seconds": trained - started,
            "attack seconds": time.perf_counter() - trained,
            "loss": history["loss"].tolist(),
        }
        states[name] = state

    out.mkdir(parents=True, exist_ok=True)
    _print(results, radii)
    _draw_accuracies(plt, results, eps, len(test[1]), out / "robustness")
    _draw_attacked(plt, states, test, _most_different(results, radii), out / "attacked")
    record = dict(
        epochs=epochs, eps=eps, seed=seed, seconds=time.perf_counter() - begun, versions=versions(), results=results
    )
    (out / "metrics.json").write_text(json.dumps(record, indent=2))
    print(
        f"\n{out}/ has robustness.png, attacked.png (both also as .svg) and metrics.json; {record['seconds']:.0f} s in all"
    )


def pgd(eps: float) -> Any:
    """PGD-40 from a random start."""
    return fm.PGD(fm.LinfBall(eps) & fm.Box(0.0, 1.0), step_size=max(eps / 10, 1e-6), steps=40)


def _attacked(state: Any, test: Any, radii: list[float], say: Callable[..., None]) -> dict[str, Any]:
    """Accuracy on clean inputs, and under attacks of growing radius."""
    say("attacking with PGD-40, accuracy:", end="", flush=True)
    clean = fm.evaluate(state, test)["accuracy"]
    say(f"  clean {clean:.3f}", end="", flush=True)
    robust = {}
    for eps in radii:
        robust[str(eps)] = fm.evaluate(state, test, attack=pgd(eps))["robust/accuracy"]
        say(drawable(f"  ε {eps:g}: {robust[str(eps)]:.3f}"), end="", flush=True)
    say()
    return {"clean": clean, "robust": robust}


def _print(results: dict[str, Any], radii: list[float]) -> None:
    rows: list[Sequence[str]] = [("training", "clean", *(f"ε = {eps:g}" for eps in radii), "trained in", "attacked in")]
    for name, result in results.items():
        accuracies = [f"{v:.3f}" for v in (result["clean"], *result["robust"].values())]
        rows.append((name, *accuracies, f"{result['training seconds']:.1f} s", f"{result['attack seconds']:.1f} s"))
    print(drawable(f"Accuracy on the test digits, clean and under PGD-40\n\n{align(rows, range(1, len(rows[0])))}"))


def _most_different(results: dict[str, Any], radii: list[float]) -> float:
    """The radius at which the accuracies of the trainings differ most."""
    accuracies = [[result["robust"][str(eps)] for result in results.values()] for eps in radii]
    return radii[int(np.argmax(np.ptp(accuracies, axis=1)))]


def _installed(name: str) -> Any:
    """A module of the optional packages."""
    return installed(name, "the data and the pictures of `digits`", "examples")


# Pictures


def _draw_accuracies(plt: Any, results: dict[str, Any], eps: float, n: int, path: Path) -> None:
    """Draw the accuracy of each training on n examples against the radius of the attack, with its confidence interval."""
    figure, axes = plt.subplots(figsize=(6, 3.9), layout="constrained")
    for (name, result), (color, marker) in zip(results.items(), _STYLES, strict=False):
        radii, accuracies = [0.0, *map(float, result["robust"])], [result["clean"], *result["robust"].values()]
        low, high = zip(*(confidence_interval(round(accuracy * n), n) for accuracy in accuracies), strict=True)
        axes.fill_between(radii, low, high, color=color, alpha=0.15, lw=0)
        axes.plot(radii, accuracies, color=color, marker=marker, ms=5, label=f"trained {name}")
    axes.axvline(eps, color="grey", lw=0.8, ls=":")
    axes.annotate("ε of the training", (eps, 0.02), xytext=(4, 0), textcoords="offset points", color="grey", fontsize=8)
    axes.set(xlabel="largest change of a pixel, ε (0: no attack; 1: from black to white)", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title(f"Accuracy on {n} test digits under PGD-40; bands: 95 % confidence", fontsize=10)
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(plt, figure, path)


def _draw_attacked(plt: Any, states: dict[str, Any], test: Any, eps: float, path: Path) -> None:
    """Draw the first test digit of each class, and for each training what the attack adds and the attacked digit."""
    chosen = np.unique(test[1], return_index=True)[1]
    x, labels = (v[chosen] for v in test)
    rows = 1 + 2 * len(states)
    figure, grid = plt.subplots(rows, len(x), figsize=(0.82 * len(x) + 1.6, 0.98 * rows + 0.7), layout="constrained")
    digits, changes = dict(cmap="gray_r", vmin=0, vmax=1), dict(cmap="RdBu_r", vmin=-eps, vmax=eps)
    _draw_row(grid[0], x, "test digit\n(its class)", [str(label) for label in labels], [True] * len(labels), digits)
    for i, (name, state) in enumerate(states.items()):
        attacked = np.asarray(fm.perturb(pgd(eps), state, (x, labels), jax.random.key(0)).x)
        before, after = (fm.predict(state, images).argmax(1) for images in (x, attacked))
        right = (before == labels) & (after == labels)
        seen = [f"{a} → {b}" for a, b in zip(before, after, strict=True)]
        _draw_row(grid[1 + 2 * i], attacked - x, f"trained {name}:\nwhat PGD adds", [""] * len(x), right, changes)
        _draw_row(grid[2 + 2 * i], attacked, "predicted before\n→ after the attack", seen, right, digits)
    bar = figure.colorbar(grid[1, -1].images[0], ax=grid[:, -1], shrink=0.5, aspect=30, ticks=[-eps, 0, eps])
    bar.set_label("change of a pixel (red: darker, blue: lighter)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(
        f"The first test digit of each class, attacked by PGD-40 within ±{eps:g} of each pixel; red: a wrong prediction",
        fontsize=10,
    )
    _save(plt, figure, path)


def _draw_row(cells: Any, images: Any, name: str, titles: Any, right: Any, options: dict[str, Any]) -> None:
    for cell, image, title, is_right in zip(cells, images, titles, right, strict=True):
        cell.imshow(np.asarray(image)[..., 0], interpolation="nearest", **options)
        cell.set(xticks=[], yticks=[])
        for side in cell.spines.values():
            side.set(lw=0.5, color="lightgrey")
        style = dict(color="black") if is_right else dict(color="crimson", weight="bold")
        cell.set_title(title, fontsize=10, pad=2, **style)
    cells[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)


def _save(plt: Any, figure: Any, path: Path) -> None:
    """Write a figure as PNG and as SVG, to a path without the suffix."""
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=200)
    plt.close(figure)

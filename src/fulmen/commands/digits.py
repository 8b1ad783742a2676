"""The main job: a convnet on handwritten digits, trained plainly and against FGSM, both attacked with PGD."""

import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fulmen as fm
from fulmen.inspect.text import align, drawable
from fulmen.robust.report.robustness import versions


def digits(
    epochs: int = 40, eps: float = 0.1, seed: int = 0, out: Path = Path("fulmen-digits"), progress: bool = True
) -> None:
    """Train a convnet on scikit-learn's digits plainly and against FGSM with a random start, and attack both with PGD-40.

    Args:
        epochs: passes over the 1437 training images.
        eps: the radius of the attacks, as a fraction of the range from black to white; the curve goes to twice that.
        seed: the seed of all randomness.
        out: the folder for `robustness.png`, `attacked.png` and `metrics.json`.
        progress: whether to show progress bars.
    """
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must be between 0 and 0.5, got {eps}.")
    begun = time.perf_counter()
    load_digits = _installed("sklearn.datasets").load_digits
    _pyplot()  # a missing package is reported before the training
    x, y = load_digits(return_X_y=True)
    data = (x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y)
    train, test = fm.split(data, 0.8, seed=seed)

    region = fm.LinfBall(eps) & fm.Box(0.0, 1.0)
    plain = fm.Classifier(fm.models.ConvNet(in_channels=1, classes=10))
    systems = {
        "plain": plain,
        "FGSM-trained": fm.Adversarial(plain, fm.FGSM(region, step_size=1.25 * eps, start=fm.attacks.Uniform())),
    }
    radii = [round(eps * part, 4) for part in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)]
    states, results = {}, {}
    for name, system in systems.items():
        started = time.perf_counter()
        options: dict[str, Any] = dict(optimizer=optax.adam, lr=fm.cosine(2e-3), epochs=epochs, batch_size=64, seed=seed)
        state, history = fm.fit(system, train, progress=progress, **options)
        trained = time.perf_counter()
        results[name] = {
            **_attacked(state, test, radii),
            "training seconds": trained - started,
            "attack seconds": time.perf_counter() - trained,
            "loss": history["loss"].tolist(),
        }
        states[name] = state

    out.mkdir(parents=True, exist_ok=True)
    _print(results, radii)
    _curves(results, eps, out / "robustness.png")
    _pictures(states, test, eps, out / "attacked.png")
    record = dict(
        epochs=epochs, eps=eps, seed=seed, seconds=time.perf_counter() - begun, versions=versions(), results=results
    )
    (out / "metrics.json").write_text(json.dumps(record, indent=2))
    print(f"\nwrote {out}/robustness.png, attacked.png and metrics.json in {record['seconds']:.0f} s")


def pgd(eps: float) -> Any:
    """PGD-40 from a random start."""
    return fm.PGD(fm.LinfBall(eps) & fm.Box(0.0, 1.0), step_size=max(eps / 10, 1e-6), steps=40)


def _attacked(state: Any, test: Any, radii: list[float]) -> dict[str, Any]:
    """Accuracy on clean inputs, and under attacks of growing radius."""
    clean = fm.evaluate(state, test)["accuracy"]
    robust = {str(eps): fm.evaluate(state, test, attack=pgd(eps))["robust/accuracy"] for eps in radii}
    return {"clean": clean, "robust": robust}


def _print(results: dict[str, Any], radii: list[float]) -> None:
    rows: list[Sequence[str]] = [("training", "clean", *(f"ε = {eps:g}" for eps in radii), "trained in", "attacked in")]
    for name, result in results.items():
        accuracies = [f"{v:.3f}" for v in (result["clean"], *result["robust"].values())]
        rows.append((name, *accuracies, f"{result['training seconds']:.1f} s", f"{result['attack seconds']:.1f} s"))
    print(drawable(f"Accuracy on the test digits, clean and under PGD-40\n\n{align(rows, range(1, len(rows[0])))}"))


def _curves(results: dict[str, Any], eps: float, path: Path) -> None:
    """Plot accuracy against the radius of the attack."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for (name, result), style in zip(results.items(), ("o-", "s-"), strict=False):
        sizes = [0.0, *map(float, result["robust"])]
        axes.plot(sizes, [result["clean"], *result["robust"].values()], style, label=name)
    axes.axvline(eps, color="grey", lw=0.8, ls=":")
    axes.annotate("ε of training", (eps, 0.02), xytext=(4, 0), textcoords="offset points", color="grey", fontsize=8)
    axes.set(xlabel="ε of PGD-40 (L∞)", ylabel="accuracy", ylim=(0, 1.02), title="Robustness on digits")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pictures(states: dict[str, Any], test: Any, eps: float, path: Path, columns: int = 10) -> None:
    """Plot some digits, attacked for each model, with the model's predictions."""
    plt = _pyplot()
    x, y = (v[:columns] for v in test)
    rows = {"clean": x}
    seen = {"clean": y}
    for name, state in states.items():
        rows[name] = fm.perturb(pgd(eps), state, (x, y), jax.random.key(0)).x
        seen[name] = fm.predict(state, (np.asarray(rows[name]), y)).argmax(1)
    figure, grid = plt.subplots(len(rows), columns, figsize=(columns * 0.9, len(rows) * 1.15), layout="constrained")
    for cells, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image, is_seen, label in zip(cells, images, seen[name], y, strict=True):
            axes.imshow(np.asarray(image)[..., 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.set_title(str(is_seen), fontsize=9, color="black" if is_seen == label else "crimson")
        cells[0].set_ylabel(name, fontsize=9)
    figure.suptitle(f"PGD-40, ε = {eps:g}: predicted classes (wrong in red)", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pyplot() -> Any:
    _installed("matplotlib").use("Agg")
    return _installed("matplotlib.pyplot")


def _installed(name: str) -> Any:
    """Import a module of the optional packages."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f'`digits` needs {error.name}: pip install "fulmen[examples]"') from None

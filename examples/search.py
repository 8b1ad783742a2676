"""A hyperparameter search as a population: 48 trainings in one program.

    python examples/search.py

Each member has its own learning rate, weight of the L2 penalty and seed. Writes `search.png`, and evaluates the best member.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm


def main(epochs=40, rates=8, weights=6, picture="search.png"):
    x, y = load_digits(return_X_y=True)
    rest, test = fm.split(((x / 16).astype(np.float32), y), 0.5, seed=0)
    train, validation = fm.split(rest, 0.25, seed=0)

    grid = [*itertools.product(np.geomspace(1e-4, 1, rates), np.geomspace(1e-5, 1, weights))]
    net = fm.models.MLP(64, 64, 10)
    population = fm.Population([fm.Classifier(net, fm.CrossEntropy() + float(weight) * fm.L2()) for _, weight in grid])
    state, history = fm.fit(
        population,
        train,
        optimizer=optax.adam,
        lr=[fm.cosine(float(rate)) for rate, _ in grid],
        epochs=epochs,
        validation=validation,
    )
    found = history["validation/accuracy/members"][-1]
    rate, weight = grid[found.argmax()]
    best = fm.best_member(state, history, by="validation/accuracy")
    accuracy = fm.evaluate(best, test)["accuracy"]
    print(f"best of {len(grid)}: learning rate {rate:.2g}, weight {weight:.2g}, test accuracy {accuracy:.3f}")
    draw(found.reshape(rates, weights), grid, picture)
    return accuracy


def draw(found, grid, picture):
    rates, weights = (sorted({pair[i] for pair in grid}) for i in (0, 1))
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    image = axes.imshow(found.T, cmap="viridis", origin="lower", aspect="auto")
    for (i, j), value in np.ndenumerate(found):
        axes.text(i, j, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < 0.7 else "black")
    axes.set(
        xticks=range(len(rates)),
        yticks=range(len(weights)),
        xticklabels=[f"{rate:.0e}" for rate in rates],
        yticklabels=[f"{weight:.0e}" for weight in weights],
        xlabel="learning rate",
        ylabel="weight of the L2 penalty",
        title=f"validation accuracy of {len(grid)} members",
    )
    axes.tick_params(labelsize=7)
    figure.colorbar(image)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()

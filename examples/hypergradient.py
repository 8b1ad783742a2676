"""Hypergradients: which training labels are wrong, learned by gradient descent through training.

    python examples/hypergradient.py

A third of the training labels is wrong. Each example has a weight, and the weights are moved down the gradient of the loss on a few
clean examples after a whole short training. Training is a function, so `jax.grad` of it is all that is needed. Writes
`hypergradient.png`. Ren et al. 2018, "Learning to reweight examples for robust deep learning", arXiv:1803.09050.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import fulmen as fm


def digits(seed):
    """Training data of which a third has wrong labels, which ones, a few clean examples, and test data."""
    x, y = load_digits(return_X_y=True)
    train, rest = fm.split(((x / 16).astype(np.float32), y), 0.5, seed=seed)
    clean, test = fm.split(rest, 0.2, seed=seed)
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(train[1])) < 1 / 3
    labels = np.where(wrong, (train[1] + rng.integers(1, 10, len(wrong))) % 10, train[1])
    return (train[0], labels), wrong, clean, test


def main(iterations=40, inner=20, picture="hypergradient.png"):
    (x, y), wrong, clean, test = digits(seed=0)
    adam = optax.adam(0.01, eps_root=1e-8)  # without it, the derivative of the root is infinite where a gradient is 0
    start = fm.setup(fm.Classifier(fm.models.MLP(64, 64, 10)), (x, y), optimizer=adam, batch_size=len(x))

    def trained(scores, steps):
        """The state after training with the weight sigmoid(score) for each example."""
        batch = fm.Labeled(x, y, weight=jax.nn.sigmoid(scores))
        return jax.lax.scan(lambda state, _: (fm.train_step(state, batch)[0], None), start, length=steps)[0]

    slope = jax.jit(jax.value_and_grad(lambda scores: fm.loss(trained(scores, inner), clean)))
    scores, outer = jnp.zeros(len(x)), optax.adam(0.3)
    moments, values = outer.init(scores), []
    for _ in range(iterations):
        value, gradient = slope(scores)
        change, moments = outer.update(gradient, moments)
        scores, values = scores + change, [*values, float(value)]

    given = {
        "all alike": jnp.zeros(len(x)),
        "learned": scores,
        "wrong labels left out": jnp.where(wrong, -100.0, 100.0),
    }
    run = jax.jit(lambda scores: trained(scores, 5 * inner).system)
    accuracy = {name: fm.evaluate(run(each), test)["accuracy"] for name, each in given.items()}
    for name, value in accuracy.items():
        print(f"weights {name:22}  test accuracy {value:.3f}")
    draw(values, jax.nn.sigmoid(scores), wrong, picture)
    return accuracy


def draw(values, weights, wrong, picture):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    left.plot(values)
    left.set(xlabel="iteration", title="loss on clean examples after training")
    bins = np.linspace(0, 1, 21)
    right.hist([weights[~wrong], weights[wrong]], bins, stacked=True, label=["right label", "wrong label"])
    right.set(xlabel="learned weight", ylabel="examples", title="weights of training examples")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()

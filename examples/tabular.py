"""Tabular classification: how many tumours are missed, with and without class weights.

    python examples/tabular.py

An MLP on scikit-learn's breast cancer data, whose training set has few malignant tumours. It is trained with growing weights of
the malignant class, and each run stops when the validation loss no longer improves. Prints a table of the test set.
"""

import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

import fulmen as fm

MALIGNANT = 1


def tumours(seed):
    """Training, validation and test data, standardised; one in ten tumours of the training data is malignant."""
    x, y = load_breast_cancer(return_X_y=True)
    data = x.astype(np.float32), 1 - y  # scikit-learn's 1 is benign
    rest, test = fm.split(data, 0.6, seed=seed)
    train, validation = fm.split(rest, 0.7, seed=seed)
    rare = np.flatnonzero(train[1] == MALIGNANT)[:15]
    rows = np.concatenate([np.flatnonzero(train[1] != MALIGNANT), rare])
    train = train[0][rows], train[1][rows]
    mean, std = train[0].mean(0), train[0].std(0)
    return [((x - mean) / std, y) for x, y in (train, validation, test)]


def fit(weight, seed, epochs):
    """Numbers of missed tumours, false alarms and epochs."""
    train, validation, test = tumours(seed)
    objective = fm.CrossEntropy(class_weights=jnp.array([1.0, weight]))
    system = fm.Classifier(fm.models.MLP(30, 32, 2, dropout=0.2), objective + 1e-3 * fm.L2())
    stopping = fm.EarlyStopping("validation/loss", patience=10, restore_best=True)
    state, history = fm.fit(
        system,
        train,
        optimizer=optax.adam,
        lr=3e-3,
        epochs=epochs,
        seed=seed,
        validation=validation,
        callbacks=[stopping],
        progress=False,
    )
    predicted, actual = fm.predict(state, test[0]).argmax(1), test[1]
    missed = (actual == MALIGNANT) & (predicted != MALIGNANT)
    alarms = (actual != MALIGNANT) & (predicted == MALIGNANT)
    return missed.sum(), alarms.sum(), len(history["loss"]), (actual == MALIGNANT).sum(), (actual != MALIGNANT).sum()


def main(epochs=200, weights=(1.0, 3.0, 10.0, 30.0), seeds=5):
    print("weight   missed tumours   false alarms   epochs")
    rows = []
    for weight in weights:
        missed, alarms, length, malignant, benign = np.sum([fit(weight, seed, epochs) for seed in range(seeds)], 0)
        rows.append((weight, missed / malignant, alarms / benign, length / seeds))
        print("{:6g}   {:14.1%}   {:12.1%}   {:6.0f}".format(*rows[-1]))
    return rows


if __name__ == "__main__":
    main()

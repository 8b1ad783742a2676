"""Data that is converted: tensors and frames of other libraries, and float64."""

import functools

import jax
import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm

X, Y = data(40)
ADAM = dict(optimizer=optax.adam, lr=1e-3)
RUN = dict(ADAM, epochs=1, batch_size=20, progress=False, seed=None)


def classifier():
    return fm.Classifier(Linear(4, 3))


@functools.cache
def trained():
    return fm.fit(classifier(), (X, Y), **RUN)


def tensors():
    torch = pytest.importorskip("torch")
    return torch.tensor(X), torch.tensor(Y)


def frames():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(X, columns=list("abcd")), pandas.Series(Y)


@pytest.mark.parametrize("make", [tensors, frames])
def test_arrays_of_other_libraries_are_data(make):
    x, y = make()
    _, history = fm.fit(classifier(), (x, y), validation=(x, y), **RUN)
    np.testing.assert_array_equal(history["loss"], trained()[1]["loss"])
    state = trained()[0]
    np.testing.assert_array_equal(fm.predict(state, x), fm.predict(state, X))
    assert fm.train_step(state, (x, y))[1]["loss"] == fm.train_step(state, (X, Y))[1]["loss"]
    np.testing.assert_array_equal(fm.split((x, y))[0][0], fm.split((X, Y))[0][0])


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda wide: fm.fit(classifier(), (wide, Y), **RUN)[1]["loss"][0], "x"),
        (
            lambda wide: fm.fit(classifier(), lambda: iter([(wide[:20], Y[:20]), (wide[20:], Y[20:])]), **RUN)[1]["loss"][0],
            "x",
        ),
        (lambda wide: fm.loss(trained()[0], (wide, Y)) and None, "x"),
        (lambda wide: fm.train_step(trained()[0], fm.Labeled(wide, Y)) and None, "x"),
        (lambda wide: (fm.predict(trained()[0], wide.astype(">f8")), None)[1], "x"),
    ],
    ids=["fit", "generator", "loss", "train_step", "predict"],
)
def test_float64_is_converted_with_one_warning(run, name):
    with pytest.warns(
        UserWarning, match=rf"^{name} was converted from float64 to float32.*{name}\.astype\(np.float32\)"
    ) as caught:
        found = run(X.astype(np.float64))
    assert len(caught) == 1
    assert found is None or found == trained()[1]["loss"][0]


def test_float64_stays_where_it_is_enabled():
    with jax.enable_x64(True):
        assert fm.split(X.astype(np.float64))[0].dtype == np.float64
    with (
        pytest.raises(ValueError, match="must fit into float32, got up to 1e\\+300"),
        pytest.warns(UserWarning, match="float64"),
    ):
        fm.split(np.array([1e300, 1.0, 2.0]))


def test_a_batch_of_a_frame():
    frame = frames()[0].assign(label=Y, w=2.0)
    batch = fm.Labeled.from_frame(frame, "label", weight="w")
    np.testing.assert_array_equal(batch.x, X)
    np.testing.assert_array_equal(batch.y, Y)
    assert batch.x.dtype == batch.weight.dtype == np.float32 and (batch.weight == 2).all()
    assert fm.Labeled.from_frame(frame, ["a", "b"]).y.shape == (40, 2)
    with pytest.raises(KeyError, match="no column 'labels'; it has: a, b, c, d, label, w"):
        fm.Labeled.from_frame(frame, "labels")
    with pytest.raises(TypeError, match=r"column 'city' must be numbers.*np.unique\(…, return_inverse=True\)"):
        fm.Labeled.from_frame(frame.assign(city="Rome"), "label")

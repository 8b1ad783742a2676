"""A `History` as JSON and as a table."""

import json

import numpy as np
import optax
import pytest
from tiny import Linear, data

import fulmen as fm

X, Y = data(24)
SYSTEMS = {
    "one": fm.Classifier(Linear(4, 3)),
    "several": fm.Population(fm.Classifier(Linear(4, 3), metrics=(fm.Accuracy(), fm.metric_types.ConfusionMatrix())), 2),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def history(request):
    options = {"optimizer": optax.sgd, "lr": 0.1, "batch_size": 8, "epochs": 3, "progress": False}
    return fm.fit(SYSTEMS[request.param], (X, Y), validation=(X, Y), **options)[1]


def test_it_is_json(history):
    found = json.loads(json.dumps(history.to_dict(), allow_nan=False))
    assert list(found) == list(history)
    for name, values in history.items():
        np.testing.assert_array_equal(found[name], values)
    history = fm.History({"loss": np.array([np.nan, np.inf, 1.0])})
    assert history.to_dict() == {"loss": [None, None, 1.0]}


def test_it_is_a_table(history):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(history)
    assert len(table) == 3 and list(table) == list(history.keys())
    assert all(dtype == np.float64 or np.issubdtype(dtype, np.floating) for dtype in table.dtypes)
    for name, values in history.items():
        columns = (
            [name] if values.ndim == 1 else [n for n in table if n.startswith(f"{name}/") and n[len(name) + 1].isdecimal()]
        )
        np.testing.assert_array_equal(table[columns].to_numpy().reshape(values.shape), values)


def test_columns_are_looked_up_and_unknown_ones_are_errors():
    history = fm.History({"loss": np.arange(2.0), "matrix": np.arange(12.0).reshape(2, 2, 3)})
    assert list(history.keys()) == ["loss", *(f"matrix/{i}/{j}" for i in range(2) for j in range(3))]
    np.testing.assert_array_equal(history["matrix/1/2"], [5, 11])
    for name in ("loss/0", "matrix/2", "matrix/0/3", "los", "matrix/0/0/0"):
        with pytest.raises(KeyError, match=f"no '{name.rpartition('/')[0] if name == 'matrix/0/0/0' else name}"):
            history[name]

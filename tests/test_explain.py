"""`explain`: which methods a call chooses, by tracing alone."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny import Linear, Net, Pair, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.inspect import explain

X, Y = data(20)


class Deep(fm.Model):
    """Two layers of one type."""

    layers: list[Linear]


@dispatch
def forward(model: Deep, x):
    for layer in model.layers:
        x = layer(x)
    return x


@dispatch
def loss(model: Deep, batch: fm.Labeled):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch.x), batch.y)


class Around(fm.System):
    """A system and a wrapper inside."""

    inner: Pair
    frozen: fm.Frozen


def deep():
    return Deep([Linear(4, 5), Linear(5, 3)])


def around():
    return Around(pair(), fm.Frozen(net()))


@pytest.fixture(scope="module")
def state():
    return fm.setup(around(), (X, Y), optimizer=optax.adam, lr=1e-3)


def test_nests_and_counts():
    explanation = explain(fm.loss, deep(), fm.Labeled(X, Y))
    (root,) = explanation.calls
    assert (root.verb, root.types, root.context) == ("loss", ("Deep", "Labeled"), "Eval")
    (call,) = root.calls
    assert (call.verb, call.types, call.count) == ("forward", ("Deep", "array"), 1)
    (layers,) = call.calls
    assert (layers.verb, layers.types, layers.count) == ("forward", ("Linear", "array"), 2)
    assert root.where == f"test_explain.py:{root.method.function.__code__.co_firstlineno}"
    assert layers.where.startswith("tiny.py:")
    text = str(explanation)
    assert "forward(Linear, array) × 2" in text and "loss(Deep, Labeled)" in text and explanation.error is None


def test_computes_nothing_and_draws_nothing():
    wide = Net(Linear(10**6, 10**6))
    (root,) = explain(fm.forward, wide, jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)).calls
    assert root.calls[0].types == ("Linear", "array")
    assert explain(fm.init, wide, jax.random.key(0)).calls[0].calls[0].verb == "init"


def test_follows_wrappers_and_modes():
    explanation = explain(fm.loss, around(), fm.Labeled(X, Y), fm.Train(jax.random.key(0)))
    text = str(explanation)
    assert "loss(Around, Labeled, Train)" in text and "handed to its part" in text
    assert "loss(Net, Labeled, Eval)" in text  # below Frozen
    assert "as_batch(" not in text and "chosen: as_batch, bind." in text
    assert {"bind", "loss"} == {call.verb for call in explanation.calls}
    assert str(explain(fm.bind, pair(), fm.Eval())).splitlines()[1].startswith("bind(Pair, Eval)")


def test_sees_what_is_compiled_already(state):
    fm.train_step(state, (X, Y))
    for _ in range(2):
        text = str(explain(fm.train_step, state, (X, Y)))
        assert "update(Around, State, Labeled, Train)" in text and "forward(Linear, array)" in text


def test_leaves_compiled_programs_alone():
    traced = []

    class Counted(fm.Model):
        scale: jax.Array

    @dispatch
    def forward(model: Counted, x):
        traced.append(1)
        return model.scale * x

    model, program = Counted(jnp.float32(2)), jax.jit(lambda model, x: fm.forward(model, x))
    program(model, 1.0)
    explain(program, model, jnp.float32(1))
    assert len(traced) == 2
    program(model, 1.0)
    assert len(traced) == 2


def test_shows_where_a_call_failed():
    class Hollow(fm.Model):
        layer: Linear

    @dispatch
    def forward(model: Hollow, x):
        return fm.forward(model.layer, x, x)

    explanation = explain(fm.forward, Hollow(Linear(4, 3)), X)
    assert isinstance(explanation.error, fm.MissingMethodError) and explanation.calls[0].types[0] == "Hollow"
    assert "stopped by MissingMethodError: `forward(Linear" in str(explanation)
    with pytest.raises(fm.MissingMethodError):
        explain(fm.loss, Hollow(Linear(4, 3)), fm.Labeled(X, Y))


def test_verbs_that_run_on_the_host(state):
    text = str(explain(fm.evaluate, state, (X, Y)))
    assert "evaluate(State, tuple)" in text and "values are needed" in text


def test_keeps_the_types_of_leaves_that_are_not_arrays():
    @fm.verb
    def describe(what, n):
        """Something."""

    @describe.dispatch
    def _(what: Net, n: int):
        return n

    @describe.dispatch
    def _(what: Net, n: str):
        return describe(what, 3)

    (root,) = explain(describe, net(), "x").calls
    assert (root.types, root.calls[0].types) == (("Net", "str"), ("Net", "int"))


def test_leaves_private_verbs_out(state):
    """Steps between public verbs, such as from raw data to a batch, are not shown, but what they call is."""
    (root,) = explain(fm.loss, state.system, (X, Y), fm.Train(jax.random.key(0))).calls[-1:]
    names = {call.verb for call in explanation_calls(root)}
    assert names <= {verb.__name__ for verb in fm.verbs()} and "forward" in names
    assert not {"prepared", "to_batch"} & {verb.__name__ for verb in fm.verbs()}


def explanation_calls(call):
    return [call, *(inner for each in call.calls for inner in explanation_calls(each))]


class Own(Net):
    """Has a step of its own."""


@dispatch
def update(net: Own, state, batch, mode):
    raise NotImplementedError


def test_a_run_is_explained_by_its_events():
    callbacks = [
        fm.JSONLines("run.jsonl", every=fm.Every(steps=50)),
        fm.GradientNorms(),
        fm.EarlyStopping("loss"),
        fm.NaNGuard(),
    ]
    explanation = explain(fm.fit, net(), (X, Y), callbacks=callbacks, validation=(X, Y), progress=False)
    calls = [(action.event, action.call) for action in explanation.actions]
    of = lambda event: [call.partition(", ")[2][:-1] for name, call in calls if name == event]
    assert of("Due") == ["GradientNorms", "JSONLines", "JSONLines", "EarlyStopping"]  # by steps, then by epochs
    assert of("EpochEnd") == ["GradientNorms", "JSONLines"]
    order = [
        "start",
        "FitStart",
        "each epoch",
        "each step",
        "StepEnd",
        "Due",
        "EpochEnd",
        "validation",
        "ValidationEnd",
        "Due",
        "FitEnd",
    ]
    assert [name for name, _ in itertools.groupby(name for name, _ in calls)] == order
    assert ("validation", "run_epoch(Validation)") in calls and ("each step", "update(Net)") in calls
    norms = next(action for action in explanation.actions if action.call == "on(Due, GradientNorms)")
    assert norms.where.startswith("fulmen/train/callbacks/gradient_norms.py:") and norms.when == "Every(steps=100)"
    stopping = next(action for action in explanation.actions if "EarlyStopping" in action.call)
    assert (stopping.owns, str(explanation).count("nan_guard.py")) == ("stopping", 3)
    assert "<table" in explanation._repr_html_()
    (step,) = [a for a in explain(fm.fit, Own(Linear(4, 3)), (X, Y), epochs=1).actions if a.event == "each step"]
    assert step.where.startswith("tests/test_explain.py:") or "test_explain.py:" in step.where

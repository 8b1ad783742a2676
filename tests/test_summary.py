"""Summaries: every leaf, the totals, and what the compiled step costs."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_looking import halved, tracked
from tiny import Compilations, Linear, Net, data, net, pair

import fulmen as fm
from fulmen import dispatch
from fulmen.inspect import summary
from fulmen.train.compiled_step import traced_step

X, Y = data(20)
SHAPES = jax.ShapeDtypeStruct((20, 4), np.float32), jax.ShapeDtypeStruct((20,), np.int32)


@pytest.fixture(scope="module")
def state():
    return fm.setup(halved(), (X, Y), optimizer=optax.adam, lr=1e-3)


@pytest.fixture(scope="module")
def table(state):
    return summary(state, (X, Y))


def costs(component, data, **options):
    """Each program's name with its cost."""
    return {cost.name: cost for cost in summary(component, data, **options).costs}


# What a component holds


def test_summary_of_a_description_draws_nothing():
    wide = Net(Linear(10**6, 10**6))  # 4 TB
    table = summary(wide)
    assert (table.parameters, table.bytes, table.drawn) == (10**12 + 10**6, 4 * (10**12 + 10**6), False)
    assert [(r.path, r.type, r.shape, r.dtype, r.role) for r in table.rows] == [
        ("layer.weight", "Linear", (10**6, 10**6), "float32", "parameter"),
        ("layer.bias", "Linear", (10**6,), "float32", "parameter"),
    ]
    assert "not drawn yet" in str(table)


def test_summary_has_the_role_of_every_leaf(getkey):
    system = fm.init(halved(), getkey())
    table = summary(system)
    assert table.drawn and table.name == "Halved"
    assert [r.path for r in table.rows] == [leaf.path for leaf in fm.leaves(system)]
    assert {r.path: r.role for r in table.rows if not r.path.endswith(("weight", "bias"))} == {
        "inner.strength": "hyperparameter"
    }
    assert {r.role for r in table.rows if r.path.startswith("frozen")} == {"frozen"}
    assert table.parameters == fm.count_parameters(system)
    assert next(r.value for r in table.rows if r.path == "inner.strength") == 0.5
    roles = {r.path: r.role for r in summary(tracked()).rows}
    assert (roles["mean"], roles["slope"], roles["layers.0.bias"]) == ("buffer", "hyperparameter", "parameter")


def test_summary_counts_the_optimizer_state_of_a_state(state):
    table = summary(state)
    leaves = jax.tree.leaves(state.optimizer_state)
    assert table.optimizer_bytes == sum(leaf.nbytes for leaf in leaves) > 2 * 4 * table.parameters
    assert "optimizer state" in str(table) and summary(state.system).optimizer_bytes is None


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_summary_fits_the_width_and_cuts_nothing(table, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)
    if columns == 200:
        assert any(line.split()[:2] == ["inner.pair.one.layer.weight", "Linear"] for line in lines)
    if columns == 80:
        at = lines.index("inner.pair.one.layer: Linear")
        assert lines[at + 1].split() == ["weight", "float32[4,", "3]", "parameter", "48", "B"]
        assert lines[at + 2].split() == ["bias", "float32[3]", "parameter", "12", "B"]


def test_summary_of_keys_foreign_leaves_and_nothing():
    class Holder(fm.Model):
        key: jax.Array
        foreign: dict

    rows = {r.path: r for r in summary(Holder(jax.random.key(0), {"w": np.zeros((2, 3), np.int8)})).rows}
    assert rows["key"].dtype.startswith("key<") and rows["key"].bytes == 8
    assert (rows["foreign.w"].bytes, rows["foreign.w"].role) == (6, "hyperparameter")
    assert "0 parameters" in str(summary(fm.Frozen(Net(Linear(2, 2)))))


class Line(fm.Model):
    """Layers in a row, and a part without arrays."""

    layers: list[Linear]
    last: Net
    metric: fm.Accuracy = fm.Accuracy()


def test_parts_are_those_of_the_highest_level_with_several():
    def parts(component):
        return [(part.path, part.type, part.parameters, part.bytes) for part in summary(component).parts]

    line = Line([Linear(4, 5), Linear(5, 3)], net())
    inside = [("layers.0", "Linear", 25, 100), ("layers.1", "Linear", 18, 72), ("last", "Net", 15, 60)]
    assert parts(line) == inside
    # Below what has one part alone with arrays, and the paths from the root.
    wrapped = fm.Classifier(line, fm.CrossEntropy() + 0.1 * fm.L2())
    assert parts(wrapped) == [(f"model.{path}", *rest) for path, *rest in inside]
    assert parts(Linear(4, 5)) == parts(Net(Linear(4, 5))) == []
    assert [part[2] for part in parts(halved())] == [45, 0]
    assert "layers.1  Linear" in str(summary(line))


# What its step costs


def test_costs_are_those_of_the_compiled_programs():
    classifier = fm.Classifier(fm.models.MLP(64, 128, 10), fm.CrossEntropy(), metrics=(fm.Accuracy(),))
    batch = (np.zeros((32, 64), np.float32), np.zeros(32, np.int32))
    state = fm.setup(classifier, batch, optimizer=optax.adam, lr=1e-3)
    found = costs(state, batch)
    assert list(found) == ["training step", "evaluation"]
    step = found["training step"]
    assert (step.examples, step.flops) == (32, traced_step(state, batch).lower().compile().cost_analysis()["flops"])
    products = 2 * 32 * (64 * 128 + 128 * 10)
    assert products < found["evaluation"].flops < 1.05 * products
    backward = products + 2 * 32 * 128 * 10  # for the weights, and for what comes from the layer below
    assert products + backward < step.flops < 1.2 * (products + backward)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
    unused = 8 + 4  # the key and the number of the step: nothing is random here
    assert step.arguments == held - unused and step.bytes == step.arguments + step.temporary
    # The activations are needed meanwhile, and the state moves in its place.
    assert 4 * 32 * 128 <= step.temporary < 4 * summary(state).parameters + 10 * 4 * 32 * 128


def test_costs_of_shapes_are_those_of_arrays():
    classifier = fm.Classifier(fm.models.MLP(4, 8, 3), fm.CrossEntropy())
    options = dict(optimizer=optax.adam, lr=fm.cosine(1e-3))
    state = fm.setup(classifier, (X, Y), steps=100, **options)
    drawn, dry = summary(state, (X, Y)), summary(classifier, SHAPES, **options)
    assert dry.costs == drawn.costs and dry.optimizer_bytes == drawn.optimizer_bytes > 0
    assert (dry.drawn, drawn.drawn) == (False, True)
    assert "optimizer state" in str(dry) and dry.remark == ""
    assert costs(classifier, SHAPES, batch_size=5, **options)["training step"].examples == 5
    large = tuple(jax.ShapeDtypeStruct((10**9, *s.shape[1:]), s.dtype) for s in SHAPES)  # 20 GB
    assert costs(classifier, large, **options)["training step"].examples == 32
    labeled = fm.Labeled(*SHAPES)
    assert costs(classifier, labeled, **options)["evaluation"] == drawn.costs[1]


def test_a_dry_run_allocates_nothing():
    """A model of 2 TB, with an optimizer state of 4 TB, and its step."""
    wide = fm.Classifier(
        fm.models.Chain(fm.models.Dense(4, 500_000), fm.models.Dense(500_000, 10**6), fm.models.Dense(10**6, 3))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = summary(wide, SHAPES, optimizer=optax.adam, lr=1e-3)
    grown = 1000 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert table.bytes > 2e12 and table.optimizer_bytes == pytest.approx(2 * table.bytes, rel=1e-9)
    assert table.costs[0].arguments > 6e12 and table.costs[0].flops > 6 * 20 * 5e11
    assert grown < 1e9
    assert "2.0 TB" in str(table) and "6.0 TB" in str(table)


@pytest.mark.parametrize(
    ("make", "shape", "parameters"),
    [
        (fm.models.gpt2, jax.ShapeDtypeStruct((2, 128), np.int32), 124_439_808),
        (fm.models.resnet50, jax.ShapeDtypeStruct((4, 64, 64, 3), np.float32), 25_557_032),
    ],
)
def test_large_models_without_a_loss_have_the_cost_of_a_forward_pass(make, shape, parameters):
    table = summary(make(), shape)
    assert table.parameters == parameters and not table.drawn and table.optimizer_bytes is None
    (cost,) = table.costs
    known = {
        fm.models.gpt2: 2 * 2 * 128 * (12 * 12 * 768**2 + 768 * 50257 + 12 * 2 * 128 * 768),
        fm.models.resnet50: 4 * 2 * 4.09e9 * (64 / 224) ** 2,  # 4.09 · 10⁹ multiplications and additions at 224 × 224
    }[make]
    assert cost.name == "forward pass" and cost.flops == pytest.approx(known, rel=0.1)
    assert 4 * parameters < cost.arguments < 4.1 * parameters


def test_every_iteration_of_a_loop_is_counted():
    """Blocks that are run by a loop cost what they cost one after the other."""

    def stacked(unroll, **options):
        blocks = fm.models.Stacked(fm.models.Chain(fm.models.Dense(32, 32), jax.nn.relu), 5, unroll)
        return fm.Classifier(fm.models.Chain(fm.models.Dense(4, 32), blocks, fm.models.Dense(32, 3)), **options)

    looped, unrolled = (costs(stacked(unroll), SHAPES, optimizer=optax.sgd, lr=0.1) for unroll in (False, True))
    assert looped["evaluation"].flops == pytest.approx(unrolled["evaluation"].flops, rel=0.01)
    assert looped["evaluation"].flops > 5 * 2 * 20 * 32 * 32
    # With metrics or without, an evaluation runs the loop once: XLA merges equal ones.
    step_alone, alone = summary(stacked(False, metrics=()), SHAPES).costs
    assert alone.flops == pytest.approx(looped["evaluation"].flops, rel=0.01)
    # Loss and metrics share the model's outputs: XLA would not merge the loss's loop, which keeps what the gradient needs.
    step = unrolled["training step"].flops
    assert looped["training step"].flops == pytest.approx(step, rel=0.01)
    assert 0.9 < step_alone.flops / step < 1.01

    class Nested(fm.Model):
        weight: jax.Array

    @dispatch
    def forward(model: Nested, x):
        inner = lambda x, _: (x @ model.weight, None)
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=5)[0] @ model.weight, None)
        return jax.lax.scan(outer, x, None, length=3)[0]

    (cost,) = summary(Nested(jnp.ones((50, 50))), jax.ShapeDtypeStruct((10, 50), np.float32)).costs
    assert cost.flops == pytest.approx(3 * (5 + 1) * 2 * 10 * 50 * 50, rel=0.01)


def test_without_an_optimizer_the_step_is_plain_gradient_descent():
    table = summary(pair(), SHAPES)
    assert "plain gradient descent" in str(table) and table.optimizer_bytes == 0

    class Configured(fm.System):
        one: Net

    @dispatch
    def configure_optimizers(system: Configured):
        return optax.adam(1e-3)

    table = summary(Configured(net()), SHAPES)
    assert table.remark == "" and table.optimizer_bytes == 2 * 4 * table.parameters + 4


def test_summary_of_a_state_keeps_its_compiled_programs(state):
    """A summary changes neither a state nor its programs."""
    fm.train_step(state, (X, Y))
    summary(state, (X, Y))
    with Compilations() as compiled:
        fm.train_step(state, (X, Y))
    assert compiled.names == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda state: summary(pair(), optimizer=optax.adam, lr=1e-3),
            TypeError,
            "optimizer, lr cannot be used here: .* needs data=",
        ),
        (lambda state: summary(state, (X, Y), lr=1e-3), TypeError, "lr cannot be used here: a state has its optimizer"),
        (lambda state: summary(pair(), (SHAPES[0], jax.ShapeDtypeStruct((7,), np.int32))), ValueError, "different lengths"),
        (lambda state: summary(pair(), SHAPES, optimizer={"three": optax.sgd(0.1)}), ValueError, "no such field"),
        (lambda state: summary(fm.models.Dense(5, 2), SHAPES[0]), ValueError, "Dense"),
    ],
)
def test_bad_input_is_refused(state, call, error, message):
    with pytest.raises(error, match=message):
        call(state)

"""A method that is written again, or made more specific, takes effect at the next call; so does a class."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, Linear, data, net

import fulmen as fm
from fulmen import forward
from fulmen.dispatching.compiled_code import generation
from fulmen.dispatching.errors import OutdatedInstanceError


def models():
    """A model type with a method, and a subclass without, of this call alone."""

    class Times(fm.Model):
        factor: float = 2.0

    class Double(Times):
        pass

    forward.dispatch(_annotated(Times, lambda model, x: x * 2))
    return Times, Double


def _annotated(kind, function):
    function.__annotations__ = {"model": kind}
    return function


def changed(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fulmen: ")]


def test_a_redefined_method_takes_effect_in_compiled_functions(capsys):
    Times, _ = models()
    users = jax.jit(lambda model, x: forward(model, x) + 0)
    assert users(Times(), 1.0) == 2.0
    changed(capsys)
    before = generation()
    forward.dispatch(_annotated(Times, lambda model, x: x * 3))
    [line] = changed(capsys)
    assert line.startswith("fulmen: forward(Times, object) was redefined at ")
    assert f"{os.path.basename(__file__)}:" in line
    assert users(Times(), 1.0) == 3.0
    assert forward(Times(), 1.0) == 3.0
    assert generation() == before + 1


def test_a_more_specific_method_takes_effect(capsys):
    Times, Double = models()
    users = jax.jit(forward)
    assert users(Double(), 1.0) == 2.0
    changed(capsys)
    forward.dispatch(_annotated(Double, lambda model, x: x * 5))
    assert len(changed(capsys)) == 1
    assert users(Double(), 1.0) == 5.0
    assert users(Times(), 1.0) == 2.0


def test_a_method_for_a_mode_takes_effect(key):
    Times, _ = models()
    users = jax.jit(lambda model, x, key: forward(model, x, fm.Train(key)))
    assert users(Times(), 1.0, key) == 2.0

    def in_training(model, x, mode: fm.Train):
        return x * 7

    in_training.__annotations__["model"] = Times
    forward.dispatch(in_training)
    assert users(Times(), 1.0, key) == 7.0
    assert jax.jit(forward)(Times(), 1.0) == 2.0


def test_train_step_takes_effect():
    class Learner(fm.Model):
        layer: Linear

    class Narrow(Learner):
        pass

    fm.loss.dispatch(_annotated(Learner, lambda model, batch: model.layer.weight.sum() * 0))
    state = fm.setup(Narrow(Linear(4, 3)), data(), optimizer=optax.sgd(0.1), seed=0)
    batch = tuple(v[:8] for v in data())
    _, logs = fm.train_step(state, batch)
    assert float(logs["loss"]) == 0.0
    fm.loss.dispatch(_annotated(Narrow, lambda model, batch: model.layer.weight.sum() * 0 + 4.0))
    _, logs = fm.train_step(state, batch)
    assert float(logs["loss"]) == 4.0


def test_an_unrelated_method_compiles_nothing(capsys):
    Times, _ = models()
    users = jax.jit(lambda model, x: forward(model, x))
    users(Times(), 1.0)
    state = fm.setup(net(), data(), optimizer=optax.sgd(0.1), seed=0)
    batch = tuple(v[:8] for v in data())
    fm.train_step(state, batch)
    changed(capsys)
    models()  # registers a method of `forward` for a type of its own
    for verb in (fm.loss, fm.losses, fm.metrics, fm.augment, fm.update):

        class Unrelated(fm.System):
            pass

        verb.dispatch(_annotated(Unrelated, lambda model, *others: None))
    with Compilations() as compiled:
        users(Times(), 1.0)
        fm.train_step(state, batch)
    assert compiled.names == []
    assert changed(capsys) == []


def test_a_method_that_would_fit_but_is_not_chosen_compiles_nothing(capsys):
    Times, Double = models()
    forward.dispatch(_annotated(Double, lambda model, x: x * 5))
    users = jax.jit(lambda model, x: forward(model, x))
    assert users(Double(), 1.0) == 5.0
    changed(capsys)
    forward.dispatch(_annotated(Times, lambda model, x: x * 3))  # nobody has asked for it
    with Compilations() as compiled:
        assert users(Double(), 1.0) == 5.0
    assert compiled.names == []
    assert changed(capsys) == []


def test_an_answer_of_no_takes_effect(capsys):
    Times, _ = models()

    @fm.verb
    def extra(model):
        """Something that a model may have."""

    users = jax.jit(lambda model, x: x + (extra(model) if extra.has(model) else 0))
    assert users(Times(), 1.0) == 1.0
    changed(capsys)
    extra.dispatch(_annotated(Times, lambda model: 10))
    assert len(changed(capsys)) == 1
    assert users(Times(), 1.0) == 11.0


def test_a_batch_that_is_made_otherwise_takes_effect():
    """The verbs that take raw data remember calls whose data needed nothing; a method of `as_batch` changes that."""
    Times, _ = models()

    class Raw:
        pass

    @fm.as_batch.dispatch
    def _(model: Times, raw: Raw):
        return raw

    @fm.loss.dispatch
    def _(model: Times, batch: Raw):
        return "raw"

    @fm.loss.dispatch
    def _(model: Times, batch: fm.Unlabeled):
        return "made"

    assert [fm.loss(Times(), Raw()) for _ in range(3)] == ["raw"] * 3

    @fm.as_batch.dispatch
    def _(model: Times, raw: Raw):
        return fm.Unlabeled(np.ones(2, np.float32))

    assert [fm.loss(Times(), Raw()) for _ in range(3)] == ["made"] * 3


def test_what_invoke_found_takes_effect():
    Times, Double = models()
    forward.dispatch(_annotated(Double, lambda model, x: forward.invoke(Times, object)(model, x) + 1))
    users = jax.jit(lambda model, x: forward(model, x))
    assert users(Double(), 1.0) == 3.0
    forward.dispatch(_annotated(Times, lambda model, x: x * 4))
    assert users(Double(), 1.0) == 5.0


def test_a_wrapper_that_handed_on_takes_effect():
    Times, _ = models()

    class Around(fm.Wrapper):
        model: Times

    users = jax.jit(lambda model, x: forward(model, x))
    assert users(Around(Times()), 1.0) == 2.0
    forward.dispatch(_annotated(Around, lambda model, x: x * 9))
    assert users(Around(Times()), 1.0) == 9.0


def test_what_runs_around_takes_effect():
    Times, Double = models()
    users = jax.jit(lambda model, x: forward(model, x))
    assert users(Double(), 1.0) == 2.0
    forward.around(Times)(lambda call, model, x: call(model, x) + 100)
    assert users(Double(), 1.0) == 102.0
    forward.around(Times)(lambda call, model, x: call(model, x) + 200)
    assert users(Double(), 1.0) == 202.0


def test_taking_methods_back_takes_effect():
    _, Double = models()
    before = forward.methods
    users = jax.jit(lambda model, x: forward(model, x))
    forward.dispatch(_annotated(Double, lambda model, x: x * 5))
    assert users(Double(), 1.0) == 5.0
    forward.restore(before)
    assert users(Double(), 1.0) == 2.0


# Cells that are run again

CLASS = """
import jax, jax.numpy as jnp
import fulmen as fm
from fulmen import dispatch, forward, loss

class Net(fm.Model):
    factor: float = 2.0
"""
METHOD = """
@dispatch
def forward(net: Net, x: list[Net] | jax.Array):
    return net.factor * x
"""


def test_a_method_cell_run_again(notebook):
    book = notebook(CLASS)
    notebook(METHOD)
    users = jax.jit(lambda net, x: net(x))
    assert users(book.Net(), 1.0) == 2.0
    notebook(METHOD.replace("* x", "* x + 1"))
    assert users(book.Net(), 1.0) == 3.0
    assert len([m for m in book.forward.methods if m.module == book.__name__]) == 1


@pytest.mark.parametrize("cells", [[CLASS, METHOD], [CLASS + METHOD]], ids=["two cells", "one cell"])
def test_a_class_cell_run_again(notebook, cells):
    for cell in cells:
        book = notebook(cell)
    old = book.Net()
    users = jax.jit(lambda net, x: net(x))
    assert users(old, 1.0) == 2.0
    notebook(cells[0].replace("2.0", "5.0"))
    assert book.Net is not type(old)
    assert users(book.Net(), 1.0) == 5.0  # its method is still there
    for call in (lambda: old(1.0), lambda: users(old, 1.0), lambda: forward.has(old, 1.0)):
        with pytest.raises(
            OutdatedInstanceError, match=r"earlier definition of `Net`, which has been defined again: rebuild the inst"
        ):
            call()
    notebook(cells[-1].replace("* x", "* x * 10"))
    assert users(book.Net(), 1.0) in (20.0, 50.0)


def test_old_instances_are_refused_also_where_a_more_general_method_would_do(notebook):
    book = notebook(
        """
        import fulmen as fm
        class Sum(fm.System):
            pass
        @fm.dispatch
        def losses(system: Sum, batch): return {"one": 1.0}
        """
    )
    old = book.Sum()
    assert fm.losses(old, fm.Unlabeled(jnp.ones(2))) == {"one": 1.0}
    notebook("class Sum(fm.System):\n    pass")
    with pytest.raises(OutdatedInstanceError):
        fm.losses(old, fm.Unlabeled(jnp.ones(2)))
    assert fm.losses(book.Sum(), fm.Unlabeled(jnp.ones(2))) == {"one": 1.0}


def test_the_subclass_of_a_redefined_class(notebook):
    book = notebook(CLASS + METHOD)
    notebook("class Sub(Net):\n    pass")
    old = book.Sub()
    assert old(1.0) == 2.0
    notebook(CLASS)
    with pytest.raises(OutdatedInstanceError, match=r"`Net`.*run the definition of its subclass `Sub` again, then rebuild"):
        old(1.0)
    notebook("class Sub(Net):\n    pass")
    assert book.Sub()(1.0) == 2.0


def test_every_place_in_a_signature_follows(notebook):
    cell = "class Kind(fm.Mode):\n    pass\nclass Thing(fm.Model):\n    pass\nclass More(fm.System):\n    pass"
    book = notebook(f"import fulmen as fm\nfrom fulmen import forward, dispatch\n{cell}")
    notebook(
        """
        @dispatch
        def forward(model: Thing | More, *inputs: Thing): return "union, rest"
        @dispatch
        def forward(model: Thing | More, x: int, mode: Kind): return "context"
        @forward.around(More)
        def around(call, model, *inputs): return "around " + call(model, *inputs)
        """
    )
    for _ in range(2):
        book.forward(book.Thing(), book.Thing())
        assert book.forward(book.Thing(), book.Thing()) == "union, rest"
        assert book.forward(book.More(), book.Thing()) == "around union, rest"
        assert book.forward(book.Thing(), 1, book.Kind(None)) == "context"
        notebook(cell)


def test_classes_that_are_no_trees_follow_too(notebook):
    """As callbacks, or models of another library."""
    book = notebook(
        """
        import fulmen as fm
        class Callback:
            pass
        @fm.dispatch
        def plot(x: Callback): return "plotted"
        """
    )
    old = book.Callback()
    assert fm.plot(old) == "plotted"
    notebook("class Callback:\n    pass")
    assert fm.plot(book.Callback()) == "plotted"
    with pytest.raises(OutdatedInstanceError):
        fm.plot(old)


def test_a_class_that_is_no_tree_and_its_methods_run_again(notebook):
    cells = [
        "import fulmen as fm\nclass Callback:\n    pass",
        "@fm.dispatch\ndef plot(x: Callback): return 'plotted'",
    ]
    book = notebook(cells[0])
    unseen = book.Callback()
    notebook(cells[1])
    old = book.Callback()
    users = jax.jit(lambda x: x * len(fm.plot(old)))
    assert users(1) == 7
    for cell in cells:
        notebook(cell)
    assert fm.plot(book.Callback()) == "plotted"
    for call in (lambda: fm.plot(old), lambda: users(1), lambda: fm.plot(unseen)):
        with pytest.raises(OutdatedInstanceError):
            call()


def test_an_old_instance_that_a_verb_never_saw(notebook):
    book = notebook("import fulmen as fm\nclass Callback:\n    pass")
    old = book.Callback()
    notebook("class Callback:\n    pass\n@fm.dispatch\ndef plot(x: Callback): return 'plotted'")
    with pytest.raises(OutdatedInstanceError):
        fm.plot(old)
    assert fm.plot(book.Callback()) == "plotted"


def test_classes_in_functions_are_left_alone():
    def make(factor):
        class Local(fm.Model):
            pass

        forward.dispatch(_annotated(Local, lambda model, x: x * factor))
        return Local()

    first, second = make(2), make(3)
    assert type(first).__qualname__ == type(second).__qualname__
    assert (first(1), second(1)) == (2, 3)


@pytest.mark.parametrize("make", ["type('Layer', (fm.Model,), {})", "types.new_class('Layer', (fm.Model,))"])
def test_classes_made_by_calling_type_are_left_alone(notebook, make):
    cell = f"""
        import types
        import fulmen as fm
        class Other(fm.Model):
            pass
        Layer = {make}
        @fm.forward.dispatch
        def _(layer: Layer, x, factor=FACTOR): return x * factor
        """
    book = notebook(cell.replace("FACTOR", "2"))
    first = book.Layer()
    second = notebook(cell.replace("FACTOR", "3")).Layer()
    assert type(first) is not type(second)
    assert [(first(1), second(1)) for _ in range(2)] == [(2, 3)] * 2


# Rebuilding

TRAINED = """
import fulmen as fm, jax, jax.numpy as jnp
class Line(fm.Model):
    weight: jax.Array | None = None
    size: int = 2
class Pair(fm.Model):
    lines: list[Line]
    scale: float = 1.0
"""
METHODS = """
@fm.dispatch
def init(line: Line, key): return fm.replace(line, weight=jnp.zeros(line.size))
@fm.dispatch
def forward(line: Line, x): return x @ line.weight
@fm.dispatch
def forward(pair: Pair, x): return pair.scale * sum(line(x) for line in pair.lines)
"""


def test_a_trained_state_is_rebuilt(notebook):
    book = notebook(TRAINED)
    notebook(METHODS)
    x = np.eye(2, dtype=np.float32)
    y = x @ np.float32([1.0, 2.0])
    options = dict(epochs=3, batch_size=2, progress=False)
    system = fm.Regressor(book.Pair([book.Line(), book.Line()]))
    state, _ = fm.fit(system, (x, y), optimizer=optax.adam(0.1), seed=0, **options)
    before, straight = fm.predict(state, x), fm.fit(state, (x, y), **options)[0]
    notebook(TRAINED + "    added: int = 3")
    with pytest.raises(OutdatedInstanceError, match=r"`(Pair|Line)`.*fm.rebuild\(state\)"):
        fm.predict(state, x)
    rebuilt = fm.rebuild(state)
    assert type(rebuilt.system.model) is book.Pair
    assert rebuilt.system.model.added == 3
    assert [type(line) for line in rebuilt.system.model.lines] == [book.Line] * 2
    np.testing.assert_array_equal(fm.predict(rebuilt, x), before)
    further, _ = fm.fit(rebuilt, (x, y), **options)
    for new, old in zip(jax.tree.leaves(further.system), jax.tree.leaves(straight.system), strict=True):
        np.testing.assert_array_equal(new, old)


def test_new_fields_have_no_moments_in_the_state_of_an_optimizer(notebook):
    book = notebook(TRAINED)
    notebook(METHODS)
    x, y = np.eye(2, dtype=np.float32), np.float32([1.0, 2.0])
    state = fm.setup(fm.Regressor(book.Pair([book.Line()])), (x, y), optimizer=optax.adam(0.1))
    state, _ = fm.train_step(state, (x, y))
    notebook(TRAINED + "    shift: float = 0.5\n    drop: fm.Model = fm.models.Dropout(0.5)")
    rebuilt = fm.rebuild(state)
    assert rebuilt.system.model.shift == 0.5
    assert fm.train_step(rebuilt, (x, y))[0].system.model.shift == 0.5


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (("weight: jax", "bias: float\n    weight: jax"), TypeError, r"Line.bias \(lines.0\) is a new field without"),
        (("    size: int = 2\n", ""), TypeError, r"Line.size \(lines.0\) is not a field"),
        (("size: int", "size: float"), TypeError, r"Line.size \(lines.0\) was static and is hyperparameter"),
    ],
)
def test_what_cannot_be_rebuilt_is_named(notebook, change, error, named):
    book = notebook(TRAINED)
    notebook(METHODS)
    pair = fm.init(book.Pair([book.Line()]), jax.random.key(0))
    notebook(TRAINED.replace(*change))
    with pytest.raises(error, match=named):
        fm.rebuild(pair)


def test_an_array_of_another_shape_is_named(notebook):
    book = notebook(TRAINED)
    notebook(METHODS)
    pair = fm.init(book.Pair([book.Line()]), jax.random.key(0))
    notebook(TRAINED)
    notebook(METHODS.replace("jnp.zeros(line.size)", "jnp.zeros(line.size + 1)"))
    with pytest.raises(ValueError, match=r"Line.weight \(lines.0\) has shape \(2,\), and \(3,\) in the new definition"):
        fm.rebuild(pair)


def test_a_subclass_has_to_be_defined_again_first(notebook):
    book = notebook(CLASS)
    notebook("class Sub(Net):\n    pass")
    old = book.Sub()
    notebook(CLASS)
    with pytest.raises(OutdatedInstanceError, match="definition of its subclass `Sub` again"):
        fm.rebuild(old)
    notebook("class Sub(Net):\n    pass")
    assert type(fm.rebuild(old)) is book.Sub


def test_a_verb_cell_run_again(notebook):
    cell = 'import fulmen as fm\n@fm.verb\ndef tell(thing):\n    """What it is."""'
    book = notebook(cell)
    made = book.tell
    notebook("@fm.dispatch\ndef tell(thing: int): return 'int'")
    notebook(cell.replace("What it is", "What that is"))
    assert book.tell is made
    assert book.tell(1) == "int"
    assert "What that is" in book.tell.__doc__


def test_twins_in_a_cell_that_is_run_again(notebook):
    """The annotation `list[Net]` is another object after the class cell was run again, in a file of the same name."""
    cell = CLASS + METHOD
    for _ in range(2):
        exec(compile(cell, "/tmp/ipykernel/cell.py", "exec"), vars(notebook("")))
    twin = METHOD.replace("list[Net] |", "list[str] |")
    with pytest.raises(TypeError, match="differ only in"):
        exec(compile(METHOD + twin, "/tmp/ipykernel/other.py", "exec"), vars(notebook("")))


def test_a_fresh_setup_after_a_class_cell(notebook):
    cell = """
    import fulmen as fm
    class Line(fm.Model):
        weight: fm.Parameter
    """
    book = notebook(cell)
    notebook(
        """
        @fm.dispatch
        def loss(line: Line, batch: fm.Labeled): return (line.weight.value * batch.x[:, 0] - batch.y) ** 2
        """
    )
    x = np.ones((8, 1), np.float32)
    y = np.full(8, 2.0, np.float32)

    def fit():
        line = book.Line(fm.Parameter(jnp.float32(0.0)))
        state, _ = fm.fit(line, (x, y), optimizer=optax.sgd(0.25), steps=20, batch_size=8, progress=False)
        return float(state.system.weight.value)

    assert fit() == pytest.approx(2.0, abs=1e-3)
    notebook(cell)
    assert fit() == pytest.approx(2.0, abs=1e-3)

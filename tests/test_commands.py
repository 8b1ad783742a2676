"""The command line: training, files and error messages."""

import json
import os
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from forked import run_code

import fulmen as fm
from fulmen.commands.npz_data import load_arrays, system_for

PARTS = """
    import fulmen as fm, signal
    from fulmen import dispatch, on

    class Interrupting: pass

    @dispatch
    def on(event: fm.StepEnd, callback: Interrupting, run):
        if run.step == 3: signal.raise_signal(signal.SIGINT)

    class Turned(fm.Model):
        layer: fm.models.Dense

    @dispatch
    def forward(net: Turned, x): return net.layer(x.T)

    class Divided(fm.Model):
        layer: fm.models.Dense

    @dispatch
    def forward(net: Divided, x): return net.layer(x) / (1 / 0)
"""
EXAMPLES = """
    import fulmen as fm, numpy as np, optax, parts

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    system = fm.Classifier(fm.models.Dense(4, 2))
    thing = 3

    def pair(): return system, (x, y)
    def triple(): return system, (x[:40], y[:40]), (x[40:], y[40:])
    def full(): return dict(system=system, data=(x, y), optimizer=optax.adam, lr=1e-2, epochs=2, batch_size=20)
    def state(): return fm.setup(system, (x, y), optimizer=optax.adam, lr=1e-2), (x, y)
    def nothing(): system, (x, y)
    def number(): return 1
    def other(): return dict(model=system, data=(x, y))
    def needs(a): return system, (x, y)
    def broken(): return fm.split((x, y), 1.5)
    def swapped(): return (x, y), system
    def alone(): return system
    def fitted(): return fm.fit(system, (x, y), optimizer=optax.sgd, lr=1.0, steps=1, progress=False)
    def kind(): return fm.Classifier, (x, y)
    def length(): return dict(system=system, data=(x, y[1:]), optimizer=optax.adam, lr=1e-2, epochs=1)

    def interrupted(): return {**full(), "callbacks": [parts.Interrupting()], "epochs": None, "steps": 1000}
    def impatient(): raise KeyboardInterrupt
    def turned(): return fm.Classifier(parts.Turned(fm.models.Dense(4, 2))), (x, y)
    def divided(): return fm.Classifier(parts.Divided(fm.models.Dense(4, 2))), (x, y)
"""
X = np.random.default_rng(1).integers(0, 17, (50, 6, 6))
Y = np.arange(50) % 3


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The folder with a module of types, imported once, since redefining types clears JAX's caches."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "parts.py").write_text(textwrap.dedent(PARTS))
    yield folder
    sys.modules.pop("parts", None)


@pytest.fixture
def run(tmp_path, parts, monkeypatch, command):
    """A function that runs a command in a folder with `examples.py`, and returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(parts), *sys.path])
    (tmp_path / "examples.py").write_text(textwrap.dedent(EXAMPLES))

    yield command
    for name in ("examples", "wrong"):
        sys.modules.pop(name, None)


def said(result, *words):
    """A mistake prints one line with these words and exits with status 2."""
    code, out, err = result
    assert code == 2, (code, out, err)
    assert len(err.splitlines()) == 1 and err.startswith("python -m fulmen: "), err
    for word in words:
        assert word in err, f"{word!r} is missing in: {err}"


def figures_in(path):
    return json.loads(Path(path).read_text())


# A function of one's own


@pytest.mark.parametrize("target", ["examples.py:full", "examples:full"])
def test_a_function(run, target):
    code, out, err = run(f"train {target} --save made/state.safetensors --history made/history.json")
    assert (code, err) == (0, "")
    assert "epoch 2" in out and "6 steps" in out and "10 parameters" in out
    figures = figures_in("made/history.json")
    assert len(figures["loss"]) == 2 and figures["lr"] == pytest.approx([1e-2, 1e-2])
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    like = fm.setup(fm.Classifier(fm.models.Dense(4, 2)), (x, y), optimizer=optax.adam, lr=1e-2, epochs=2, batch_size=20)
    state = fm.load("made/state.safetensors", like=like)
    expected, history = fm.fit(like, (x, y), epochs=2, batch_size=20, progress=False)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True))
    assert figures["loss"] == pytest.approx(history["loss"].tolist())


def test_flags_override_the_function(run):
    code, out, _ = run("train examples:full --steps 5 --lr 0.5 --no-progress --history h.json --batch-size 10")
    assert code == 0 and "5 steps" in out and "epoch" not in out
    assert figures_in("h.json")["lr"] == [0.5]
    code, out, _ = run("train examples:full --optimizer sgd --epochs 1 --batch-size 40 --drop-last")
    assert code == 0 and " 1 step," in out and "steps/s" not in out


def test_validation_and_a_state(run):
    code, out, _ = run("train examples:triple --epochs 1 --optimizer adam --lr 1e-2 --seed 3")
    assert code == 0 and "validation/accuracy" in out
    code, out, _ = run("train examples:state --steps 2")
    assert code == 0 and "2 steps" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train exampels:full", ["exampels", "did you mean 'examples'?"]),
        ("train exampels.py:full", ["exampels.py", "did you mean 'examples.py'?"]),
        ("train examples:ful", ["'ful'", "did you mean 'full'?"]),
        ("train examples", ["which function", "examples:NAME", "full"]),
        ("train examples:thing", ["thing", "int", "function"]),
        ("train examples:needs", ["without arguments", "'a'", "default"]),
        ("train examples:nothing --epochs 1", ["(system, data)", "None", "return"]),
        ("train examples:number --epochs 1", ["(system, data)", "got 1"]),
        ("train examples:other --epochs 1", ["without 'system'", "model, data"]),
        ("train examples:swapped --epochs 1", ["data must be", "Classifier", "component is the first argument"]),
        ("train examples:alone --epochs 1", ["(system, data)", "Classifier without data"]),
        ("train examples:fitted --epochs 1", ["(system, data)", "the state and history"]),
        ("train examples:kind --epochs 1", ["Classifier(…)"]),
        ("train folder/examples:full", ["folder/examples is not a module", "folder/examples.py:NAME"]),
        ("train examples:pair", ["--epochs", "--steps"]),
        ("train examples:pair --epochs 1", ["no optimizer", "--optimizer adam --lr 1e-3"]),
        ("train examples:pair --epochs 1 --lr 1", ["--optimizer adam"]),
        ("train examples:pair --epochs 1 --optimizer adam", ["--lr 1e-3"]),
        ("train examples:pair --epochs 1 --optimizer adamm --lr 1", ["'adamm'", "'adam'"]),
        ("train examples:pair --epochs 1 --optimizer SGD --lr 1", ["'SGD'", "'sgd'"]),
        ("train examples:state --epochs 1 --optimizer sgd --lr 1", ["keeps its optimizer"]),
        ("train examples:full --epochs 0", ["epochs must be a positive integer", "0"]),
        ("train examples:full --batch-size 61", ["batch_size", "at most 60", "61"]),
        ("train examples:length", ["x 60", "y 59"]),
        ("train examples:turned --epochs 1 --optimizer sgd --lr 1", ["Dense", "(…, 4)", "parts.py:15"]),
        ("train examples:full --model mlp", ["--model", "data.npz"]),
        ("train examples:full --save .", ["folder"]),
        ("digits --eps 3", ["eps", "3.0"]),
    ],
)
def test_mistakes(run, line, words):
    said(run(line), *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train examples:full --epoch 1", ["--epoch", "--epochs"]),
        ("train examples:full --epochs many", ["--epochs", "many"]),
        ("train examples:full --lr", ["--lr"]),
        ("train", ["MODULE:FUNCTION"]),
        ("trian examples:full", ["trian", "train, evaluate"]),
        ("", ["train, evaluate"]),
    ],
)
def test_the_parser_reports_wrong_flags(run, line, words):
    code, _, err = run(line)
    assert code == 2
    for word in words:
        assert word in err, f"{word!r} is missing in: {err}"


def test_the_traceback_of_a_mistake(run):
    with pytest.raises(ValueError, match="needs"):
        run("train examples:needs --traceback")


@pytest.mark.parametrize(
    ("target", "first", "last"),
    [("broken", "in broken", "split: fraction"), ("divided", "in forward", "ZeroDivisionError")],
)
def test_an_error_in_user_code_has_its_traceback_from_there(run, target, first, last):
    code, _, err = run(f"train examples:{target} --epochs 1 --optimizer sgd --lr 1")
    lines = err.splitlines()
    assert code == 1 and lines[0].startswith("Traceback")
    assert ".py" in lines[1] and first in lines[1]
    assert any(last in line for line in lines)


@pytest.mark.parametrize(
    ("source", "words"),
    [("def run(:", ["SyntaxError", "def run(:"]), ("import nowhere_at_all", ["No module named 'nowhere_at_all'", "line 1"])],
)
@pytest.mark.parametrize("target", ["wrong.py:run", "wrong:run"])
def test_a_module_that_cannot_be_imported_keeps_its_traceback(run, source, words, target):
    Path("wrong.py").write_text(source)
    code, _, err = run(f"train {target}")
    assert code == 1 and "fulmen" not in err
    assert all(word in err for word in words), err


def test_a_missing_package_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    said(run("digits"), 'pip install "fulmen[examples]"')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said(run("train examples:full --save a"), 'pip install "fulmen[save]"')
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "fulmen.commands.train_command")
    said(run("train examples:full"), "tyro", 'pip install "fulmen[cli]"')


def test_a_help_text_says_what_a_function_returns(run):
    code, out, _ = run("train --help")
    assert code == 0
    for word in ("(system, data, validation)", "dict(system=…", "--batch-size", "data.npz --model mlp", "resnet18"):
        assert word in " ".join(out.split()), word


def test_ctrl_c_reports_the_results_so_far(run):
    code, out, _ = run("train examples:interrupted --save state.safetensors --history h.json")
    assert code == 130
    assert "Interrupted: the state after 3 of 1000 steps is returned." in out and "wrote state.safetensors" in out
    assert os.path.getsize("state.safetensors") and len(figures_in("h.json")["loss"]) == 1


def test_ctrl_c_before_the_training(run):
    assert run("train examples:impatient") == (130, "", "stopped\n")


# Arrays of one's own


def saved(**arrays):
    np.savez("data.npz", **arrays)


def test_arrays_with_classes(run):
    saved(x=(X * 15).astype(np.uint8), y=Y + 4)
    code, out, err = run("train data.npz --model linear --epochs 1 --history h.json")
    assert (code, err) == (0, "")
    assert "x: uint8, divided by 255" in out and "3 classes: 4, 5, 6" in out
    assert "40 examples" in out and "10 more for validation" in out
    figures = figures_in("h.json")
    assert f"validation/accuracy {figures['validation/accuracy'][-1]:.4g}" in out
    most = float(out.split("right for ")[1].split()[0])
    _, (_, held_out) = fm.split((X, Y), 0.8, seed=0)
    assert most in {round(float((held_out == c).mean()), 3) for c in range(3)}


def test_arrays_with_numbers(run):
    saved(x=X.astype(float), y=X.sum((1, 2)) / 100.0)
    code, out, _ = run("train data.npz --model mlp --epochs 30 --seed 1 --history h.json")
    assert code == 0 and "regression on 1 number" in out and "validation/r2" in out
    history = figures_in("h.json")["loss"]
    assert history[-1] < history[0] / 2
    saved(x=X.astype(float), y=np.ones((50, 2, 2)))
    code, out, _ = run("train data.npz --model linear --steps 1")
    assert code == 0 and "4 numbers" in out and "148 parameters" in out


@pytest.mark.parametrize(
    ("x", "expected", "words"),
    [
        (X.astype(np.uint8), X / 255, "uint8, divided by 255"),
        (X, X / 16, "divided by 16, its largest value"),
        (X == 3, X == 3, "divided by 1"),
        (X / 4.0, X / 4.0, ""),
        (X * 4.0, X * 4.0, "unchanged; its largest value is 64"),
        (X.astype(np.float16), X, "unchanged"),
    ],
)
def test_how_inputs_are_scaled(tmp_path, x, expected, words):
    np.savez(tmp_path / "data.npz", x=x, y=Y)
    notes = []
    loaded, y = load_arrays(tmp_path / "data.npz", notes.append)
    assert loaded.dtype == np.float32 and y.dtype == np.int32
    np.testing.assert_allclose(loaded, expected, rtol=1e-6)
    assert words in notes[0] if words else notes[0].startswith("y:")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y.astype(float), "few distinct whole numbers; if they are classes, save them as integers, y.astype(int)"),
        (np.eye(3)[Y], "each row has a single 1; if it marks the class, save y.argmax(1)"),
        (Y / 3, None),
    ],
)
def test_numbers_that_look_like_classes(tmp_path, y, words):
    np.savez(tmp_path / "data.npz", x=X / 4.0, y=y)
    notes = []
    load_arrays(tmp_path / "data.npz", notes.append)
    assert notes[1:] == ([] if words is None else [f"y: {words}"])


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("resnet18", (32, 32, 3), 11_173_962),
        ("resnet18", (224, 224, 3), 11_181_642),
        ("resnet50", (8, 8), 23_520_842 - 2 * 9 * 64),
    ],
)
def test_residual_networks_have_the_sizes_of_the_data(name, shape, parameters):
    x, y = np.zeros((2, *shape), np.float32), np.asarray([0, 9], np.int32)
    system = system_for(name, x, y)

    def outputs(key):
        drawn = fm.init(system, key)
        return drawn, drawn.model(x)

    drawn, logits = jax.eval_shape(outputs, jax.random.key(0))
    assert logits.shape == (2, 10)
    assert sum(np.prod(leaf.value.shape) for leaf in fm.leaves(drawn) if leaf.role == "parameter") == parameters


def test_a_convnet_halves_large_images_until_they_are_small():
    system = system_for("convnet", np.zeros((2, 100, 60, 3), np.float32), np.asarray([0, 1], np.int32))
    drawn = jax.eval_shape(lambda key: fm.init(system, key), jax.random.key(0))
    assert max(np.prod(leaf.value.shape) for leaf in fm.leaves(drawn) if leaf.role == "parameter") < 5e6


NAN = np.where(np.arange(36).reshape(6, 6) == 7, np.nan, X)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (dict(x=X, labels=Y), ["has no y; it has: x, labels", "np.savez('data.npz', x=…, y=…)"]),
        (dict(images=X, y=Y), ["has no x; it has: images, y", "np.savez('data.npz', x=…, y=…)"]),
        (dict(x_train=X, y_train=Y), ["no x and no y", "x_train, y_train"]),
        (dict(), ["no x and no y", "nothing"]),
        (dict(x=X, y=Y[:-1]), ["x 50", "y 49"]),
        (dict(x=X, y=Y.astype(str)), ["y", "numbers", "<U"]),
        (dict(x=X, y=np.asarray([*"ab", None] * 17, object)[:50]), ["Python objects"]),
        (dict(x=NAN, y=Y), ["x", "finite", "[0, 1, 1]"]),
        (dict(x=X, y=Y + NAN[0, 1, 1]), ["y", "finite", "nan"]),
        (dict(x=X * 1j, y=Y), ["x", "complex"]),
        (dict(x=X * 1e300, y=Y), ["x goes up to 1.6e+301, which float32 cannot represent"]),
        (dict(x=X[:0], y=Y[:0]), ["empty"]),
        (dict(x=np.float32(1), y=Y), ["x", "single number"]),
        (dict(x=X, y=np.eye(3, dtype=int)[Y]), ["(50, 3)", "argmax(1)"]),
        (dict(x=X, y=np.arange(50)), ["50 different integers", "astype(np.float32)"]),
        (dict(x=X, y=Y * 0 + 7), ["7 everywhere", "two classes"]),
        (dict(x=X.reshape(50, 36), y=Y), ["convnet takes images", "(n, 36)", "--model mlp"]),
        (dict(x=np.zeros((50, 3, 8, 8)), y=Y), ["channels are last", "np.moveaxis(x, 1, -1)"]),
    ],
)
def test_mistakes_in_arrays(run, arrays, words):
    saved(**arrays)
    said(run("train data.npz --model convnet --epochs 1"), *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train daat.npz --model mlp", ["daat.npz", "did you mean 'data.npz'?"]),
        ("train data.npz", ["which model", "--model mlp"]),
        ("train data.npz --model resnet81", ["'resnet81'", "did you mean 'resnet18'?"]),
        ("train data.npy --model mlp", ["data.npy", ".npz file", "np.savez("]),
        ("train data.npy", ["data.npy", ".npz file", "np.savez("]),
        ("train text.npz --model mlp", ["text.npz", "must be a .npz file"]),
        ("train cut.npz --model mlp", ["cut.npz", "damaged"]),
        ("train spoilt.npz --model mlp", ["spoilt.npz", "damaged"]),
    ],
)
def test_mistakes_of_files_and_models(run, line, words):
    saved(x=X, y=Y)
    np.save("data.npy", X)
    whole = Path("data.npz").read_bytes()
    for name, content in (
        ("text", b"hello"),
        ("cut", whole[:900]),
        ("spoilt", whole[:300] + bytes(b ^ 255 for b in whole[300:400]) + whole[400:]),
    ):
        Path(f"{name}.npz").write_bytes(content)
    said(run(line), *words)


def test_pickles_in_a_file_are_not_run(run):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("exploded",)

    saved(x=np.asarray([Bomb()], object), y=Y[:1])
    said(run("train data.npz --model mlp"), "not unpickled")
    assert not os.path.exists("exploded")


def test_the_module_runs(tmp_path):
    code = "import runpy; runpy.run_module('fulmen', run_name='__main__', alter_sys=True)"  # as `python -m fulmen`
    assert "MODULE:FUNCTION" in run_code(code, tmp_path, "train", exitcode=2)

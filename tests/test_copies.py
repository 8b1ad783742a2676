"""Types of the library behave the same when their source is copied into a user's file."""

import ast
import functools
import importlib
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tiny import Compilations, data

import fulmen as fm

X, Y = data(10)
BOX = fm.LinfBall(0.1) & fm.Box(-9, 9)
OPTIMIZER = optax.sgd(1e-2, momentum=0.9)


def is_method(node):
    """Whether a node is a function that is registered where it is defined."""
    return isinstance(node, ast.FunctionDef) and "dispatch" in [getattr(d, "id", "") for d in node.decorator_list]


def copied(name, leave_out=()):
    """A module outside the package with the source of one of the library's, its classes renamed to `My…`.

    Args:
        name: the dotted name of the module.
        leave_out: names that the copy imports from the original instead, with the methods on them.
    """
    original = importlib.import_module(name)
    source = Path(original.__file__).read_text()
    body = [node for node in ast.parse(source).body if getattr(node, "name", "") not in leave_out]
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    # Methods on other types are the library's already.
    kept = [node for node in body if not is_method(node) or ast.unparse(node.args.args[0].annotation) in classes]
    imported = f"from {name} import {', '.join(leave_out)}\n" if leave_out else ""
    code = "\n".join(ast.unparse(node) for node in kept if getattr(node, "module", "") != "__future__")
    code = re.sub(rf"\b({'|'.join(classes)})\b", r"My\1", imported + code)
    module = types.ModuleType(f"copy_of_{name.rpartition('.')[2]}")
    sys.modules[module.__name__] = module
    exec(compile("from __future__ import annotations\n" + code, f"{module.__name__}.py", "exec"), vars(module))
    assert all(getattr(module, f"My{kind}").__module__ == module.__name__ for kind in classes)
    return original, module


ATTACK = ("Start", "Clean", "Uniform", "start_point", "require_key", "Attack", "CLEAN", "TRUE_LABEL")
PAIRS = {
    name.rpartition(".")[2]: copied(name, *rest)
    for name, *rest in (
        ("fulmen.systems.weighted",),
        ("fulmen.systems.gan",),
        ("fulmen.systems.teachers",),
        ("fulmen.robust.defences.weights",),
        ("fulmen.robust.attacks.attack", ATTACK),
    )
}


def mlp(*sizes):
    return fm.models.MLP(*sizes)


def classifier():
    return fm.Classifier(mlp(4, 3))


def two_entries():
    return fm.Classifier(mlp(4, 3), fm.CrossEntropy() + 1e-3 * fm.L2())


def teacher():
    return fm.Frozen(fm.init(classifier(), jax.random.key(1)))


PAIR = (X, Y)
FEW = (X[:8], Y[:8])  # whole batches
# How each is made of its module and the prefix of its names, and what it is trained and evaluated on.
SYSTEMS = {
    "Weighted": ("weighted", lambda made: made("Weighted")(two_entries(), {"l2": 0.5}), FEW),
    "Weighted within": ("weighted", lambda made: fm.EMA(made("Weighted")(two_entries(), {"l2": 0.5})), PAIR),
    "GAN": (
        "gan",
        lambda made: made("GAN")(mlp(2, 4), mlp(4, 1), objective=made("Wasserstein")(), latent=2, critic_steps=2),
        FEW[0],
    ),
    "Distillation": ("teachers", lambda made: made("Distillation")(teacher(), two_entries()), PAIR),
    "SAM": ("weights", lambda made: made("SAM")(two_entries()), PAIR),
    "PGD": ("attack", lambda made: fm.Adversarial(classifier(), made("PGD")(BOX, step_size=0.05, steps=3)), PAIR),
}


def originals(module):
    original, _ = PAIRS[module]
    return lambda name: getattr(original, name)


def copies(module):
    _, copy = PAIRS[module]
    return lambda name: getattr(copy, f"My{name}")


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


PROGRAMS = ("jit(program)", "jit(_measure)", "jit(_outputs)")


def everything(system, data):
    """What a user sees of a system: its training, its figures and its outputs."""
    with Compilations() as programs:
        first = jax.tree.map(lambda v: v[:8], data)
        state, history = fm.fit(system, first, optimizer=OPTIMIZER, steps=3, batch_size=4, progress=False)
        seen = {"steps": bits(state.system), "optimizer": bits(state.optimizer_state)}
        seen["history"] = {name: values.tolist() for name, values in history.items() if name != "seconds"}
        seen["figures"] = fm.evaluate(state, data)
        inputs = np.ones((10, 2), np.float32) if isinstance(data, np.ndarray) else X
        seen["outputs"] = bits(fm.predict(state, inputs, batch_size=4))
    # The values that a step logs are those of the history.
    seen["logs"] = jax.eval_shape(fm.train_step, state, jax.tree.map(lambda v: v[:4], data))[1]
    seen["entries"] = list(jax.eval_shape(lambda: fm.losses(state, data)))
    return {**seen, "programs": [n for n in programs.names if n in PROGRAMS]}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_copied_system_trains_and_logs_the_same(name):
    module, make, data = SYSTEMS[name]
    theirs, ours = (everything(make(which(module)), data) for which in (copies, originals))
    assert theirs.keys() == ours.keys()
    for what in ours:
        assert theirs[what] == ours[what], what


class Around(fm.System):
    """A system with one part."""

    inside: fm.Wrapper


def test_a_copied_step_must_be_outermost_too():
    for which in (originals, copies):
        with pytest.raises(ValueError, match=r"SAM defines its own training step.* outermost"):
            fm.setup(Around(which("weights")("SAM")(classifier())), PAIR, optimizer=optax.adam, lr=0.1)


@pytest.mark.parametrize("name", ["PGD", "FGSM"])
def test_a_copied_attack_finds_the_same_points(name):
    options = dict(step_size=0.05, steps=3) if name == "PGD" else {}
    state = fm.setup(classifier(), PAIR, optimizer=OPTIMIZER)
    batch = fm.Labeled(X, Y, weight=np.ones(10, np.float32), index=np.arange(10, dtype=np.int32))  # as an evaluation has it
    found = []
    for which in (originals, copies):
        attack = which("attack")(name)(BOX, **options)
        points = fm.perturb(attack, state, batch, jax.random.key(2)).x
        figures = fm.evaluate(state, PAIR, attack=attack)
        found.append((bits(points), figures, attack.stepped.steps, repr(attack).removeprefix("My")))
    assert found[0] == found[1] and found[0][2] == 1


@pytest.mark.parametrize("marked", [False, True])
def test_a_mark_on_a_method_counts_for_users_types(marked):
    class Total(fm.System):
        net: fm.Classifier

    @fm.dispatch
    def losses(total: Total, batch):
        return {f"{name}s": value for name, value in fm.losses(total.net, batch).items()}

    def loss(total: Total, batch):
        return fm.reduce_losses(total, fm.losses(total, batch), batch)

    fm.loss.dispatch(fm.marks.sums_losses(loss) if marked else loss)
    logged = fm.evaluate(fm.init(Total(two_entries()), jax.random.key(0)), PAIR)
    assert {name for name in logged if "loss/" in name} == ({"loss/cross_entropys", "loss/l2s"} if marked else set())


# No code decides by the name of a module.

SOURCE = Path(fm.__file__).parent


@functools.cache
def trees():
    """The library's files, by their paths within it."""
    return {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}


ALLOWED = {
    "dispatching/lazy_libraries.py": "loads what is known of other libraries when one is first seen",
    "dispatching/errors.py": "shows names",
    "dispatching/resolution.py": "warns of a method that replaces one of another package",
    "dispatching/verb.py": "warns of a method that replaces one of another module",
    "core/fields.py": "finds the names that an annotation sees",
    "core/pickling.py": "classes of a script are found by name in no other process",
}
OF_TEXT = {"startswith", "endswith", "partition", "rpartition", "split", "removeprefix", "removesuffix"}


def decides_by_module(tree):
    """The lines that compare the name of a module, or take it apart."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            inside = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OF_TEXT:
            inside = [node.func.value]
        else:
            continue
        if any(
            isinstance(n, ast.Attribute) and n.attr in ("module", "__module__") for part in inside for n in ast.walk(part)
        ):
            yield node.lineno


def test_nothing_is_decided_by_the_name_of_a_module():
    found = {path: lines for path, tree in trees().items() if (lines := [*decides_by_module(tree)])}
    assert found.keys() <= ALLOWED.keys(), found


@pytest.mark.parametrize(
    "code",
    ["verb.method(x).module != __name__", 'v.__module__.startswith("fulmen.")', 'm.module.partition(".")[0] == "fulmen"'],
)
def test_the_check_finds_such_code(code):
    assert list(decides_by_module(ast.parse(f"if {code}: pass")))


# No code decides by the text of an error.


def decides_by_error_text(tree):
    """The lines that compare the text of a caught error, or search in it."""
    for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name):

        def is_text(node, name=handler.name):
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            return (
                name in names
                and not isinstance(node, ast.Name)
                and any(
                    (isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in ("str", "repr"))
                    or (isinstance(n, ast.Attribute) and n.attr == "args")
                    for n in ast.walk(node)
                )
            )

        for node in ast.walk(handler):
            if isinstance(node, ast.Compare):
                inside = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                searches = node.func.attr in ("startswith", "endswith", "find", "index", "match", "search", "fullmatch")
                inside = [node.func.value, *node.args] if searches else []
            else:
                continue
            if any(map(is_text, inside)):
                yield node.lineno


def test_nothing_is_decided_by_the_text_of_an_error():
    assert not {path: lines for path, tree in trees().items() if (lines := [*decides_by_error_text(tree)])}


@pytest.mark.parametrize(
    "code",
    [
        "'fm.init' in str(error)",
        "str(error).startswith('no optimizer')",
        "re.match('a', str(error))",
        "error.args[0] == 'a'",
    ],
)
def test_the_check_of_errors_finds_such_code(code):
    assert list(decides_by_error_text(ast.parse(f"try: pass\nexcept ValueError as error:\n    if {code}: pass")))

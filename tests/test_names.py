"""The public names, the contracts of the public verbs, and what is said about names that do not exist."""

import importlib
import inspect
import itertools
import json
import re
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
from tiny import Linear

import fulmen as fm
from fulmen.core import verbs as contracts
from fulmen.dispatching.registry import Verb

DECLARED = {n: v for n, v in vars(contracts).items() if isinstance(v, Verb) and v.__module__ == contracts.__name__}
SPACES = {"fm": fm} | {name: value for name in fm.__all__ if inspect.ismodule(value := getattr(fm, name))}
PUBLIC = [(space, name, getattr(module, name)) for space, module in SPACES.items() for name in module.__all__]


# Verbs


def test_public_verbs_are_declared_in_one_file():
    found = {name: value for _, name, value in PUBLIC if isinstance(value, Verb)}
    found |= {value.__name__: value for value in fm.verbs() if value.__module__.startswith("fulmen.")}
    assert {name for name, value in found.items() if value is not DECLARED.get(name)} == set()


def test_every_contract_is_public():
    spaces = [*SPACES.values(), fm.robust.report, fm.robust.certified]
    assert {name for name in DECLARED if not any(name in space.__all__ for space in spaces)} == set()


@pytest.mark.parametrize("name", DECLARED)
def test_a_contract_says_how_to_extend(name):
    assert isinstance(DECLARED[name], Verb)
    assert "**Extending.**" in DECLARED[name].__doc__


@pytest.mark.parametrize("name", DECLARED)
def test_the_default_method_of_a_contract_is_written_for_object(name):
    """`fm.check` warns of a method whose first argument has no annotation: it may have been forgotten."""
    assert not [str(method) for method in DECLARED[name].methods if method.written[:1] == (inspect.Parameter.empty,)]


# Names


def test_the_top_level_is_small_and_dir_shows_it():
    assert len([name for name in fm.__all__ if name not in SPACES]) <= 175  # names of the first week, and those of a run
    assert set(dir(fm)) == {*fm.__all__, "testing"}


def test_public_names_mean_the_same_in_every_namespace():
    meanings = {}
    for space, name, value in PUBLIC:
        if not isinstance(value, Verb) and (space, name) != ("environments", "begin"):  # `attacks.begin` is a verb
            meanings.setdefault(name, []).append(value)
    assert {name for name, values in meanings.items() if any(value is not values[0] for value in values)} == set()


@pytest.mark.parametrize("space", ["attacks", "defences"])
def test_namespaces_can_be_imported_by_their_short_names(space):
    assert importlib.import_module(f"fulmen.{space}") is getattr(fm, space)
    assert getattr(fm, space).__name__ == f"fulmen.robust.{space}"


def test_of_two_names_that_differ_only_by_case_one_makes_the_other_or_its_step():
    for module in SPACES.values():
        for upper, lower in itertools.pairwise(sorted(module.__all__, key=lambda name: (name.lower(), name))):
            if upper.lower() == lower.lower() and upper != "Frozen":  # which errors tell apart
                assert f"`{upper}`" in getattr(module, lower).__doc__.splitlines()[0], f"{upper}, {lower}"


def resolves(path):
    value = fm
    for name in path.split("."):
        if inspect.ismodule(value):  # attributes of instances are not known here
            if name not in [*getattr(value, "__all__", [name]), "testing", "__version__"] or not hasattr(value, name):
                return False
            value = getattr(value, name)
    return True


@pytest.mark.parametrize("files", ["src/**/*.py", "notebooks/*.ipynb", "docs/*.md", "docs/migration/*.md", "README.md"])
def test_names_in_documentation_and_messages_exist(files):
    paths = [*Path(__file__).parents[1].glob(files)]
    found = {(path.name, name) for path in paths for name in re.findall(r"\bfm\.([A-Za-z_][\w.]*)", source(path))}
    assert paths and not {(file, name) for file, name in found if not resolves(name.rstrip("."))}


def source(path):
    text = path.read_text()
    return (
        text if path.suffix != ".ipynb" else "".join(line for cell in json.loads(text)["cells"] for line in cell["source"])
    )


# Names that do not exist


@pytest.mark.parametrize(
    ("wrong", "right"),
    {
        "BCEWithLogitsLoss": "fm.BinaryCrossEntropy",
        "Conv": "fm.models.Conv",
        "CrossEntropyLoss": "fm.CrossEntropy",
        "DataLoader": "fm.batches",
        "Dense": "fm.models.Dense",
        "Dropout": "fm.models.Dropout",
        "EarlyStop": "fm.EarlyStopping",
        "TensorBoardLogger": "fm.TensorBoard",
        "SimCLR": "fm.systems.SelfSupervised",
        "DQN": "examples/dqn.py",
        "Predictions": "fm.callbacks.Predictions",
        "F1Score": "fm.F1",
        "Linear": "fm.models.Dense",
        "MSELoss": "fm.MSE",
        "ModelCheckpoint": "fm.Checkpoint",
        "Module": "fm.Model",
        "Trainer": "fm.fit",
        "nn": "fm.models",
        "optim": "optax",
        "AUROC": "fm.metric_types.AUROC",
        "BCELoss": "fm.BinaryCrossEntropy",
        "relu": "jax.nn.relu",
        "AdamW": "optax.adamw",
        "adam": "optax.adam",
        "Uniform": "fm.attacks.Uniform",
        "Acuracy": "fm.Accuracy",
        "fitt": "fm.fit",
        "tesing": "fm.testing",
        "BatchNorm2d": "fm.models.BatchNorm",
        "Step": "fm.StepEnd",
        "evidence": "fm.robust.report",
        "SIGNS": "fm.robust.report.SIGNS",
        "xyzzy": "dir(fm)",
    }.items(),
)
def test_the_error_for_an_unknown_name_has_the_right_one(wrong, right):
    with pytest.raises(AttributeError) as caught:
        getattr(fm, wrong)
    assert repr(wrong) in str(caught.value) and right in str(caught.value)


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (lambda: fm.Classifier(Linear(4, 2), loss=fm.CrossEntropy()), "'loss'", "objective="),
        (lambda: fm.Classifier(Linear(4, 2), criterion=fm.CrossEntropy()), "'criterion'", "objective="),
        (lambda: fm.CrossEntropy(smothing=0.1), "'smothing'", "smoothing="),
        (lambda: fm.models.Dense(4, 2, activation="relu"), "'activation'", "in_features, out_features, use_bias"),
    ],
)
def test_the_error_for_an_unknown_keyword_has_the_right_one(make, wrong, right):
    with pytest.raises(TypeError) as caught:
        make()
    assert wrong in str(caught.value) and right in str(caught.value)


def test_other_errors_of_a_constructor_stay():
    class Checked(fm.Model):
        size: int

        def __post_init__(self):
            raise TypeError("from __post_init__")

    with pytest.raises(TypeError, match="from __post_init__"):
        Checked(size=1)
    with pytest.raises(TypeError, match=r"Checked is missing size: write Checked\(size=…\)"):
        Checked()


def test_a_class_in_place_of_a_metric_is_refused():
    system = fm.Classifier(Linear(4, 2), metrics=fm.Accuracy)
    with pytest.raises(TypeError, match=r"metrics must be an instance.*Accuracy\("):
        fm.setup(system, (jnp.ones((4, 4)), jnp.zeros(4, int)), optimizer=optax.sgd, lr=0.1)

"""The options of the verbs: shown by the contract, equal to those of the methods, and the errors for unknown ones."""

import inspect
import json
import pydoc
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
from tiny import Linear

import fulmen as fm
from fulmen.core import verbs as contracts
from fulmen.dispatching.registry import Verb
from fulmen.train.foreign_options import FOREIGN_OPTIONS

DECLARED = {name: v for name, v in vars(contracts).items() if isinstance(v, Verb) and v.__module__ == contracts.__name__}
FOREIGN = json.loads((Path(__file__).parent / "foreign_names.json").read_text())
DATA = jnp.ones((4, 4)), jnp.zeros(4, int)


def keywords(function):
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


# The functions that a method, or a function around the methods, passes its options on to.
PASSED_ON = {"fit": [fm.setup], "perturb": [function for function, _ in fm.attacks.attempt.table.around.values()]}
WITH_OPTIONS = [name for name, v in DECLARED.items() if set(keywords(v)) - {"mode", "plan"}]


# One source of truth


def test_the_verbs_of_a_run_show_their_options():
    assert {"setup", "fit", "steps", "evaluate", "predict", "batches", "summary", "robustness", "certify"} <= {*WITH_OPTIONS}


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_methods_have_the_options_and_defaults_of_the_contract(name):
    verb = DECLARED[name]
    shown = keywords(verb)
    ours = [keywords(m.function) for m in verb.methods if m.module.startswith("fulmen.")]
    assert [{option: shown.get(option) for option in options} for options in ours] == ours
    around = [keywords(function) for function, _ in verb.table.around.values()]
    passed_on = [keywords(function) for function in PASSED_ON.get(name, ())]
    for options in [*around, *passed_on]:
        assert {option: shown.get(option, default) for option, default in options.items()} == options
    assert {option for options in [*ours, *around, *passed_on] for option in options} >= set(shown)
    assert set(shown) <= set(verb.contract.__annotations__)


def test_every_option_is_in_the_docstring():
    for name in WITH_OPTIONS:
        arguments = DECLARED[name].__doc__.partition("Args:")[2].partition("Returns:")[0]
        assert not [option for option in keywords(DECLARED[name]) if option not in arguments], name


# Where they are shown


def test_help_shows_the_signature_and_the_contract():
    text = pydoc.plain(pydoc.render_doc(fm.fit))
    assert "fit(state, data, *, epochs: int | None = None" in text.replace("\n    ", " ")
    assert "Train a state or a component." in text


def test_a_verb_in_a_class_is_the_verb():
    class Holder:
        verb = fm.forward

    assert Holder.verb is Holder().verb is fm.forward


def test_jupyter_completes_options():
    module = pytest.importorskip("IPython.core.completer")
    text = "fm.fit(state, data, val"
    for jedi in (True, False):
        completer = module.IPCompleter(namespace={"fm": fm}, use_jedi=jedi)
        with module.provisionalcompleter():
            assert {"validation=", "validate_every="} <= {found.text for found in completer.completions(text, len(text))}


def test_an_error_shows_the_arguments_without_the_options():
    with pytest.raises(TypeError, match=r"Call it as evaluate\(state, data, …\)"):
        fm.evaluate(Linear(4, 2))


# Names of packages


@pytest.mark.parametrize("space", ["testing", *(n for n in fm.__all__ if inspect.ismodule(getattr(fm, n)))])
def test_dir_of_a_namespace_lists_its_public_names_only(space):
    module = getattr(fm, space)
    assert dir(module) == sorted(module.__all__)


# Unknown options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(max_epochs=7), ["max_epochs is no option of `", "write epochs=7"]),
        (dict(accumulate_grad_batches=4), ["microbatches=4"]),
        (dict(precision="bf16-mixed", verbose=0), ["precision, verbose are no options", "MixedPrecision", "progress=False"]),
        (dict(validation_split=0.2), ["fm.split(data, 0.8)"]),
        (dict(weight_decay=0.1), ["optax.adamw", "weight_decay=0.1"]),
        (dict(xyzzy=1), ["xyzzy", "nor of adam", "b1"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("verb", [fm.fit, fm.setup], ids=["fit", "setup"])
def test_an_option_of_another_library_is_answered(verb, options, words):
    length = dict(epochs=1) if verb is fm.fit and "max_epochs" not in options else {}
    with pytest.raises(TypeError) as caught:
        verb(fm.Classifier(Linear(4, 2)), DATA, optimizer=optax.adam, lr=1e-3, **length, **options)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        (fm.evaluate, dict(verbose=0), ["verbose is no option of `evaluate`", "prints nothing"]),
        (fm.evaluate, dict(batchsize=2), ["did you mean 'batch_size'"]),
        (fm.evaluate, dict(xyzzy=2), ["xyzzy", "The options of `evaluate` are: attack, batch_size, devices."]),
        (fm.predict, dict(workers=2), ["workers is no option of `predict`", "Prefetch"]),
    ],
)
def test_an_unknown_option_of_an_evaluation_is_answered(verb, options, words):
    with pytest.raises(TypeError) as caught:
        verb(Linear(4, 2, jnp.ones((4, 2)), jnp.ones(2)), DATA[0], **options)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_options_of_constructors_are_not_refused():
    def momentum_sgd(lr, momentum):
        return optax.sgd(lr, momentum)

    state = fm.setup(fm.Classifier(Linear(4, 2)), DATA, optimizer=momentum_sgd, lr=0.1, momentum=0.9)
    assert state.optimizer.options["momentum"] == 0.9


@pytest.mark.parametrize("library", ["lightning", "keras"])
def test_every_option_of_a_trainer_is_answered(library):
    same = set(keywords(fm.fit))
    asked = {name for kind in FOREIGN[library]["arguments"].values() for name in kind} - {"model"}
    assert not asked - same - set(FOREIGN_OPTIONS)
    assert not same & set(FOREIGN_OPTIONS)


def test_answers_are_sentences():
    for answer in FOREIGN_OPTIONS.values():
        assert answer.endswith((".", ")")) and "  " not in answer

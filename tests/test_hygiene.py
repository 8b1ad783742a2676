"""The mistakes that dispatch brings, looked for among the library's own methods."""

import ast
import functools
import importlib
import inspect
import pkgutil
import types
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import plum
import pytest
from forked import run_code

import fulmen as fm
from fulmen.core import verbs as contracts
from fulmen.dispatching.annotations import dispatching
from fulmen.dispatching.find_ambiguities import ambiguities
from fulmen.dispatching.methods import Method
from fulmen.dispatching.registry import Verb, all_named_verbs, verbs


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "fulmen"


@functools.cache
def library() -> tuple[list[Verb], list[Method]]:
    """The library's verbs and methods, once all its modules have been imported."""
    for found in pkgutil.walk_packages(fm.__path__, "fulmen."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ImportError as error:  # an extra that is not installed
                assert "fulmen" not in str(error)
    verbs = [verb for verb in all_named_verbs() if is_ours(verb.__module__)]
    return verbs, [method for verb in all_named_verbs() for method in verb.methods if is_ours(method.module)]


@pytest.fixture(autouse=True, scope="module")
def _imported():
    library()


def is_base(kind: type) -> bool:
    """Whether the library has subclasses of a class. A C metaclass has a `__module__` that is not text."""
    return kind is object or any(is_ours(str(below.__module__)) for below in type.__subclasses__(kind))


def pirated(verb: Verb, method: Method) -> bool:
    """Whether somebody else could have written the method, meaning something else."""
    return not is_ours(verb.__module__) and not any(is_ours(kind.__module__) for hint in method.members for kind in hint)


def uncached(method: Method) -> list[object]:
    """The annotations that cannot be told from an argument's class."""
    written = [hint for hint in method.written if hint not in (inspect.Parameter.empty, object)]
    faithful = method.signature.is_faithful
    return [hint for hint in written if dispatching(hint) != hint] or ([] if faithful else [method.signature])


def narrow_on_a_base(method: Method) -> bool:
    """Whether it leaves a user's method on a derived class ambiguous, by annotating more than the first argument."""
    first = method.members[0] if method.members else ()
    return any(map(is_base, first)) and any(hint is not object for hint in (*method.hints[1:], method.rest or object))


def test_there_is_something_to_look_at():
    verbs, methods = library()
    assert len(verbs) > 25
    assert len(methods) > 100


def test_no_two_methods_are_ambiguous():
    found = [clash for verb in library()[0] for clash in ambiguities(verb)]
    clashes = [(a, b, kinds) for a, b, kinds in found if is_ours(a.module) and is_ours(b.module)]
    assert not clashes, "\n".join(f"{a} ({a.location}) and {b} ({b.location}) for {kinds}" for a, b, kinds in clashes)


def test_no_method_belongs_to_others():
    assert not [
        (verb, method)
        for verb in all_named_verbs()
        for method in verb.methods
        if is_ours(method.module) and pirated(verb, method)
    ]


def test_every_signature_can_be_remembered():
    assert not [(str(method), method.location, uncached(method)) for method in library()[1] if uncached(method)]


def test_methods_on_base_classes_annotate_their_first_argument_only():
    assert not [(str(method), method.location) for method in library()[1] if narrow_on_a_base(method)]


def test_default_methods_of_public_verbs_are_annotated():
    """As `check` asks of users, so that a method for every type is one on purpose."""
    public = [verb for verb in fm.verbs() if verb.__module__ == contracts.__name__]
    assert not [
        str(m) for verb in public for m in verb.methods if is_ours(m.module) and m.written[:1] == (inspect.Parameter.empty,)
    ]


def test_every_verb_has_a_contract_and_says_how_to_extend_it():
    for verb in library()[0]:
        assert verb.__doc__ and len(verb.__doc__) > 40, verb
        assert verb.__module__ != "fulmen.core.verbs" or "**Extending.**" in verb.__doc__, verb
    contracts = [v for v in library()[0] if v.__module__ == "fulmen.core.verbs"]
    above = [fm, fm.robust]
    namespaces = [*above, *(m for names in above for m in vars(names).values() if isinstance(m, types.ModuleType))]
    assert not [v for v in contracts if not any(vars(names).get(v.__name__) is v for names in namespaces)]
    assert not [v for v in contracts if v not in verbs()]


# Work that differs by the type of a batch, an attack or a region is done by methods or properties of the type.

BY_TYPE = (fm.Batch, fm.Attack, fm.attacks.Region)
BORDERS = {
    "core/batch_checks.py": "what a user gives as data",
    "data/epoch_reader.py": "what a user gives as data",
    "data/normalize.py": "what a user gives as data",
    "compose/part_defaults.py": "what a user's method returns",
    "inspect/outline.py": "display",
    "systems/representations.py": "which batch a user gives",
    "systems/language.py": "which batch a user gives",
    "robust/attacks/minimal_norm.py": "which region a user gives",
    "robust/attacks/attack.py": "which region a user gives",
    "robust/attacks/ensemble.py": "which attack a user gives",
    "robust/certified/certification.py": "which region a user gives",
    "robust/certified/interval.py": "which region a user gives",
    "robust/defences/adversarial.py": "what a user's schedule returns",
    "robust/defences/guard.py": "which attack a user gives",
    "robust/defences/divergence.py": "which attack a user gives",
    "robust/report/attack_choice.py": "display",
    "robust/report/attack_evaluation.py": "which region a user gives",
    "robust/report/attack_signs.py": "which attacks a report is of",
    "compose/population_verbs.py": "raw data or a batch, and data of each member",
}


def below(kind: type) -> set[str]:
    """The names of a class of the library and of all derived from it."""
    return {kind.__name__, *(name for each in type.__subclasses__(kind) if is_ours(each.__module__) for name in below(each))}


def asks_for(tree: ast.AST, kinds: set[str]) -> set[str]:
    """Which of some classes the code has `isinstance` of, but for those that it defines."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"]
    return {n.id for call in calls for n in ast.walk(call.args[1]) if isinstance(n, ast.Name) and n.id in kinds - own}


def test_isinstance_of_batches_attacks_and_regions_is_at_borders_only():
    kinds, source = set().union(*map(below, BY_TYPE)), Path(fm.__file__).parent
    found = {p.relative_to(source).as_posix(): asks_for(ast.parse(p.read_text()), kinds) for p in source.rglob("*.py")}
    assert {"Attacked", "PGD", "Box"} < kinds
    assert {name: asked for name, asked in found.items() if asked and name not in BORDERS} == {}
    assert asks_for(ast.parse("isinstance(batch, Attacked | Labeled)"), kinds) == {"Attacked", "Labeled"}
    assert not asks_for(ast.parse("class Attacked: ...\nisinstance(batch, Attacked)"), kinds)


# The checks find what they look for.


def written(**annotations):
    def borrow(one, other):
        return None

    borrow.__annotations__ = annotations
    return borrow


def test_the_checks_can_fail():
    @fm.verb
    def borrow(one, other):
        """A verb that is not the library's, and that no other test sees."""

    def last(function) -> Method:
        borrow.dispatch(function)
        return borrow.methods[-1]

    assert pirated(borrow, last(written(one=np.ndarray)))
    assert not pirated(borrow, last(written(one=fm.Box)))
    assert uncached(last(written(one=fm.Labeled, other=jax.Array))) == [jax.Array]
    assert uncached(last(written(one=fm.Unlabeled, other=Literal["a"])))
    assert not uncached(last(written(one=fm.Classifier, other=fm.Labeled | None)))
    assert not plum.Signature(jax.Array).is_faithful
    assert narrow_on_a_base(last(written(one=fm.System, other=fm.Labeled)))
    assert narrow_on_a_base(last(written(one=fm.Box | fm.Component, other=fm.Labeled)))
    assert narrow_on_a_base(last(written(other=fm.data.Attacked)))
    assert not narrow_on_a_base(last(written(one=fm.Box, other=fm.Labeled)))
    assert list(ambiguities(borrow))


def test_importing_the_library_imports_nothing_that_is_slow_or_optional(tmp_path):
    names = "jax.extend jax.experimental.pallas matplotlib safetensors orbax equinox flax pandas torch"
    code = f"import sys, fulmen; print(sorted({{*{names.split()}}} & {{*sys.modules}}))"
    assert run_code(code, tmp_path) == "[]\n"

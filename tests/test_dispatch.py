"""How a verb chooses a method: signatures, contexts, errors, wrappers, the next method."""

from __future__ import annotations

import abc
import copy
import functools
import inspect
import pickle
import random
import sys
import threading
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import plum
import pytest

import fulmen as fm
from fulmen import bind, configure_optimizers, dispatch, forward, loss
from fulmen.dispatching import lazy_libraries
from fulmen.dispatching.annotations import dispatching
from fulmen.dispatching.compiled_code import recorded
from fulmen.dispatching.errors import MissingMethodError
from fulmen.dispatching.find_ambiguities import ambiguities
from fulmen.dispatching.method_table import MethodTable
from fulmen.dispatching.methods import Method
from fulmen.dispatching.registry import Verb


class Animal(fm.Component):
    pass


class Dog(Animal):
    pass


class Puppy(Dog):
    pass


class Kitten(Animal):
    pass


class Bowl(fm.Component):
    pass


@fm.verb
def greet(one, other):
    """What one says to another."""


@dispatch
def greet(one: Animal, other):
    return "any"


@dispatch
def greet(one: Dog, other: Animal):
    return "woof"


@dispatch
def greet(one: Puppy, other: Kitten):
    return "a method for the class alone beats one for a union with it"


@dispatch
def greet(one: Puppy, other: Kitten | Dog | Bowl, *, loudly=False):
    return "YIP" if loudly else "yip"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((Animal(), 1), "any"),
        ((Dog(), 1), "any"),
        ((Dog(), Animal()), "woof"),
        ((Dog(), Puppy()), "woof"),
        ((Puppy(), Animal()), "woof"),
        ((Puppy(), Puppy()), "yip"),
        ((Puppy(), Bowl()), "yip"),
        ((Puppy(), Kitten()), "a method for the class alone beats one for a union with it"),
    ],
)
def test_the_most_specific_method_is_chosen(args, expected):
    assert greet(*args) == expected
    assert greet(*args) == expected  # and from the cache


def test_plum_holds_the_methods():
    """plum's view of a verb: its methods, and the one that delegates wrappers' calls to their parts."""
    held = [m.implementation.method for m in greet.plum.methods]
    assert held == greet.table.candidates
    assert [m for m in held if not m.delegates] == greet.methods
    assert greet.plum(Puppy(), Bowl(), loudly=True) == "YIP"
    assert greet.plum(fm.Frozen(Dog()), Dog()) == "woof"
    assert greet.plum.invoke(Dog, Animal)(Puppy(), Puppy()) == "woof"
    assert forward.plum(TRAIN, Drop(), 1.0) == "train"
    assert "Puppy" in str(greet.plum.methods) and "test_dispatch.py" in str(greet.plum.methods)
    assert not [m for m in fm.init.plum.methods if m.implementation.method.delegates]


def test_options_follow_the_arguments():
    assert greet(Puppy(), Bowl(), loudly=True) == "YIP"


@fm.verb
def speak(one, *others):
    """What one says."""


@dispatch
def speak(one: Animal, *others: Animal):
    return f"animal to {len(others)}"


@dispatch
def speak(one: Animal, other: Bowl):
    return "animal to bowl"


@dispatch
def speak(one: Dog, what: str = "woof", times: int = 1):
    return " ".join([what] * times)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((Animal(),), "animal to 0"),
        ((Animal(), Dog(), Puppy()), "animal to 2"),
        ((Animal(), Bowl()), "animal to bowl"),
        ((Dog(),), "woof"),
        ((Dog(), "wau"), "wau"),
        ((Dog(), "wau", 2), "wau wau"),
        ((Dog(), Dog()), "animal to 1"),
    ],
)
def test_varargs_and_defaults(args, expected):
    assert speak(*args) == expected


class Sum(fm.Model):
    pass


@dispatch
def forward(model: Sum, *inputs):
    return f"{len(inputs)}"


@dispatch
def forward(model: Sum, *inputs, mode: fm.Train):
    return f"{len(inputs)} in training"


@dispatch
def forward(model: Sum, x):
    return "one"


@dispatch
def forward(model: Sum, x, y, *more):
    return f"two and {len(more)}"


@pytest.mark.parametrize(
    ("inputs", "evaluated", "trained"),
    [
        ((), "0", "0 in training"),
        ((1,), "one", "one"),  # the arguments decide first: a method without `*args` beats one for a mode with them
        ((1, 2), "two and 0", "two and 0"),
        ((1, 2, 3), "two and 1", "two and 1"),
    ],
)
def test_a_method_that_names_more_arguments_beats_varargs(inputs, evaluated, trained):
    for _ in range(2):
        assert forward(Sum(), *inputs) == evaluated
        assert forward(Sum(), *inputs, TRAIN) == trained


class Part(Animal):
    __part__ = None


class OfMode(fm.Mode):
    pass


@pytest.mark.parametrize("seed", range(4))
def test_a_verb_chooses_the_method_that_plum_chooses(seed):
    """Random methods with unions, `*args`, contexts and wrappers: the verb chooses the method that plum chooses alone."""
    draw = random.Random(seed)
    hints = [object, Animal, Dog, Puppy, Kitten, Part, Animal | int, Dog | Kitten, Kitten | Part, int]
    contexts = [(fm.Mode,), (fm.Train,), (fm.Eval,), (fm.Train, fm.Eval), (OfMode,)]
    for _ in range(40):
        context, delegates = draw.choice([None, fm.Mode]), draw.random() < 0.6
        verb = fm.verb(lambda one, *others, mode=fm.Eval(): None, context=context, delegates=delegates)
        for _ in range(draw.randint(2, 7)):
            types = tuple(draw.choice(hints) for _ in range(draw.randint(1, 3)))
            rest = draw.choice([None, None, object, Animal])
            verb.register([Method("verb", lambda: 1, types, rest, draw.choice(contexts) if context else ())])
        for _ in range(10):
            args = tuple(draw.choice([Dog, Puppy, Kitten, Part, int, bool]) for _ in range(draw.randint(1, 3)))
            mode = draw.choice([fm.Train, fm.Eval, OfMode]) if context else type(None)
            found = verb.table.best(mode, args)
            try:
                decided = verb.plum.resolve_method(plum.Signature(*([mode] if context else []), *args))[0].method
            except (plum.AmbiguousLookupError, plum.NotFoundLookupError) as error:
                assert found == [] or isinstance(error, plum.AmbiguousLookupError)
            else:
                assert decided.rest is not None or found == [decided]
            fitting = [m for m in verb.table.candidates if accepts(m, mode, args)]
            assert {*found} <= {*fitting} and bool(found) == bool(fitting)
            if all(m.rest is None for m in fitting):
                assert not [m for m in found for other in fitting if closer(other, m, args)]


def accepts(method, mode, args) -> bool:
    """Whether a method fits, without plum."""
    hints = [*method.hints, *[method.rest] * (len(args) - len(method.hints) if method.rest is not None else 0)]
    return len(hints) == len(args) and all(map(issubclass, args, hints)) and issubclass(mode, method.contexts or object)


def closer(one, other, args) -> bool:
    """Whether the classes that the arguments match are as narrow in one method as in the other, and one of them narrower."""

    def depths(method):
        return [len(k.__mro__) for arg, kinds in zip(args, method.members) for k in kinds if issubclass(arg, k)]

    pairs = [*zip(depths(one), depths(other), strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


class Marked(Animal):
    __args__ = 3  # as in a class that beartype takes for a generic one and cannot read


@pytest.mark.parametrize(
    ("args", "expected"), [((Marked(), 1), "any"), ((Animal(), list[int]), "any"), ((Dog(), Marked()), "woof")]
)
def test_an_argument_of_a_class_that_plum_refuses_counts_as_its_base(args, expected):
    assert greet(*args) == expected


def test_a_verb_keeps_its_methods_when_plum_clears_its_caches():
    plum.clear_all_cache()
    assert greet(Animal(), "a class that was not seen") == "any" and len(greet.plum.methods) == len(greet.table.candidates)


class Legged(Animal, abc.ABC):
    pass


class Stool(fm.Component):
    pass


Legged.register(Stool)


def test_a_union_with_a_class_that_has_virtual_subclasses_keeps_it():
    @fm.verb
    def count_legs(one):
        """How many there are."""

    @dispatch
    def count_legs(one: Legged | Animal):
        return 4

    assert count_legs(Dog()) == count_legs(Stool()) == 4


# What is registered


class Speaks(Protocol):
    def speak(self) -> str: ...


T = TypeVar("T")
Dogs = TypeVar("Dogs", bound=Dog)


class Box(Generic[T]):
    pass


@pytest.mark.parametrize(
    ("annotation", "registered"),
    [
        (Dog, Dog),
        (Dog | Bowl, Dog | Bowl),
        (typing.Union[Dog, Bowl], Dog | Bowl),  # noqa: UP007
        (Dog | Puppy, Dog),
        (Dog | None, Dog | None),
        (None, type(None)),
        (Mapping, Mapping),
        (Sequence[int], Sequence),
        (list[int], list),
        (Box[int], Box),
        (Annotated[Dog, "good"], Dog),
        (Dogs, Dog),
        (T, object),
        (jax.Array, object),
        (jax.Array | Dog, object),
        (Literal["a"], object),
        (Speaks, object),
        (Any, object),
        (inspect.Parameter.empty, object),
    ],
    ids=str,
)
def test_only_classes_dispatch(annotation, registered):
    assert dispatching(annotation) == registered


@pytest.mark.parametrize("annotation", [jax.Array, Literal["a"], Speaks, list[int], Dog], ids=str)
def test_calls_are_cached_with_every_annotation(annotation, monkeypatch):
    @fm.verb
    def consider(one, what):
        """Something."""

    def method(one, what):
        return what

    method.__annotations__ = {"one": Dog, "what": annotation}
    consider.dispatch(method)
    asked = []
    resolve = MethodTable.resolve
    monkeypatch.setattr(MethodTable, "resolve", lambda self, *args: asked.append(args) or resolve(self, *args))
    what = [1] if annotation == list[int] else Dog()
    for _ in range(5):
        assert consider(Dog(), what) is what
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [(Literal["a"], Literal["b"]), (list[int], list[str]), (jax.Array, Speaks), (jax.Array, inspect.Parameter.empty)],
    ids=str,
)
def test_methods_that_differ_in_nothing_that_dispatches_are_refused(first, second):
    @fm.verb
    def consider(one, what):
        """Something."""

    def method(annotation):
        def consider(one, what):
            return annotation

        consider.__annotations__ = {"one": Dog} | ({} if annotation is inspect.Parameter.empty else {"what": annotation})
        return consider

    consider.dispatch(method(first))
    with pytest.raises(TypeError, match=r"(?s)test_dispatch.py:\d+.*test_dispatch.py:\d+ differ only in .* do not dispatch"):
        consider.dispatch(method(second))
    consider.dispatch(method(first))  # the same again is a redefinition
    assert len(consider.methods) == 1


@pytest.mark.parametrize(
    ("given", "named"),
    [(Dog, "the class Dog"), (len, "len"), (functools.partial(max, 1), "partial")],
    ids=["class", "builtin", "partial"],
)
@pytest.mark.parametrize("register", [dispatch, forward.dispatch], ids=["dispatch", "verb.dispatch"])
def test_only_functions_are_methods(given, named, register):
    with pytest.raises(TypeError, match=rf"must be a function.*{named}.*@dispatch def"):
        register(given)


def test_a_method_in_the_body_of_a_class_is_refused():
    before = forward.methods
    with pytest.raises(
        TypeError, match=r"(?s)Inside.forward is in the body of a class.*@dispatch\n    def forward\(inside: Inside"
    ):

        class Inside(fm.Model):
            @dispatch
            def forward(self, x):
                return x

    assert forward.methods == before


def test_annotations_that_are_strings_see_local_classes():
    class Dog(Animal):  # another than the module's
        pass

    class Cat(Animal):
        pass

    def register():
        @dispatch
        def greet(one: Cat, other: Dog | Cat):
            return "meow"

    register()
    assert greet(Cat(), Dog()) == greet(Cat(), Cat()) == "meow"
    assert greet(Cat(), Puppy()) == "any"


def test_an_annotation_without_meaning():
    with pytest.raises(NameError, match=r"'Unheard' of greet in test_dispatch cannot be evaluated"):

        @dispatch
        def greet(one: Unheard, other):  # noqa: F821
            return 1


def test_annotations_of_options_and_results_do_not_matter():
    class Cat(Animal):
        pass

    @dispatch
    def greet(one: Cat, other, *, how: Unheard = 1) -> Unheard:  # noqa: F821
        return how

    assert greet(Cat(), 1, how=2) == 2


def test_a_compiled_function_can_be_a_method():
    class Twice(fm.Model):
        pass

    @dispatch
    @jax.jit
    def forward(model: Twice, x):
        return 2 * x

    assert forward(Twice(), jnp.float32(2.0)) == 4.0


# Contexts


class Drop(fm.Model):
    pass


@dispatch
def forward(drop: Drop, x):
    return "any mode"


@dispatch
def forward(drop: Drop, x, mode: fm.Train):
    return "train"


class MyDrop(Drop):
    pass


@dispatch
def forward(drop: MyDrop, x):
    return "mine"


class Shows(fm.Model):
    pass


@dispatch
def forward(model: Shows, x, mode):
    return mode


class Warmup(fm.Train):
    pass


class Both(fm.Model):
    pass


@dispatch
def forward(model: Both, x, mode: fm.Train | fm.Eval):
    return "train or eval"


@dispatch
def forward(model: Both, x, mode: Warmup):
    return "warm-up"


class Other(fm.Mode):
    pass


TRAIN = fm.Train(jax.random.key(0))


def warmup() -> Warmup:
    return Warmup(jax.random.key(0))


@pytest.mark.parametrize(
    ("model", "mode", "expected"),
    [
        (Drop(), None, "any mode"),
        (Drop(), fm.Eval(), "any mode"),
        (Drop(), TRAIN, "train"),
        (Drop(), warmup(), "train"),
        (MyDrop(), TRAIN, "mine"),
        (MyDrop(), fm.Eval(), "mine"),
        (Both(), TRAIN, "train or eval"),
        (Both(), None, "train or eval"),
        (Both(), warmup(), "warm-up"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_arguments_decide_first_and_the_context_between_equals(model, mode, expected):
    given = () if mode is None else (mode,)
    assert forward(model, 1.0, *given) == expected
    assert forward(model, 1.0, *given) == expected
    bound = model if mode is None else bind(model, mode)
    assert forward(bound, 1.0) == expected
    assert forward(bound, 1.0) == expected


def test_a_union_of_contexts_leaves_out_others():
    with pytest.raises(MissingMethodError, match="mode Other"):
        forward(Both(), 1.0, Other(None))


def test_contexts_that_overlap_are_ambiguous():
    class Unsure(fm.Model):
        pass

    @dispatch
    def forward(model: Unsure, x, mode: fm.Train | Other):
        return 1

    @dispatch
    def forward(model: Unsure, x, mode: fm.Train | fm.Eval):
        return 2

    assert forward(Unsure(), 1.0) == 2
    with pytest.raises(fm.AmbiguousMethodError, match=r"forward\(unsure: Unsure, x, mode: Train\)|mode: Train"):
        forward(Unsure(), 1.0, TRAIN)


def test_a_call_without_a_mode_reads_the_bound_one_or_else_evaluates():
    for _ in range(2):
        assert type(forward(Shows(), 1.0)) is fm.Eval
        assert type(forward(bind(Shows(), TRAIN), 1.0)) is fm.Train
        assert type(forward(bind(Shows(), TRAIN), 1.0, fm.Eval())) is fm.Eval


def test_an_attribute_called_mode_that_is_none_is_not_read():
    class Picture:
        mode = "RGB"

    @dispatch
    def forward(model: Picture, x, mode):
        return mode

    for _ in range(2):
        assert type(forward(Picture(), 1.0)) is fm.Eval
        assert type(forward(Picture(), 1.0, TRAIN)) is fm.Train


def test_the_context_is_last_also_after_defaults_and_varargs():
    class Flexible(fm.Model):
        pass

    @dispatch
    def forward(model: Flexible, x, scale=2.0, mode=None):
        return scale, type(mode)

    @dispatch
    def forward(model: Flexible, x, y, z, *rest, mode: fm.Mode):
        return len(rest), type(mode)

    assert forward(Flexible(), 1.0) == (2.0, fm.Eval)
    assert forward(Flexible(), 1.0, TRAIN) == (2.0, fm.Train)
    assert forward(Flexible(), 1.0, 3.0, TRAIN) == (3.0, fm.Train)
    assert forward(bind(Flexible(), TRAIN), 1.0, 2, 3, 4) == (1, fm.Train)
    with pytest.raises(TypeError, match=r"follow `\*`: `\*inputs, mode`"):

        @dispatch
        def forward(model: Flexible, mode, *inputs):
            return None


def test_plans_are_contexts_too():
    class Planned(fm.Model):
        pass

    @dispatch
    def configure_optimizers(model: Planned, plan):
        return plan

    for _ in range(2):
        assert configure_optimizers(Planned()) == fm.Plan()
        assert configure_optimizers(Planned(), fm.Plan(epochs=3)) == fm.Plan(epochs=3)
        assert configure_optimizers(bind(Planned(), TRAIN)) == fm.Plan()  # a bound mode is no plan
    assert configure_optimizers.method(bind(Planned(), TRAIN)).hints == (Planned,)


# Errors


def test_a_missing_method(capsys):
    with pytest.raises(MissingMethodError) as caught:
        loss(Bowl(), fm.Labeled(jnp.ones((1000, 3)), jnp.zeros(1000, jnp.int32)))
    said = str(caught.value)
    assert "loss(Bowl, Labeled)" in said
    assert "@dispatch\n    def loss(bowl: Bowl, batch: fm.Labeled): …" in said
    assert "Types that have one: " in said
    assert len(said.splitlines()) < 25
    assert "1." not in said  # of the array's numbers


@pytest.mark.parametrize(
    ("x", "parameter"),
    [(np.ones(2), "x"), (jnp.ones(2), "x"), (Dog(), "x: Dog"), ([1], "x: list")],
    ids=lambda v: type(v).__name__,
)
def test_the_method_to_write(x, parameter):
    with pytest.raises(MissingMethodError, match=rf"def forward\(bowl: Bowl, {parameter}\)"):
        forward(Bowl(), x)


def test_tracers_are_called_arrays():
    with pytest.raises(MissingMethodError, match=r"forward\(Bowl, jax.Array\)"):
        jax.jit(lambda x: forward(Bowl(), x))(1.0)


def test_the_wrong_number_of_arguments():
    with pytest.raises(MissingMethodError, match=r"takes 2 positional arguments, got 3. Call it as greet\(") as caught:
        greet(Dog(), Dog(), Dog())
    assert "Write one" not in str(caught.value)
    with pytest.raises(MissingMethodError):
        greet()
    with pytest.raises(MissingMethodError):
        forward()


@pytest.mark.parametrize(
    "call",
    [
        lambda: greet(one=Dog(), other=Dog()),
        lambda: greet(Dog(), other=Dog()),
        lambda: forward(Drop(), 1.0, mode=TRAIN),
        lambda: configure_optimizers(Drop(), plan=fm.Plan()),
    ],
    ids=["all", "mixed", "mode", "plan"],
)
def test_a_keyword_where_dispatch_needs_a_position(call):
    with pytest.raises(TypeError, match=r"dispatches on positional arguments, got `\w+=`.*by keyword.*by position: \w+\("):
        call()


def test_a_call_without_arguments():
    @fm.verb(context=fm.Mode, bind=bind)
    def count(*things, mode=fm.Eval()):
        """How many there are."""

    @dispatch
    def count(*things, mode):
        return len(things), type(mode)

    for _ in range(2):
        assert count() == (0, fm.Eval)
        assert count(TRAIN) == (0, fm.Train)
        assert count(1, 2, TRAIN) == (2, fm.Train)


def test_a_keyword_that_is_called_otherwise():
    with pytest.raises(MissingMethodError, match="It dispatches on positional arguments, got `friend=` by keyword"):
        greet(Dog(), friend=Dog())


def test_a_misspelt_verb():
    with pytest.raises(NameError, match=r"`foward` is not a verb; did you mean `forward`\?.*@fm.verb"):

        @dispatch
        def foward(model: Drop, x):
            return 1

    with pytest.raises(NameError, match=r"`zzz` is not a verb; the verbs are: .*forward"):

        @dispatch
        def zzz(model: Drop):
            return 1


def test_private_verbs_are_found_by_importing_them_only(notebook):
    from fulmen.robust.attacks.adaptation import memory  # one that the library keeps to itself

    before = memory.methods
    assert memory not in fm.verbs()
    cell = "import fulmen as fm\nclass Agent(fm.Component):\n    pass\n@fm.dispatch\ndef memory(agent: Agent): return 1"
    with pytest.raises(NameError, match="`memory` is not a verb"):
        notebook(cell)
    assert memory.methods == before


@pytest.mark.parametrize("annotation", ["", ": fm.Prediction"])
def test_a_method_that_overrides_another_packages_is_warned_of_once(notebook, verbs_restored, annotation):
    """As a user's for types of the library alone."""
    cell = f"import fulmen as fm\n@fm.dispatch\ndef loss(objective: fm.MSE, prediction{annotation}): return 'mine'"
    with pytest.warns(UserWarning, match=r"loss\(MSE, .*, defined at fulmen/objectives/\w+.py:\d+, is overridden by"):
        notebook(cell)
    notebook(cell)  # warnings are errors
    assert fm.loss(fm.MSE(), fm.Prediction(None, 1.0, None)) == "mine"
    notebook("class Mine: pass\n@fm.dispatch\ndef loss(objective: fm.MAE, prediction: Mine): return 'mine'")  # a new type


def test_a_method_with_nothing_to_dispatch_on():
    with pytest.raises(TypeError, match="`loss` needs at least one positional argument"):

        @dispatch
        def loss(*, batch):
            return 1


def test_an_ambiguity():
    @fm.verb
    def meet(one, other):
        """What happens."""

    @dispatch
    def meet(one: Dog, other):
        return 1

    @dispatch
    def meet(one, other: Dog | Bowl):
        return 2

    with pytest.raises(fm.AmbiguousMethodError) as caught:
        meet(Puppy(), Puppy())
    said = str(caught.value)
    lines = [inspect.unwrap(m.function).__code__.co_firstlineno for m in meet.methods]
    for method, line in zip(("meet(Dog, object)", "meet(object, Dog | Bowl)"), lines, strict=True):
        assert f"{method}    {__file__}:{line}" in said
    assert "@dispatch\n    def meet(puppy: Dog, other: Dog): …" in said
    found = list(ambiguities(meet))
    assert [found[0][:2]] == [tuple(meet.methods)]
    assert found[0][2] == (Dog, Dog)

    @dispatch
    def meet(one: Dog, other: Dog):
        return 3

    assert meet(Puppy(), Puppy()) == 3
    assert [types for _, _, types in ambiguities(meet)] == [(Dog, Bowl)]
    assert [types for _, _, types in ambiguities(meet, {Puppy, Bowl})] == [(Puppy, Bowl)]
    assert not list(ambiguities(meet, {Bowl}))

    @dispatch
    def meet(one: Dog, other: Bowl):
        return 4

    assert not list(ambiguities(meet))


def test_ambiguity_by_a_common_subclass():
    @fm.verb
    def use(one):
        """Something."""

    @dispatch
    def use(one: Dog):
        return 1

    @dispatch
    def use(one: Bowl):
        return 2

    assert not list(ambiguities(use))

    class BowlOfADog(Dog, Bowl):
        pass

    assert [types for _, _, types in ambiguities(use)] == [(BowlOfADog,)]


# Verbs as objects


def test_dispatch_returns_the_verb(verbs_restored):
    assert isinstance(forward, Verb)
    assert forward is fm.forward

    @forward.dispatch
    def of_any_name(model: Bowl, x):
        return "bowl"

    assert of_any_name is forward
    assert forward(Bowl(), 1) == "bowl"


def test_methods_were_taken_back():
    assert not forward.has(Bowl(), 1)


def test_a_local_verb_is_found_where_it_is():
    @fm.verb
    def forward(thing):  # hides the library's
        """Something else."""

    @dispatch
    def forward(thing: Dog):
        return "local"

    assert forward(Dog()) == "local"
    assert forward is not fm.forward


def test_two_verbs_of_one_name(notebook):
    for name in ("first", "second"):
        notebook(f"import fulmen as fm\n@fm.verb\ndef shared_name(x): '''{name}'''", module=f"{__name__}_{name}")
    with pytest.raises(NameError, match=r"more than one verb `shared_name`, in .*_first, .*_second"):
        notebook("import fulmen as fm\n@fm.dispatch\ndef shared_name(x: int): return x", module="elsewhere")
    notebook("@fm.dispatch\ndef shared_name(x: int): return x", module=f"{__name__}_first")


def test_pickling():
    for each in (forward, greet):
        assert pickle.loads(pickle.dumps(each)) is each
        assert copy.deepcopy({"verb": each})["verb"] is each


def test_method_and_has():
    assert greet.has(Dog(), Dog())
    assert not greet.has(1, 2)
    assert greet.method(Dog(), Dog()).hints == (Dog, Animal)
    assert __file__ in greet.method(Dog(), Dog()).location
    assert str(forward.method(Drop(), 1.0, TRAIN)) == "forward(Drop, object, Train)"
    with pytest.raises(MissingMethodError):
        greet.method(1, 2)


# The next method


class Base(fm.Model):
    pass


class Derived(Base):
    pass


@dispatch
def loss(model: Base, batch):
    return ["base"]


@dispatch
def loss(model: Base, batch, mode: fm.Train):
    return ["base in training", *loss.invoke(Base, object, fm.Mode)(model, batch, mode)]


@dispatch
def loss(model: Derived, batch, mode):
    return ["derived", *loss.invoke(Base, object)(model, batch, mode)]


def test_invoke_is_the_next_method():
    assert loss(Derived(), 1) == ["derived", "base"]
    assert loss(Derived(), 1, TRAIN) == ["derived", "base in training", "base"]
    assert loss.invoke(Base, object)(bind(Derived(), TRAIN), 1) == ["base in training", "base"]
    assert loss.invoke(Base, object, fm.Eval)(Derived(), 1, TRAIN) == ["base"]
    with pytest.raises(MissingMethodError):
        loss.invoke(Bowl, object)(Derived(), 1)


# Wrappers


class Plain(fm.Wrapper):
    system: fm.Component


class Shouting(fm.Wrapper):
    strength: int = fm.static(kw_only=True, default=1)
    system: fm.Component


@dispatch
def greet(one: Shouting, other):
    return greet(one.system, other).upper()


@pytest.mark.parametrize("wrap", [Plain, fm.Frozen, lambda v: fm.Frozen(Plain(v)), lambda v: Plain(fm.Frozen(Plain(v)))])
def test_a_wrapper_delegates_calls_it_has_no_method_for(wrap):
    assert greet(wrap(Dog()), Dog()) == "woof"
    assert greet(wrap(Puppy()), Bowl(), loudly=True) == "YIP"
    assert greet.method(wrap(Dog()), Dog()).hints == (Dog, Animal)
    assert not greet.has(wrap(Bowl()), Dog())
    with pytest.raises(MissingMethodError, match=r"greet\(Bowl, Dog\)"):
        greet(wrap(Bowl()), Dog())


@pytest.mark.parametrize("wrap", [Plain, fm.Frozen, lambda v: Plain(fm.Frozen(v))])
def test_a_wrapper_has_every_verb_that_is_added_later(wrap):
    @fm.verb
    def describe(component, batch, mode):
        """A verb of the user's."""

    @fm.verb(context=fm.Mode, bind=bind)
    def measure(component, batch, mode=fm.Eval()):
        """One with a context."""

    @fm.verb(context=fm.Plan)
    def schedule(component, plan=fm.Plan()):
        """One with a context that is not bound."""

    @dispatch
    def describe(component: Dog, batch, mode):
        return "dog", batch

    @dispatch
    def describe(component: fm.System, batch, mode):
        return "a method on systems is none on wrappers"

    @dispatch
    def measure(component: Dog, batch, mode):
        return type(mode)

    @dispatch
    def schedule(component: Dog, plan):
        return plan

    assert describe(wrap(Dog()), 1, TRAIN) == ("dog", 1)
    frozen = wrap is not Plain
    assert measure(wrap(Dog()), 1, TRAIN) is (fm.Eval if frozen else fm.Train)
    assert measure(bind(wrap(Dog()), TRAIN), 1) is (fm.Eval if frozen else fm.Train)
    assert measure(wrap(Dog()), 1) is fm.Eval
    assert schedule(wrap(Dog()), fm.Plan(epochs=2)) == fm.Plan(epochs=2)
    assert schedule(wrap(Dog())) == fm.Plan()


def test_a_method_on_a_wrapper_wins():
    assert greet(Shouting(Dog()), Dog()) == "WOOF"
    assert greet(Plain(Shouting(Plain(Dog()))), Dog()) == "WOOF"
    assert greet.method(Shouting(Dog()), Dog()).hints == (Shouting, object)


def test_structural_verbs_do_not_delegate(key):
    class Layer(fm.Model):
        weight: jax.Array | None = None

    @fm.init.dispatch
    def _(layer: Layer, key):
        return fm.replace(layer, weight=jnp.ones(3))

    drawn = fm.init(Plain(fm.Frozen(Layer())), key)
    assert isinstance(drawn, Plain)
    assert isinstance(drawn.system, fm.Frozen)
    assert drawn.system.part.weight.shape == (3,)
    bound = bind(Plain(Layer()), TRAIN)
    assert isinstance(bound, Plain)
    assert bound.system.mode is not None


def test_a_wrapper_without_a_field():
    class Nothing(fm.Wrapper):
        pass

    with pytest.raises(TypeError, match="Nothing is a Wrapper and must have a field"):
        greet(Nothing(), Dog())


# Around


def test_what_runs_around_a_kind():
    class Kennel(fm.System):
        pass

    class SmallKennel(Kennel):
        pass

    @fm.verb(context=fm.Mode, bind=bind)
    def inspect_(one, batch, mode=fm.Eval()):
        """Something."""

    @dispatch
    def inspect_(one: SmallKennel, batch, mode):
        return [type(mode).__name__]

    assert inspect_(SmallKennel(), 1) == ["Eval"]

    @inspect_.around(Kennel)
    def twice(call, kennel, batch):
        return call(kennel, batch) + call(kennel, batch)

    for _ in range(2):
        assert inspect_(SmallKennel(), 1) == ["Eval"] * 2
        assert inspect_(SmallKennel(), 1, TRAIN) == ["Train"] * 2
    assert inspect_(fm.Frozen(SmallKennel()), 1, TRAIN) == ["Eval"] * 2
    assert inspect_.invoke(SmallKennel, object)(SmallKennel(), 1) == ["Eval"]

    @inspect_.around(Kennel)  # again: in the first one's place
    def thrice(call, kennel, batch):
        return call(kennel, batch) * 3

    assert inspect_(SmallKennel(), 1) == ["Eval"] * 3


def test_a_function_around_runs_for_calls_with_as_many_arguments_as_it_takes():
    class Barn(fm.System):
        pass

    @fm.verb
    def count(one, *others):
        """The number of arguments."""

    @dispatch
    def count(one: Barn):
        return 1

    @dispatch
    def count(one: Barn, other):
        return 2

    count.around(Barn)(lambda call, one: -call(one))
    assert (count(Barn()), count(Barn(), 0)) == (-1, 2)
    count.around(Barn)(lambda call, *args: -call(*args))
    assert (count(Barn()), count(Barn(), 0)) == (-1, -2)


@pytest.mark.parametrize(
    "written", ["augment(part: Shed, batch)", "update(part: Shed, state, batch)", "loss(part: Shed)", "init(part: Shed)"]
)
def test_a_method_with_a_wrong_number_of_arguments_is_refused(written):
    class Shed(fm.System):
        pass

    names = {"Shed": Shed}
    exec(f"def {written}: ...", names)
    name = written.partition("(")[0]
    with pytest.raises(TypeError, match=rf"{name}\(Shed.*\) would never be called.* called as {name}\("):
        dispatch(names[name])
    assert not any(Shed in m.members[0] for m in getattr(fm, name).methods if m.hints)


def test_a_method_may_have_optional_arguments_and_leave_the_context_out():
    class Shed(fm.System):
        pass

    @dispatch
    def losses(shed: Shed, batch, extra=1):
        return {"one": jnp.float32(extra)}

    @dispatch
    def forward(shed: Shed, *inputs):
        return len(inputs)

    assert (fm.losses(Shed(), fm.Unlabeled(jnp.zeros(2)))["one"], fm.forward(Shed(), 1, 2)) == (1, 2)


def test_the_most_derived_class_is_outermost():
    class Wide(fm.System):
        pass

    class Narrow(Wide):
        pass

    @fm.verb
    def trail(one):
        """What a call went through."""

    @dispatch
    def trail(one: Wide):
        return []

    def around(kind):
        trail.around(kind)(lambda call, one: [kind.__name__, *call(one)])

    for kind in (Narrow, fm.System, Wide):  # in any order
        around(kind)
    assert trail(Narrow()) == ["Narrow", "Wide", "System"]
    assert trail(Wide()) == ["Wide", "System"]


# Looking


def test_recorded_calls():
    greet(Dog(), Dog())  # cached already
    calls = recorded(lambda: [greet(Plain(Dog()), Dog()), greet(Dog(), Dog())])
    assert [(depth, verb, types) for depth, verb, types, _ in calls] == [
        (0, greet, (type(None), Plain, Dog)),
        (1, greet, (type(None), Dog, Dog)),
        (0, greet, (type(None), Dog, Dog)),
    ]
    assert calls[1][3] is greet.method(Dog(), Dog())
    assert not recorded(lambda: None)


def test_recording_leaves_other_threads_alone():
    begun, done = threading.Event(), threading.Event()

    def elsewhere():
        begun.wait(10)
        assert greet(Dog(), Dog()) == "woof"
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()

    def here():
        begun.set()
        assert done.wait(10)

    assert recorded(here) == []
    thread.join()


# Threads


def test_a_library_is_loaded_while_others_may_register(monkeypatch):
    """The import of what teaches a library registers methods, and another thread may be in the middle of it."""
    loaded = []

    class Module:  # as of a library
        pass

    @fm.verb
    def weigh_up(one):
        """Something."""

    def load(name):
        def register():
            def method(one):
                return name

            method.__annotations__ = {"one": Module}
            weigh_up.dispatch(method)

        thread = threading.Thread(target=register, daemon=True)
        thread.start()
        thread.join(20)
        loaded.append(not thread.is_alive())

    monkeypatch.setitem(lazy_libraries._adapters, __name__, "its adapter")
    monkeypatch.setattr(lazy_libraries.importlib, "import_module", load)
    assert weigh_up(Module()) == "its adapter"
    assert loaded == [True]


def test_threads_register_and_call():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads do get between each other's lines
    try:
        register_and_call()
    finally:
        sys.setswitchinterval(interval)


def register_and_call():
    @fm.verb
    def count(one, other):
        """Something."""

    kinds = [types.new_class(f"Kind{i}", (Animal,)) for i in range(160)]
    wrong: list[BaseException] = []
    start = threading.Barrier(8)

    def work(mine):
        try:
            start.wait(10)
            for i, kind in mine:
                count.dispatch(_method(kind, i))
                for j, known in mine[: mine.index((i, kind)) + 1]:
                    assert count(known(), Dog()) == j
        except BaseException as error:
            wrong.append(error)

    numbered = list(enumerate(kinds))
    threads = [threading.Thread(target=work, args=(numbered[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(count.methods) == 160
    assert all(count(kind(), Dog()) == i for i, kind in numbered)


def _method(kind, i):
    def count(one, other):
        return i

    count.__annotations__ = {"one": kind, "other": Animal}
    return count

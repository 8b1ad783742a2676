"""Trees: what a field is, flattening, roles of leaves, reading and replacing by path."""

from __future__ import annotations

import collections
import collections.abc
import copy
import dataclasses
import enum
import inspect
import pickle
import typing
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Optional, TypeVar, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fulmen as fm
from fulmen.core.component import named_parts
from fulmen.core.field_checks import check_fields
from fulmen.core.fields import kinds
from fulmen.core.leaves import components, leaves, missing, require_arrays
from fulmen.core.tree import Tree, children, get, remake, short

S, H, C, U = "static", "hyperparameter", "child", "unclear"


class Colour(enum.Enum):
    RED = 1


class Layer(fm.Model):
    n: int
    weight: jax.Array | None = None
    scale: float = 1.0


class Point(NamedTuple):
    x: jax.Array
    y: jax.Array


class Unknown:
    """A class that jax knows nothing about."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Foreign:
    """A model of another library."""

    kernel: Any
    inner: Any = None


Bounded, Free = TypeVar("Bounded", bound=fm.Model), TypeVar("Free")

KINDS = [
    (int, S),
    (bool, S),
    (str, S),
    (bytes, S),
    (None, S),
    (Colour, S),
    (np.dtype, S),
    (jax.typing.DTypeLike, S),
    (type, S),
    (type[Layer], S),
    (typing.Callable, S),
    (typing.Callable[[int], int], S),
    (collections.abc.Callable, S),
    (collections.abc.Callable[..., Any], S),
    (Literal["a", "b"], S),
    (int | None, S),
    (Optional[str], S),  # noqa: UP045
    (Union[int, str], S),  # noqa: UP007
    (tuple[int, ...], S),
    (tuple[int, str], S),
    (tuple[tuple[int, ...], ...], S),
    (Annotated[int, "why"], S),
    (float, H),
    (complex, H),
    (np.float64, H),
    (float | None, H),
    (int | float, H),
    (dict[str, float], H),
    (list[float], H),
    (tuple[float, float], H),
    (jax.Array, C),
    (np.ndarray, C),
    (jax.Array | None, C),
    (jax.Array | np.ndarray, C),
    (jax.typing.ArrayLike, C),
    (Layer, C),
    (fm.Component, C),
    (Layer | jax.Array, C),
    (list[Layer], C),
    (list, C),
    (tuple, C),
    (dict, C),
    (tuple[Layer, ...], C),
    (dict[str, Layer], C),
    (dict[str, list[Layer]], C),
    (collections.abc.Sequence[Layer], C),
    (collections.abc.Mapping[str, jax.Array], C),
    (collections.OrderedDict[str, Layer], C),
    (Point, C),
    (Foreign, C),
    (jax.tree_util.Partial, C),
    (fm.Batch, C),
    (Bounded, C),
    (Any, U),
    (object, U),
    (Unknown, U),
    (Free, U),
    (list[int], U),
    (dict[str, int], U),
    (list[Any], U),
    (float | jax.Array, U),
    (Layer | collections.abc.Callable, U),
]


def with_annotation(annotation: Any, **options: Any) -> type:
    field = dataclasses.field(default=None, **options)
    names = {
        "__annotations__": {"field": annotation},
        "field": field,
        "__module__": __name__,
        "__qualname__": "x.<locals>.Made",
    }
    return type("Made", (fm.Component,), names)


@pytest.mark.parametrize(("annotation", "kind"), KINDS, ids=lambda v: str(v).replace("typing.", ""))
def test_what_a_field_is(annotation, kind):
    assert kinds(with_annotation(annotation))["field"] == kind


@pytest.mark.parametrize(("annotation", "kind"), [k for k in KINDS if k[1] == U], ids=lambda v: str(v))
def test_an_unclear_field_is_an_error_that_says_what_to_write(annotation, kind):
    with pytest.raises(TypeError, match=r"Made.field \(field\): its annotation does not determine.*fm.static\(\)"):
        check_fields(with_annotation(annotation)())


@pytest.mark.parametrize("how", [S, H])
def test_static_and_hyper_say_what_the_annotation_does_not(how):
    class Made(fm.Component):
        field: Any = (fm.static if how == S else fm.hyper)(default=3)

    assert kinds(Made)["field"] == how
    check_fields(Made())
    assert jax.tree.leaves(Made()) == ([] if how == S else [3])


class Forward(fm.Model):
    later: Later | None = None
    several: list[Later] = dataclasses.field(default_factory=list)
    itself: Optional["Forward"] = None  # noqa: UP037, UP045


class Later(fm.Model):
    weight: jax.Array


def test_names_that_are_defined_later():
    assert kinds(Forward) == {"mode": C, "later": C, "several": C, "itself": C}


def test_names_in_functions():
    class Local(fm.Model):
        weight: jax.Array

    class Holder(fm.Model):
        one: Local
        many: dict[str, Local]
        again: Holder | None = None

    assert kinds(Holder) == {"mode": C, "one": C, "many": C, "again": C}


def test_a_name_that_is_nowhere():
    class Holder(fm.Model):
        what: Nowhere = None  # noqa: F821

    with pytest.raises(TypeError, match=r"Holder\.what"):
        check_fields(Holder())


def test_annotations_that_are_not_strings(notebook):
    book = notebook(
        """
        import fulmen as fm, jax, typing
        class Inner(fm.Model):
            weight: jax.Array
        class Outer(fm.Model):
            one: Inner
            many: list["Inner"]
            maybe: typing.Optional["Outer"] = None
            count: "int" = 3
        """
    )
    assert kinds(book.Outer) == {"mode": C, "one": C, "many": C, "maybe": C, "count": S}


# As dataclasses


def test_inheritance_keywords_and_defaults():
    class Base(fm.Model):
        units: int
        rate: float = dataclasses.field(default=0.5, kw_only=True)

    class Derived(Base, Generic[Free]):
        width: int
        note: ClassVar[str] = "not a field"

    made = Derived(1, 2, rate=0.1)
    assert (made.units, made.width, made.rate, made.mode) == (1, 2, 0.1, None)
    assert kinds(Derived) == {"mode": C, "units": S, "rate": H, "width": S}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.units = 3


def test_mode_is_taken():
    with pytest.raises(TypeError, match=r"Made.mode: 'mode' is reserved.*rename the field"):

        class Made(fm.Model):
            mode: str = "fast"


class Own(fm.Model):
    """With a custom `__init__`, which leaves a field at its default."""

    made = 0
    units: int
    weight: jax.Array
    rate: float = 0.25

    def __init__(self, units):
        type(self).made += 1
        self.units = units
        self.weight = jnp.ones(units)


class Post(fm.Model):
    made = 0
    weight: jax.Array

    def __post_init__(self):
        type(self).made += 1


@pytest.mark.parametrize("build", [lambda: Own(3), lambda: Post(jnp.ones(3))], ids=["__init__", "__post_init__"])
def test_unflattening_runs_no_code_of_the_class(build):
    tree = build()
    before = type(tree).made
    again = jax.tree.map(lambda v: v, tree)
    assert type(again) is type(tree)
    np.testing.assert_array_equal(again.weight, tree.weight)
    jax.jit(lambda t: t)(tree)
    fm.replace(tree, weight=jnp.zeros(2))
    assert type(tree).made == before


def test_a_default_that_init_left_alone():
    assert jax.tree.map(lambda v: v, Own(2)).rate == 0.25
    assert leaves(Own(2))[-1].path == "rate"


def test_a_field_that_init_forgot():
    class Forgetful(fm.Model):
        weight: jax.Array

        def __init__(self):
            pass

    with pytest.raises(AttributeError, match=r"Forgetful.__init__ did not set the field 'weight'"):
        Forgetful()


def test_a_post_init_assigns_derived_fields():
    class Derived(fm.Model):
        units: int
        layer: Own = dataclasses.field(init=False)
        rates: list = dataclasses.field(default_factory=list)

        def __post_init__(self):
            self.layer = Own(self.units)

    made = Derived(3)
    assert (made.layer.units, made.rates, made.mode) == (3, [], None)
    parameters = inspect.signature(Derived).parameters
    assert ([*parameters], str(parameters["rates"].default)) == (["units", "rates", "mode"], "<factory>")
    with pytest.raises(TypeError, match=r"Derived has no field 'layer'"):
        Derived(3, layer=Own(2))


def test_an_init_calls_that_of_its_base_class():
    class Longer(Own):
        more: int

        def __init__(self, units):
            super().__init__(units)
            self.more = 2 * units

    assert (Longer(2).units, Longer(2).more, Longer(2).rate) == (2, 4, 0.25)


@pytest.mark.parametrize("make", [lambda: Own(3), lambda: Post(jnp.ones(3)), lambda: jax.tree.map(lambda v: v, Own(3))])
def test_a_tree_is_immutable_after_init(make):
    tree = make()
    for name in ("weight", "rate", "mode", "unknown"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"no field '{name}'|fm.replace\\(tree, {{'{name}'"):
            setattr(tree, name, 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="weight"):
        del tree.weight


@pytest.mark.parametrize(
    "arguments, named, message",
    [
        ((), {}, r"Layer is missing n: write Layer\(n=…\)"),
        ((1, 2, 3, 4), {}, r"Layer takes 3 arguments by position \(n, weight, scale\), got 4"),
        ((1,), {"n": 2, "weight": 3}, r"Layer got n twice, by position and by name"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, message):
    with pytest.raises(TypeError, match=message):
        Layer(*arguments, **named)


def test_a_field_without_default_after_one_with_a_default_is_refused():
    with pytest.raises(TypeError, match=r"Made.weight has no default but follows rate.*change their order"):

        class Made(fm.Model):
            rate: float = 0.1
            weight: jax.Array


def test_pickling_and_copying():
    tree = Layer(3, jnp.arange(3.0))
    for again in (pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree), copy.copy(tree)):
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        np.testing.assert_array_equal(again.weight, tree.weight)
    mode = fm.bind(tree, fm.Train(jax.random.PRNGKey(0))).mode
    assert type(pickle.loads(pickle.dumps(mode))) is fm.Train


def test_a_repr_has_no_numbers_of_arrays():
    big = Layer(3, jnp.full((40, 2), 7.125))
    assert repr(big) == "Layer(n=3, weight=f32[40, 2], scale=1.0)"
    nested = [big, {"a": np.full(3, 7.125)}, (Foreign(jnp.full(3, 7.125)),), Point(jnp.full(3, 7.125), None)]
    assert "7.125" not in short(nested)
    assert "Layer(n=3" in short(nested)
    assert "mode" not in repr(fm.bind(big, fm.Eval()))


# As pytrees


def arrays(shape=(2,)):
    return st.integers(0, 1000).map(lambda v: np.full(shape, v, np.float32))


def trees(inner):
    names = st.sampled_from("abcdefg")
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=3),
        st.dictionaries(names, inner, max_size=3).map(lambda d: collections.OrderedDict(reversed(d.items()))),
        st.dictionaries(st.integers(0, 20), inner, max_size=3),
        st.tuples(inner, inner).map(lambda pair: Point(*pair)),
        st.tuples(inner, inner).map(lambda pair: Foreign(*pair)),
        inner.map(Anything),
        inner.map(Whole),
        inner.map(fm.Frozen),
        inner.map(Plain),
        arrays().map(fm.Parameter),
        arrays().map(fm.Buffer),
    )


class Anything(fm.Model):
    inside: list
    count: int = 3


class Whole(fm.System):
    inside: list
    rate: float = 0.5
    hidden: Any = fm.hyper(default=None)


class Plain(Tree):
    inside: list


ANY = st.recursive(st.one_of(arrays(), st.none(), st.floats(0, 1)), trees, max_leaves=12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ANY)
def test_leaves_are_those_of_jax_in_its_order(tree):
    found = leaves(tree)
    expected = jax.tree.leaves(tree)
    assert len(found) == len(expected)
    assert all(a.value is b for a, b in zip(found, expected))
    places = [leaf.path for leaf in found]
    assert len(set(places)) == len(places)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ANY)
def test_every_leaf_is_found_and_replaced_by_its_path(tree):
    for i, leaf in enumerate(leaves(tree)):
        if not leaf.path:
            continue
        there = get(tree, leaf.path)
        assert (there.value if isinstance(there, fm.Parameter | fm.Buffer) else there) is leaf.value
        new = remake(there, {"value": -1.0}) if isinstance(there, fm.Parameter | fm.Buffer) else -1.0
        again = fm.replace(tree, {leaf.path: new})
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        changed = [j for j, (a, b) in enumerate(zip(jax.tree.leaves(tree), jax.tree.leaves(again))) if a is not b]
        assert changed == [i]
        assert jax.tree.leaves(again)[i] == -1.0


def test_a_buffer_or_parameter_may_hold_a_tree():
    tree = Anything([fm.Buffer({"mean": jnp.ones(2), "count": jnp.int32(3)})])
    assert [leaf.path for leaf in leaves(tree)] == ["inside.0.count", "inside.0.mean"]


def test_static_fields_are_part_of_the_structure():
    assert jax.tree.structure(Layer(3)) != jax.tree.structure(Layer(4))
    assert jax.tree.structure(Layer(3)) == jax.tree.structure(Layer(3))
    assert jax.tree.leaves(Layer(3, scale=2.0)) == [2.0]


# Roles


def roles(tree):
    return {leaf.path: leaf.role for leaf in leaves(tree)}


def test_what_is_trained():
    one = jnp.ones(2)
    integers = jnp.ones(2, jnp.int32)

    class Deep(fm.System):
        model: Layer
        foreign: Foreign
        array: jax.Array
        rate: float
        parameter: fm.Parameter
        buffer: fm.Buffer
        frozen: fm.Frozen
        ordered: collections.OrderedDict
        teacher: Any = fm.hyper()

    class Mixed(fm.Model):
        array: jax.Array
        counts: jax.Array
        many: dict
        rate: float
        prior: jax.Array = fm.hyper()
        batch: Any = fm.hyper(default=None)

    mixed = Mixed(one, integers, {"a": [one, 0.5], "b": Plain([one])}, 0.1, one)
    assert roles(mixed) == {
        "array": "parameter",
        "counts": "hyperparameter",
        "many.a.0": "parameter",
        "many.a.1": "hyperparameter",
        "many.b.inside.0": "parameter",
        "rate": "hyperparameter",
        "prior": "hyperparameter",
    }
    frozen = fm.Frozen(Anything([mixed, fm.Buffer(one), fm.Parameter(one)]))
    deep = Deep(
        Layer(2, one),
        Foreign(one, [integers, {"x": one}]),
        one,
        0.1,
        fm.Parameter(one),
        fm.Buffer(one),
        frozen,
        collections.OrderedDict(b=one),
        teacher=Layer(2, one),
    )
    found = roles(deep)
    assert found == {
        "model.weight": "parameter",
        "model.scale": "hyperparameter",
        "foreign.kernel": "parameter",
        "foreign.inner.0": "hyperparameter",
        "foreign.inner.1.x": "parameter",
        "array": "hyperparameter",
        "rate": "hyperparameter",
        "parameter": "parameter",
        "buffer": "buffer",
        "frozen.part.inside.0.array": "frozen",
        "frozen.part.inside.0.counts": "hyperparameter",
        "frozen.part.inside.0.many.a.0": "frozen",
        "frozen.part.inside.0.many.a.1": "hyperparameter",
        "frozen.part.inside.0.many.b.inside.0": "frozen",
        "frozen.part.inside.0.rate": "hyperparameter",
        "frozen.part.inside.0.prior": "hyperparameter",
        "frozen.part.inside.1": "frozen",
        "frozen.part.inside.2": "frozen",
        "ordered.b": "hyperparameter",
        "teacher.weight": "hyperparameter",
        "teacher.scale": "hyperparameter",
    }
    assert fm.count_parameters(deep) == 2 * sum(role == "parameter" for role in found.values())


def test_shapes_count_as_arrays():
    shape = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    assert roles(Layer(3, shape))["weight"] == "parameter"
    assert fm.count_parameters(Layer(3, shape)) == 12


def test_the_leaves_of_a_state_are_those_of_its_system():
    state = fm.setup(
        fm.Classifier(fm.models.Chain(fm.models.BatchNorm(4), fm.Frozen(fm.models.Dense(4, 3)))),
        (np.ones((8, 4), np.float32), np.zeros(8, int)),
        optimizer=optax.adam,
        lr=0.1,
    )
    assert leaves(state) == leaves(state.system) and fm.count_parameters(state) == 8
    assert {leaf.role for leaf in leaves(state)} == {"parameter", "buffer", "frozen", "hyperparameter"}


# By path


class Net(fm.Model):
    layers: list[Layer]
    named: dict


def net():
    return Net([Layer(1, jnp.ones(1)), Layer(2, jnp.ones(2))], {"a.b": Layer(3), "a": Layer(4)})


def test_get_and_replace():
    assert get(net(), "layers.1.n") == 2
    assert get(net(), "named.a.b.n") == 3
    assert get(net(), "named.a.n") == 4
    assert get(net(), "") is not None
    new = fm.replace(net(), {"layers.1.weight": None, "named.a.b": Layer(9), "layers.0.n": 8}, named=net().named)
    assert (new.layers[1].weight, new.layers[0].n, new.named["a.b"].n) == (None, 8, 3)
    assert type(new.layers) is list


def test_names_that_are_no_strings():
    tree = {3: Layer(1), 20: [Layer(2)]}
    assert get(tree, "20.0.n") == 2
    assert fm.replace(tree, {"3.n": 5, "20.0.scale": 0.5})[3].n == 5
    assert set(fm.replace(tree, {"3.n": 5})) == {3, 20}


def test_named_tuples_and_foreign_trees_by_name():
    tree = Anything([Point(Layer(1), Foreign([Layer(2)]))])
    assert get(tree, "inside.0.y.kernel.0.n") == 2
    new = fm.replace(tree, {"inside.0.y.kernel.0.n": 3, "inside.0.x.n": 4})
    assert isinstance(new.inside[0], Point)
    assert isinstance(new.inside[0].y, Foreign)
    assert (new.inside[0].x.n, new.inside[0].y.kernel[0].n) == (4, 3)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("layer", ["'layer'", "Net", "layers, named"]),
        ("layers.2", ["'2'", "layers", "0, 1"]),
        ("layers.0.wieght.x", ["'wieght.x'", "layers.0", "n, weight, scale"]),
        ("named.c", ["'c'", "named", "a, a.b"]),
        ("layers.0.n.x", ["'x'", "layers.0.n", "no fields"]),
        ("mode", ["'mode'"]),
    ],
)
def test_a_path_to_nothing_says_what_is_there(path, words):
    for call in (lambda: get(net(), path), lambda: fm.replace(net(), {path: 1})):
        with pytest.raises(KeyError) as caught:
            call()
        assert all(word in str(caught.value) for word in words), caught.value


def test_children_are_named_as_paths_are():
    assert [name for name, _ in children(Layer(1))] == ["n", "weight", "scale"]
    assert [name for name, _ in children(Point(1, 2))] == ["x", "y"]
    assert list(children(3)) == []


def test_components_by_path():
    tree = Whole([net(), {"x": (Layer(1), Point(Layer(2), None))}, Foreign(Layer(3))])
    assert [path for path, _ in components(tree)] == [
        "",
        "inside.0",
        "inside.0.layers.0",
        "inside.0.layers.1",
        "inside.0.named.a",
        "inside.0.named.a.b",
        "inside.1.x.0",
        "inside.1.x.1.x",
        "inside.2.kernel",
    ]
    assert list(named_parts(tree, fm.Model)) == ["inside.0", "inside.1.x.0", "inside.1.x.1.x", "inside.2.kernel"]


# Checks


def test_one_layer_at_two_paths():
    layer = Layer(2, jnp.ones(2))
    with pytest.raises(ValueError, match=r"the same Layer is at 'inside.0' and at 'inside.1.x'"):
        check_fields(Anything([layer, {"x": layer}]))
    check_fields(Anything([layer, Layer(2, jnp.ones(2))]))


def test_one_description_at_two_paths():
    class Drawn(fm.Model):
        weight: jax.Array | None = None

    @fm.init.dispatch
    def _(layer: Drawn, key):
        return fm.replace(layer, weight=jnp.ones(2))

    drawn, plain = Drawn(), Layer(2)
    with pytest.raises(ValueError, match="the same Drawn is at"):
        check_fields(Anything([drawn, drawn]))
    check_fields(Anything([plain, plain]))  # it owns nothing


def test_one_array_at_two_paths():
    one = jnp.ones(2)
    with pytest.raises(ValueError, match=r"the same array is at 'inside.0.weight' and at 'inside.1.weight'"):
        check_fields(Anything([Layer(2, one), Layer(2, one)]))
    check_fields(Whole([one, one]))  # hyperparameters may be


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (Anything([Layer("three", "weights")]), ["inside.0.weight", "'weights'", "a number, an array or a component"]),
        (Anything([jnp.tanh, len]), ["inside.0", "tanh"]),
        (Anything([[], {"a": lambda x: x}]), ["inside.1.a", "number, an array or a component"]),
        (Layer([1, 2]), ["n is static", "list", "tuple"]),
        (Layer(jnp.ones(2)), ["n is static", "must be hashable"]),
        (Layer((1, np.ones(2))), ["n is static", "must be hashable"]),
        (Layer(Layer(2, jnp.ones(2))), ["n is static", "Layer", "must not hold data"]),
    ],
    ids=["string", "function", "lambda", "list", "array", "array in tuple", "component"],
)
def test_values_that_do_not_fit_their_field(tree, words):
    with pytest.raises(TypeError) as caught:
        check_fields(tree)
    assert all(word in str(caught.value) for word in words), caught.value


# What is drawn


class Pretrained(fm.Model):
    a: jax.Array | None = None
    b: jax.Array | None = None
    foreign: Any = fm.hyper(default=None)


@fm.init.dispatch
def _(model: Pretrained, key):
    return fm.replace(model, a=jax.random.normal(key, (2,)), b=jnp.zeros(3))


def test_init_keeps_what_is_there(key):
    there = Pretrained(a=jnp.full(2, 7.0))
    tree = fm.init(Anything([there, Pretrained()]), key)
    np.testing.assert_array_equal(tree.inside[0].a, 7.0)
    assert tree.inside[0].b.shape == (3,)
    assert tree.inside[1].a.shape == (2,)
    assert (tree.inside[0].a != tree.inside[1].a).all()
    assert missing(tree) == []


def test_what_is_missing():
    tree = Anything([Pretrained(a=jnp.ones(2)), Pretrained()])
    assert missing(tree) == ["inside.0.b", "inside.1.a", "inside.1.b"]
    with pytest.raises(ValueError, match=r"evaluate needs .*this Anything has no 'inside.0.b' and 2 more yet.*fm.init"):
        require_arrays(tree, "evaluate")
    require_arrays(Anything([Pretrained(jnp.ones(2), jnp.ones(3))]), "evaluate")


def test_what_is_missing_beside_leaves_that_are_no_arrays():
    """As in another library's models, whose functions are leaves."""
    assert missing(Pretrained(foreign=Foreign(jnp.tanh))) == ["a", "b"]


def test_siblings_draw_by_their_names(key):
    """So another layer changes nobody's parameters."""
    one = fm.init(Net([], {"a": Pretrained(), "b": Pretrained()}), key)
    two = fm.init(Net([Pretrained()], {"a": Pretrained(), "aa": Pretrained(), "b": Pretrained()}), key)
    for name in "ab":
        np.testing.assert_array_equal(one.named[name].a, two.named[name].a)
    assert (one.named["a"].a != one.named["b"].a).all()

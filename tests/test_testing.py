"""`fm.testing`: its systems train, its checks pass what is right and find what is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fulmen.callbacks import due, on

import fulmen as fm
import fulmen.testing
from fulmen import dispatch
from fulmen.testing import check_attack, check_component, check_layer, check_objective, systems, tiny

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(3, 4, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("kind", systems())
def test_the_tiny_systems_set_up(kind):
    system, data = tiny(kind)
    assert fm.count_parameters(fm.setup(system, data, optimizer=optax.sgd, lr=0.1).system) < 500


@pytest.mark.parametrize(
    "kind",
    [
        # An average of a classifier with batch norm and dropout, a teacher of two kinds of data, two tasks with weights.
        *("pair", "gan", "alternating", "population", "ema", "semi_supervised", "vqvae", "byol", "weighted")
    ],
)
def test_the_tiny_systems_pass_all_checks(kind):
    check_component(*tiny(kind))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="did you mean 'classifier'"):
        tiny("clasifier")


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (fm.models.Dropout(0.5), [X]),
        (fm.models.Flatten(), [IMAGES]),
        (fm.models.Embedding(5, 3), [np.arange(5)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers(layer, inputs):
    check_layer(layer, *inputs)


class Added(fm.Model):
    factor: jax.Array | None = None


@dispatch
def init(layer: Added, key):
    return fm.replace(layer, factor=jnp.ones(()))


@dispatch
def forward(layer: Added, x, y):
    return layer.factor * x + y


def test_a_layer_of_several_inputs():
    check_layer(Added(), X, X)


def test_objectives_and_attacks():
    check_objective(fm.L2())
    check_attack(fm.FGSM(fm.LinfBall(0.1) & fm.Box(0.0, 1.0), start=fm.attacks.Uniform()))
    with pytest.raises(TypeError, match="together"):
        check_attack(fm.FGSM(fm.LinfBall(0.1)), tiny()[0])


# Each check finds the defect that it is for.


class Layer(fm.Model):
    """A linear layer; each subclass below has one defect."""

    weight: jax.Array | None = None


@dispatch
def init(layer: Layer, key):
    return fm.replace(layer, weight=jax.random.normal(key, (4, 2)))


@dispatch
def forward(layer: Layer, x):
    return x @ layer.weight


class Unfinished(Layer):
    pass


@dispatch
def forward(layer: Unfinished, x):
    return (x @ layer.weight) / 0.0


class Drawing(Layer):
    pass


@dispatch
def forward(layer: Drawing, x):
    return x @ layer.weight * np.float32(np.random.default_rng().normal())


class Branching(Layer):
    pass


@dispatch
def forward(layer: Branching, x):
    return x @ layer.weight * (2.0 if isinstance(layer.weight, jax.core.Tracer) else 1.0)


class Changing(Layer):
    pass


@dispatch
def forward(layer: Changing, x):
    if isinstance(x, np.ndarray):
        x[0] += 1.0
    return x @ layer.weight


class Wholly(Layer):
    pass


@dispatch
def forward(layer: Wholly, x):
    return jnp.round(x @ layer.weight).astype(jnp.int32)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Unfinished, "not finite|nan|inf"),
        (Drawing, "again for the same key"),
        (Branching, "without jit and with it"),
        (Changing, "verbs are pure"),
        (Wholly, "int32"),
    ],
)
def test_wrong_layers_are_found(kind, words):
    with pytest.raises(AssertionError, match=words):
        check_layer(kind(), X.copy())


def test_a_zero_gradient_is_a_warning():
    class Stopped(Layer):
        pass

    @dispatch
    def forward(layer: Stopped, x):
        return x * jnp.sum(layer.weight) * 0.0 + x

    with pytest.raises((UserWarning, AssertionError), match="gradient: exactly 0"):
        check_layer(Stopped(), X)


class Centred(fm.Objective):
    """Declares itself per example, and is not."""

    per_example = True


@dispatch
def loss(term: Centred, prediction):
    return jnp.mean((prediction.outputs - prediction.outputs.mean(0)[None]) ** 2, -1)


class Flat(fm.Objective):
    per_example = True


@dispatch
def loss(term: Flat, prediction):
    return jnp.sign(prediction.outputs).mean(-1)


class Square(fm.Objective):
    per_example = True


@dispatch
def loss(term: Square, prediction):
    return prediction.outputs**2


@pytest.mark.parametrize(
    ("kind", "words"), [(Centred, "that half alone"), (Flat, "0 everywhere"), (Square, r"shape \(20, 3\)")]
)
def test_wrong_objectives_are_found(kind, words):
    with pytest.raises(AssertionError, match=words):
        check_objective(kind())


class Coupled(fm.Classifier):
    """Its metric depends on the whole batch."""


@dispatch
def metrics(system: Coupled, batch):
    return {"spread": fm.Mean(batch.x.std(), batch.weight if batch.weight is None else batch.weight.sum())}


Coupled.per_example = True


def test_a_system_that_wrongly_declares_per_example_is_found():
    system, data = tiny("classifier")
    with pytest.raises(AssertionError, match="'spread' of all 20 examples"):
        check_component(Coupled(system.model), data)


class Outside(fm.FGSM):
    """Leaves its region."""


@dispatch
def perturb(attack: Outside, system, batch, key):
    return fm.replace(batch, x=batch.x + 1.0)


class Together(fm.FGSM):
    """Takes the whole batch's mean for every example."""


@dispatch
def perturb(attack: Together, system, batch, key):
    return fm.replace(batch, x=fm.attacks.project(attack.region, batch.x + batch.x.mean(0)[None] - 0.5, batch.x))


class Relabelling(fm.FGSM):
    """Changes the targets."""


@dispatch
def perturb(attack: Relabelling, system, batch, key):
    return fm.replace(batch, y=batch.y * 0)


@pytest.mark.parametrize(
    ("kind", "words"), [(Outside, "nearest points"), (Together, "by themselves"), (Relabelling, "other than x")]
)
def test_wrong_attacks_are_found(kind, words):
    with pytest.raises(AssertionError, match=words):
        check_attack(kind(fm.LinfBall(0.1)))


def test_the_package_is_loaded_lazily():
    assert fm.testing is fulmen.testing
    with pytest.raises(AttributeError, match="no attribute 'tesing'"):
        fm.tesing  # noqa: B018


def test_a_killed_run_is_resumed_exactly():
    system, data = tiny("batch_norm_and_dropout")
    fulmen.testing.check_resumes(
        system, data, optimizer=optax.adam, lr=1e-2, epochs=2, batch_size=10, callbacks=[Forgetful([])]
    )


@dataclasses.dataclass
class Forgetful:
    """Changes the state by something that it does not remember."""

    seen: list
    factor: float = 1.0


@dispatch
def due(callback: Forgetful):
    return fm.Every(steps=1)


@dispatch
def on(event: fm.Due, callback: Forgetful, run):
    callback.seen.append(run.step)
    if callback.factor != 1.0 and len(callback.seen) == 3:
        run.state = jax.tree.map(lambda v: v * callback.factor if v.dtype == jnp.float32 else v, run.state)


def test_a_callback_that_forgets_is_found():
    system, data = tiny("classifier")
    with pytest.raises(AssertionError, match=r"differs.*(history|weight)"):
        fulmen.testing.check_resumes(
            system, data, kills=1, optimizer=optax.adam, lr=1e-2, epochs=2, batch_size=10, callbacks=[Forgetful([], 0.5)]
        )
    with pytest.raises(TypeError, match="picklable"):
        fulmen.testing.check_resumes(system, lambda: data, optimizer=optax.adam, lr=1e-2, epochs=2)

"""Numbers that are changed between two runs: they take effect, and nothing is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import Compilations, data, net, pair

import fulmen as fm
from fulmen.optimizers import layerwise, unfreeze

RUN = {"epochs": 1, "batch_size": 25, "progress": False}


def fitted(state):
    """The state after an epoch, its history, and the names of the programs that were compiled for it."""
    with Compilations() as compiled:
        after, history = fm.fit(state, data(), **RUN)
    return after, history, [name for name in compiled.names if "program" in name or "step" in name]


def classifier(penalty):
    return fm.Classifier(fm.models.Dense(4, 3), fm.CrossEntropy(smoothing=0.1) + 1e-3 * penalty)


def adversarial(steps):
    return fm.Adversarial(classifier(fm.L2()), fm.PGD(fm.LinfBall(0.1), step_size=0.05, steps=steps))


def sgd(**options):
    return fm.optimizers.Optimizer(optax.sgd, 0.1, **options)


@pytest.mark.parametrize(
    ("component", "optimizer", "path", "value"),
    [
        (net(), sgd(), "optimizer.lr", 0.01),
        (net(), sgd(momentum=0.9), "optimizer.numbers.momentum", 0.1),
        (
            net(),
            fm.optimizers.Optimizer(optax.adamw, 0.1, weight_decay=0.1, mask=fm.objectives.kernels),
            "optimizer.numbers.weight_decay",
            0.9,
        ),
        (net(), fm.optimizers.Optimizer(optax.sgd, fm.cosine(0.1)), "optimizer.schedule.peak", 0.01),
        (net(), fm.optimizers.Optimizer(optax.sgd, fm.one_cycle(0.1)), "optimizer.schedule.start", 0.5),
        (pair(), {"one.layer": sgd(), "": fm.frozen}, "optimizer.one.layer.lr", 0.01),
        (pair(), {"one.layer": sgd(), "": sgd()}, "optimizer..lr", 0.01),
        (pair(), {"one": {"layer.weight": sgd()}, "**.bias": sgd(), "": fm.frozen}, "optimizer.**.bias.lr", 0.01),
        (net(), layerwise(sgd(), decay=0.5), "optimizer.optimizer.lr", 0.01),
        (pair(), {"one": layerwise(sgd(), decay=0.5), "two": sgd()}, "optimizer.one.optimizer.lr", 0.01),
        (net(), unfreeze(sgd(), at=1), "optimizer.optimizer.lr", 0.01),
        (net(), fm.plateau(sgd()), "optimizer.optimizer.lr", 0.01),
        (net(), fm.plateau(layerwise(unfreeze(sgd(), at=1), decay=0.5)), "optimizer.optimizer.optimizer.optimizer.lr", 0.01),
        (
            net(),
            optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
            "optimizer_state.0.hyperparams.learning_rate",
            0.01,
        ),
        (classifier(fm.L2()), sgd(), "system.objective.terms.1.weight", 2.0),
        (classifier(fm.L1()), sgd(), "system.objective.terms.0.smoothing", 0.5),
        (adversarial(2), sgd(), "system.attack.region.eps", 0.3),
        (adversarial(3), sgd(), "system.attack.step_size", 0.3),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_number_is_changed_between_two_runs(component, optimizer, path, value):
    state = fm.setup(component, data(), optimizer=optimizer, epochs=1, batch_size=25)
    first, _, compiled = fitted(state)
    assert compiled  # the names that are looked for are those of the step
    new = jnp.asarray(value, jax.tree.leaves(fm.get(state, path))[0].dtype) if "state" in path else value
    changed, history, compiled = fitted(fm.replace(state, {path: new}))
    assert not compiled
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first.system), jax.tree.leaves(changed.system), strict=True)
    )
    if path.endswith((".lr", "learning_rate")):
        assert any(rates[0] == pytest.approx(0.01) for name, rates in history.items() if name.startswith("lr"))


def test_the_decay_of_layers_is_data():
    model = fm.models.MLP(4, 4, 3)
    system = fm.Classifier(model, fm.CrossEntropy())
    state = fm.setup(system, data(), optimizer=layerwise(optax.sgd, decay=1.0), lr=0.1, epochs=1, batch_size=25)
    first, _, compiled = fitted(state)
    assert compiled
    still, _, compiled = fitted(fm.replace(state, {"optimizer.decay": 0.0}))
    assert not compiled
    before, after, moved = (s.system.model.layers[0].weight for s in (state, still, first))
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(before, moved)


def test_equal_optimizers_made_anew_are_one_to_jit():
    def made():
        optimizer = {"one": layerwise(sgd(), decay=0.5), "**.bias": unfreeze(sgd(), at=1), "": fm.plateau(sgd())}
        return fm.setup(pair(), data(), optimizer=optimizer, epochs=1, batch_size=25)

    _, _, compiled = fitted(made())
    assert compiled
    _, _, compiled = fitted(made())
    assert not compiled

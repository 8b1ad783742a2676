"""The guard against catastrophic overfitting: provoked on digits, and with given accuracies."""

import warnings

import numpy as np
import optax
import pytest
from tiny import data, net

import fulmen as fm
from fulmen.robust.defences import OverfittingGuard, fast_fgsm
from fulmen.robust.defences.adversarial import AttackSchedule

REGION = fm.LinfBall(0.1) & fm.Box(0.0, 1.0)
PGD = fm.PGD(REGION, 0.04, 5)


def test_training_with_random_starts_ends_robust_to_its_own_attack_only():
    """The catastrophic overfitting of Wong, Rice and Kolter, by steps that grow to half the range from black to white; the guard
    uses a fifth of that. With stop=False it only warns."""
    digits = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, y = (digits[0] / 16).astype(np.float32), digits[1]
    grown = optax.linear_schedule(0.05, 0.5, 250)
    attack = AttackSchedule(lambda step: fast_fgsm(fm.LinfBall(grown(step)) & fm.Box(0.0, 1.0)))
    guard = OverfittingGuard(PGD, (x[:64], y[:64]), stop=False)
    system = fm.Adversarial(fm.Classifier(fm.models.MLP(64, 128, 128, 10)), attack)
    with pytest.warns(UserWarning, match="catastrophic overfitting: after epoch"):
        state, history = fm.fit(
            system, (x[:1024], y[:1024]), optimizer=optax.adam, lr=3e-3, epochs=20, progress=False, callbacks=[guard]
        )
    assert guard.found is not None and len(history["loss"]) == 20
    shares, in_training = [*guard.accuracy.values()], history["robust/accuracy"]
    assert max(shares) > 0.6 and shares[-1] < 0.25 < 0.4 < in_training[-1]
    assert all(max(shares[:i]) - v <= 0.2 for i, v in enumerate(shares[1 : guard.found], 1))
    assert max(shares[: guard.found]) - shares[guard.found] > 0.2
    assert guard.robust_accuracy(guard.best) == pytest.approx(max(shares), abs=0.02)
    assert guard.robust_accuracy(state) < guard.robust_accuracy(guard.best) - 0.15


class Scripted(OverfittingGuard):
    """A guard with given robust accuracies."""

    def __init__(self, shares, **options):
        super().__init__(fm.PGD(fm.LinfBall(0.1), 0.1, 1), data(), **options)
        self.shares = iter(shares)

    def robust_accuracy(self, state):
        return next(self.shares)


@pytest.mark.parametrize(
    ("shares", "options", "seen", "found"),
    [
        ([0.5, 0.6, 0.35, 0.1], {}, 3, 2),
        ([0.5, 0.6, 0.45, 0.5], {}, 4, None),
        ([0.5, 0.6, 0.45, 0.5], {"drop": 0.1}, 3, 2),
        ([0.5, 0.6, 0.1, 0.0], {"stop": False}, 4, 2),
        ([0.6, 0.1], {"every": 2}, 2, 3),
    ],
)
def test_the_drop_is_measured_from_the_best_so_far(shares, options, seen, found):
    guard = Scripted(shares, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, history = fm.fit(net(), data(), optimizer=optax.sgd, lr=0.1, epochs=4, progress=False, callbacks=[guard])
    assert guard.found == found and len(guard.accuracy) == seen
    assert len(history["loss"]) == (4 if found is None or not options.get("stop", True) else found + 1)
    assert sum("catastrophic overfitting" in str(w.message) for w in caught) == (found is not None)
    best = max(range(len(guard.accuracy)), key=lambda i: [*guard.accuracy.values()][i])
    epoch = [*guard.accuracy][best]
    assert int(guard.best.step) == 2 * (epoch + 1)

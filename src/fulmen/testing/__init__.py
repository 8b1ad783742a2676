"""Helpers for tests of user-defined types: tiny systems with data, and checks of layers, losses, attacks, systems and data.

A layer, an objective and an attack are checked alone; a system, or a model with a loss, is checked on data:

>>> fm.testing.check_layer(fm.models.LayerNorm(4), jax.random.normal(jax.random.key(0), (5, 4)))
>>> fm.testing.check_component(*fm.testing.tiny("classifier"))

`check_objective(fm.CrossEntropy(smoothing=0.1))` and `check_attack(fm.FGSM(fm.LinfBall(0.1)))` use the tiny classifier.

Each check raises an `AssertionError` that names the property that does not hold.
"""

from fulmen.testing.component_checks import check_component, check_layer
from fulmen.testing.part_checks import check_attack, check_objective, check_source
from fulmen.testing.resume_check import check_resumes
from fulmen.testing.tiny_systems import systems, tiny

__all__ = [
    "check_attack",
    "check_component",
    "check_layer",
    "check_objective",
    "check_resumes",
    "check_source",
    "systems",
    "tiny",
]


def __dir__() -> list[str]:
    return sorted(__all__)

"""For tests of one's own types: tiny systems with data, and what every layer, loss, attack or system has to keep to.

A layer, an objective and an attack are checked by themselves, a system, or a model with a loss, on data:

>>> fm.testing.check_layer(fm.models.LayerNorm(4), jax.random.normal(jax.random.key(0), (5, 4)))
>>> fm.testing.check_component(*fm.testing.tiny("classifier"))

`check_objective(fm.CrossEntropy(smoothing=0.1))` and `check_attack(fm.FGSM(fm.LinfBall(0.1)))` go by the tiny classifier.

Each raises an `AssertionError` that says what does not hold.
"""

from fulmen.testing.component_checks import *
from fulmen.testing.tiny_systems import *

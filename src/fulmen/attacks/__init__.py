"""Attacks: regions, optax chains on the input's gradient, attacks that go by steps, and `perturb`."""

from fulmen.attacks.apgd import *
from fulmen.attacks.attack import *
from fulmen.attacks.autoattack import *
from fulmen.attacks.balls import *
from fulmen.attacks.carlini_wagner import *
from fulmen.attacks.deepfool import *
from fulmen.attacks.ensemble import *
from fulmen.attacks.fab import *
from fulmen.attacks.function import *
from fulmen.attacks.gradient import *
from fulmen.attacks.hyperplane import *
from fulmen.attacks.iterated import *
from fulmen.attacks.minimal import *
from fulmen.attacks.problem import *
from fulmen.attacks.projections import *
from fulmen.attacks.region import *
from fulmen.attacks.square import *
from fulmen.attacks.target import *
from fulmen.attacks.view import *
from fulmen.attacks.walk import *

"""Attacks: regions, optax chains on the input's gradient, attacks that go by steps, and `perturb`."""

from fulmen.robust.attacks.adversarial_function import *
from fulmen.robust.attacks.apgd import *
from fulmen.robust.attacks.attack import *
from fulmen.robust.attacks.attack_loop import *
from fulmen.robust.attacks.autoattack import *
from fulmen.robust.attacks.balls import *
from fulmen.robust.attacks.carlini_wagner import *
from fulmen.robust.attacks.deepfool import *
from fulmen.robust.attacks.ensemble import *
from fulmen.robust.attacks.fab import *
from fulmen.robust.attacks.gradient import *
from fulmen.robust.attacks.hyperplane import *
from fulmen.robust.attacks.input_transform import *
from fulmen.robust.attacks.iterated import *
from fulmen.robust.attacks.minimal import *
from fulmen.robust.attacks.problem import *
from fulmen.robust.attacks.projections import *
from fulmen.robust.attacks.region import *
from fulmen.robust.attacks.square import *
from fulmen.robust.attacks.targets import *

"""Fulmen: composable systems of models, trained in JAX by verbs that dispatch on types."""

__version__ = "0.1.0"

from fulmen import models
from fulmen.attacks import *
from fulmen.augmentations import *
from fulmen.batch import *
from fulmen.check import *
from fulmen.component import *
from fulmen.data import *
from fulmen.dispatch import *
from fulmen.leaves import *
from fulmen.looking import *
from fulmen.mergeable import *
from fulmen.metrics import *
from fulmen.mode import *
from fulmen.objectives import *
from fulmen.optimizers import *
from fulmen.schedules import *
from fulmen.systems import *
from fulmen.systems.adversarial import *
from fulmen.systems.composition import *
from fulmen.train import *
from fulmen.train.checkpoint import *
from fulmen.tree import *
from fulmen.verbs import *

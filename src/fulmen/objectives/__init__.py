"""Objectives: loss terms that add up, `CrossEntropy(smoothing=0.1) + 1e-4 * L2()`, and print as the formula they are."""

from fulmen.core.prediction import *
from fulmen.objectives.algebra import *
from fulmen.objectives.classification import *
from fulmen.objectives.contrastive import *
from fulmen.objectives.margins import *
from fulmen.objectives.penalties import *
from fulmen.objectives.regression_losses import *

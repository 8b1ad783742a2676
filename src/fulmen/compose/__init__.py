"""How parts make a whole: losses of systems, supervised systems, games, populations."""

from fulmen.compose.game import *
from fulmen.compose.losses import *
from fulmen.compose.supervised import *

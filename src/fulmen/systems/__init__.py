"""Systems: components put together for a task."""

from fulmen.systems.classifier import *
from fulmen.systems.composition import *
from fulmen.systems.game import *
from fulmen.systems.language import *
from fulmen.systems.regressor import *

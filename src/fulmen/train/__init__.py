"""Training: state, step, loop, events."""

from fulmen.core.state import *
from fulmen.train import loop as loop
from fulmen.train.events import *
from fulmen.train.history import *
from fulmen.train.setup import *
from fulmen.train.step import *

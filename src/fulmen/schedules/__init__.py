"""Learning rates over a run: functions of the plan, written over optax's schedules, which are functions of the step."""

from fulmen.schedules.schedule import *
from fulmen.schedules.shapes import *

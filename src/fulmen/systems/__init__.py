"""Systems: components put together for a task."""

from fulmen.systems.language import *
from fulmen.systems.regressor import *

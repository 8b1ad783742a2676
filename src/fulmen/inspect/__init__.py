"""Looking at things: summaries, loss trees, what was dispatched where, as text, in pictures and in notebooks."""

from fulmen.inspect import outline as outline
from fulmen.inspect.curves import *
from fulmen.inspect.explanation import *
from fulmen.inspect.loss_bars import *
from fulmen.inspect.loss_nodes import *
from fulmen.inspect.methods_table import methods_table as methods_table
from fulmen.inspect.schedule_plot import *
from fulmen.inspect.table import *

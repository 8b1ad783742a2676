"""Looking at things: summaries, loss trees, which methods were chosen, checks, plots, notebooks."""

from fulmen.inspect import curves, loss_bars, outline, schedule_plot  # for their methods of `plot` and `show`
from fulmen.inspect.explanation import explain
from fulmen.inspect.loss_nodes import LossNode, loss_tree
from fulmen.inspect.preflight import check
from fulmen.inspect.table import summary
from fulmen.inspect.verb_table import methods_table

__all__ = ["LossNode", "check", "explain", "loss_tree", "methods_table", "summary"]

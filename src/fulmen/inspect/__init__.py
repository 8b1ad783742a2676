"""Summaries, loss trees, explanations of dispatch, checks, plots and HTML for notebooks."""

from fulmen.inspect import curves, loss_bars, outline, schedule_plot, tune_plots  # register methods of `plot` and `show`
from fulmen.inspect.explanation import explain
from fulmen.inspect.leaf_summary import summary
from fulmen.inspect.loss_nodes import LossNode, loss_tree
from fulmen.inspect.preflight import check
from fulmen.inspect.verb_table import methods_table

__all__ = ["LossNode", "check", "explain", "loss_tree", "methods_table", "summary"]

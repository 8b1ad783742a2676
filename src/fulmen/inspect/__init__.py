"""Summaries, loss trees, explanations of dispatch, checks, plots and HTML for notebooks."""

from fulmen.core.verbs import summary
from fulmen.inspect import curves, leaf_summary, outline, plots, tune_plots  # register methods of their verbs
from fulmen.inspect.explanation import explain, methods_table
from fulmen.inspect.loss_nodes import LossNode, loss_tree
from fulmen.inspect.preflight import check

__all__ = ["LossNode", "check", "explain", "loss_tree", "methods_table", "summary"]

"""Summaries, loss trees, explanations of dispatch, checks, plots and HTML for notebooks."""

from fulmen.inspect import curves, outline, plots  # register methods of `plot` and `show`
from fulmen.inspect.explanation import explain, methods_table
from fulmen.inspect.leaf_summary import summary
from fulmen.inspect.loss_nodes import LossNode, loss_tree
from fulmen.inspect.preflight import check

__all__ = ["LossNode", "check", "explain", "loss_tree", "methods_table", "summary"]

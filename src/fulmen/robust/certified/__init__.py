"""Certificates: lower bounds of robust accuracy, by interval bounds and by randomized smoothing, and training for them."""

from fulmen.core.verbs import certify, margin_bounds
from fulmen.robust.certified import certification as _certification  # registers the methods of `certify`
from fulmen.robust.certified import interval_layers as _interval_layers  # registers the bounds of layers
from fulmen.robust.certified import output_margins as _output_margins  # registers the bounds of margins
from fulmen.robust.certified.certificate import Certificate
from fulmen.robust.certified.ibp import IBP
from fulmen.robust.certified.interval import Interval
from fulmen.robust.certified.smoothed import Smoothed

__all__ = ["Certificate", "IBP", "Interval", "Smoothed", "certify", "margin_bounds"]

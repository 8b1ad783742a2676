"""Metrics: figures to be watched, as mergeable values, so that an epoch's is exact."""

from fulmen.metrics.accuracy import *
from fulmen.metrics.calibration import *
from fulmen.metrics.counts import *
from fulmen.metrics.metric import *
from fulmen.metrics.regression import *

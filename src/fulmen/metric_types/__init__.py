"""Metrics: figures to be watched, as mergeable values, so that an epoch's is exact."""

from fulmen.metric_types.accuracy import *
from fulmen.metric_types.calibration import *
from fulmen.metric_types.counts import *
from fulmen.metric_types.metric import *
from fulmen.metric_types.regression_metrics import *

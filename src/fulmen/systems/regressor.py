"""`Regressor`: a model that predicts numbers."""

import dataclasses

from fulmen.compose.supervised import Supervised
from fulmen.metric_types import MeanAbsoluteError, Metric
from fulmen.objectives import MSE, Objective


class Regressor(Supervised):
    """A model whose outputs are numbers, of the shape of the targets.

    Args:
        model: maps `batch.x` to numbers.
        objective, metrics, augment: as in `Supervised`.

    >>> fm.Regressor(fm.models.Flatten())
    Regressor(model=Flatten(), objective=MSE(), metrics=(MeanAbsoluteError(),), augment=())
    """

    objective: Objective = MSE()
    metrics: Metric | tuple[Metric, ...] = dataclasses.field(default=(MeanAbsoluteError(),), kw_only=True)

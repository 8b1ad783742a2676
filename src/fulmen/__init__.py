"""Fulmen: composable systems of models, trained in JAX by verbs that dispatch on types."""

__version__ = "0.1.0"

from fulmen.dispatch import *  # noqa
from fulmen.tree import *  # noqa
from fulmen.mode import *  # noqa
from fulmen.batch import *  # noqa
from fulmen.verbs import *  # noqa
from fulmen.component import *  # noqa
from fulmen.leaves import *  # noqa
from fulmen.mergeable import *  # noqa

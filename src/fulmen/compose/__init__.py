"""How parts make a whole: losses of systems, supervised systems, games, populations."""

from fulmen.compose import population_run, population_verbs

__all__ = ["population_run", "population_verbs"]  # imported for their methods

"""How parts make a whole: losses of systems, supervised systems, games, populations."""

from fulmen.compose import part_defaults, population_verbs

__all__ = ["part_defaults", "population_verbs"]  # imported for their methods

"""How parts make a whole: losses of systems, supervised systems, games, populations."""

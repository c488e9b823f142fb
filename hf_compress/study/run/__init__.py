"""How the cells of a study are run: here, in several processes or on a Ray cluster, each stored once."""

"""Which cells a study has: the grid file, the plan of cells made from it, and where models and data come from."""

"""Studies: grids of models, tasks, recipes and seeds, where each cell is trained and measured once.

`grid` defines the cells, `run` runs them, `analysis` computes effects with intervals, and `report` writes tables,
plots and a page. The command line is `hf-compress study GRID.yaml`. Needs the extra `study`.
"""

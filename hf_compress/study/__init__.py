"""Studies: a grid of models, tasks, recipes and seeds, run as cells that are each trained and measured once.

`grid` says which cells there are, `run` runs them, `analysis` computes what they show, `report` renders tables, plots
and a page. Use it from the command line: `hf-compress study GRID.yaml`.
"""

"""Which cells a study has: the grid file, the plan of cells made from it, and where models and data come from."""

from hf_compress.study.grid.glue import REGRESSION as REGRESSION
from hf_compress.study.grid.glue import TASKS as TASKS
from hf_compress.study.grid.glue import compute_metrics as compute_metrics

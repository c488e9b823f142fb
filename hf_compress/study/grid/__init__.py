"""The cells of a study: the grid file, the plan made from it, and where models and data come from.

`StudyGrid` is the checked grid file. `make_plan` turns it into cells and dense models with stable keys. `TASKS` and
`compute_metrics` are the GLUE tasks and their scores, also for scripts of your own (extra `glue`).
"""

from hf_compress.study.grid.combinations import COMBINATIONS as COMBINATIONS
from hf_compress.study.grid.glue import REGRESSION as REGRESSION
from hf_compress.study.grid.glue import TASKS as TASKS
from hf_compress.study.grid.glue import GlueMetric as GlueMetric
from hf_compress.study.grid.glue import compute_metrics as compute_metrics
from hf_compress.study.grid.grid import StudyGrid as StudyGrid
from hf_compress.study.grid.plan import Cell as Cell
from hf_compress.study.grid.plan import DenseModel as DenseModel
from hf_compress.study.grid.plan import Identities as Identities
from hf_compress.study.grid.plan import Plan as Plan
from hf_compress.study.grid.plan import make_plan as make_plan
from hf_compress.study.grid.sources import Sources as Sources

"""Running the cells of a study: in this process, in worker processes or on a Ray cluster.

`run_study` is the whole command; `run_plan` runs a plan with given workers. `Store` keeps one folder per cell, so
a run that was stopped continues where it was. `read_results` and `write_results` move results between studies as
one file.
"""

from hf_compress.study.run.collect import collect_results as collect_results
from hf_compress.study.run.engine import run_plan as run_plan
from hf_compress.study.run.program import StudyOptions as StudyOptions
from hf_compress.study.run.program import run_study as run_study
from hf_compress.study.run.results import Result as Result
from hf_compress.study.run.results import read_results as read_results
from hf_compress.study.run.results import write_results as write_results
from hf_compress.study.run.store import Store as Store
from hf_compress.study.run.workers import ProcessWorkers as ProcessWorkers
from hf_compress.study.run.workers import SerialWorkers as SerialWorkers

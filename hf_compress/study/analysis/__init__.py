"""The analysis of a study's results: size reductions, effects and interactions, each with an interval.

`read_measurements` reads results, `Findings` computes everything from them, and `suggest` picks a recipe. `published`
holds the figures of the paper that a study is compared with.
"""

from hf_compress.study.analysis.findings import Findings as Findings
from hf_compress.study.analysis.measurement import Measurement as Measurement
from hf_compress.study.analysis.measurements import read_measurements as read_measurements
from hf_compress.study.analysis.suggestion import Suggestion as Suggestion
from hf_compress.study.analysis.suggestion import suggest as suggest

"""What was measured on a compressed model, and the model card and Hub upload made from it.

`report` measures the reloaded folder and holds the result as one frozen `Report`; `card` renders a report and nothing
else; `hub` uploads the folder. `evaluation`, `sizes` and `latency` are the measurements themselves.
"""

from hf_compress.report.card import save_card as save_card
from hf_compress.report.hub import push as push
from hf_compress.report.latency import measure_latency as measure_latency
from hf_compress.report.latency import paired_ratio as paired_ratio
from hf_compress.report.report import DatasetFacts as DatasetFacts
from hf_compress.report.report import Report as Report
from hf_compress.report.report import measure as measure
from hf_compress.report.sizes import analytic_bytes as analytic_bytes

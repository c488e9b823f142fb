"""The measurements of a compressed model, and the model card made from them.

`measure` reloads a folder, measures it, and returns a frozen `Report`. `save_card` renders the card from `report.json`
and from nothing else, section by section (`SECTIONS`).
"""

from hf_compress.report.agreement import Check as Check
from hf_compress.report.agreement import check_folder as check_folder
from hf_compress.report.bench import bench as bench
from hf_compress.report.card import SECTIONS as SECTIONS
from hf_compress.report.card import save_card as save_card
from hf_compress.report.contents import check_contents as check_contents
from hf_compress.report.contents import contents as contents
from hf_compress.report.gate import exit_status as exit_status
from hf_compress.report.gate import verdict as verdict
from hf_compress.report.intervals import Interval as Interval
from hf_compress.report.latency import measure_latency as measure_latency
from hf_compress.report.latency import paired_ratio as paired_ratio
from hf_compress.report.measuring import measure as measure
from hf_compress.report.predictions import read_predictions as read_predictions
from hf_compress.report.report import DatasetFacts as DatasetFacts
from hf_compress.report.report import Report as Report
from hf_compress.report.section import Section as Section
from hf_compress.report.sizes import analytic_bytes as analytic_bytes
from hf_compress.report.tables import latency_table as latency_table
from hf_compress.report.unseen import unseen_rows as unseen_rows
from hf_compress.report.variants import VARIANTS as VARIANTS

"""The report of a study: tables, plots and one offline page.

`write_report` writes them all from results; `quote_tables` puts tables into a Markdown file. `advise` is the text of
`hf-compress study suggest`.
"""

from hf_compress.study.report.advice import advise as advise
from hf_compress.study.report.reporting import quote_tables as quote_tables
from hf_compress.study.report.reporting import write_report as write_report

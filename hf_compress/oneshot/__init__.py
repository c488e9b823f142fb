"""Compression without training: `hf-compress quantize`.

`source` is the dense model, `texts` the rows, `quantizing` does it, `comparing` says how alike two models answer, and
`measuring` makes the report.
"""

from hf_compress.oneshot.quantizing import quantize_once as quantize_once
from hf_compress.oneshot.texts import Data as Data

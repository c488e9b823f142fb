"""Quantization-aware training: its options and its callback for any Trainer.

`callback` replaces the layers of the model with those of `hf_compress.layers`, and switches rounding and range
observation on and off. The number formats themselves are in `hf_compress.layers.grids`.
"""

from hf_compress.quantize.arguments import QuantizationArguments as QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback as QuantizationCallback
from hf_compress.quantize.spending import Spent as Spent
from hf_compress.quantize.spending import least_bytes as least_bytes
from hf_compress.quantize.spending import spend as spend
from hf_compress.quantize.trimming import trim as trim

"""Layers that compute with rounded or masked weights, in place of the model's own.

`grids` and `steps` hold the number formats as pure functions of tensors; `rounded`, `attention`, `lora` and `integer`
hold the layers that use them, and `turning` puts them into a model. On a GPU `fused` lets `kernels` compute. A number
format is an entry in `grids.SCHEMES`.
"""

from hf_compress.layers.bits import weight_grids as weight_grids
from hf_compress.layers.fused import eagerly as eagerly
from hf_compress.layers.grids import SCHEMES as SCHEMES
from hf_compress.layers.grids import Grid as Grid
from hf_compress.layers.grids import Grids as Grids
from hf_compress.layers.grids import Scheme as Scheme
from hf_compress.layers.grids import fake_quantize_symmetric as fake_quantize_symmetric
from hf_compress.layers.steps import fake_quantize_steps as fake_quantize_steps
from hf_compress.layers.turning import quantize_layers as quantize_layers

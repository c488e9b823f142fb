"""The compressed checkpoint on disk: write it, load it, look inside it.

`save` writes a trained model, and Transformers calls `quantizer` to load it. `budget` chooses bits and zeros for a
file size, and `resume` finds the training checkpoint to resume from. `packing` packs each tensor.
"""

from hf_compress.checkpoint.budget import expected_bytes as expected_bytes
from hf_compress.checkpoint.budget import fit_budget as fit_budget
from hf_compress.checkpoint.config import CompressionConfig as CompressionConfig
from hf_compress.checkpoint.quantizer import CompressionQuantizer as CompressionQuantizer
from hf_compress.checkpoint.quantizer import packed_tensors as packed_tensors
from hf_compress.checkpoint.resume import last_complete_checkpoint as last_complete_checkpoint
from hf_compress.checkpoint.save import save_compressed as save_compressed

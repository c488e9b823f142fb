"""The compressed checkpoint on disk: write it, load it, look inside it.

`save` writes a trained model, and Transformers calls `quantizer` to load it. `resume` finds the training checkpoint to
resume from. `packing` packs each tensor.
"""

from hf_compress.checkpoint.config import CompressionConfig as CompressionConfig
from hf_compress.checkpoint.files import packed_tensors as packed_tensors
from hf_compress.checkpoint.quantizer import CompressionQuantizer as CompressionQuantizer
from hf_compress.checkpoint.resume import last_complete_checkpoint as last_complete_checkpoint
from hf_compress.checkpoint.save import save_compressed as save_compressed

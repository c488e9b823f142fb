"""The compressed checkpoint on disk: writing it, loading it, looking inside it.

`save` writes a trained model, `quantizer` is what Transformers calls to load it, and `packed` and `coding` are the
file format that `docs/format.md` specifies. `budget` chooses bits and zeros for a file size, and `resume` finds the
training checkpoint to resume from.
"""

from hf_compress.checkpoint.config import CompressionConfig as CompressionConfig
from hf_compress.checkpoint.resume import last_complete_checkpoint as last_complete_checkpoint
from hf_compress.checkpoint.save import save_compressed as save_compressed

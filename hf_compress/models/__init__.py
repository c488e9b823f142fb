"""The parts of a Transformers model: its head, its layers, its sharded weights.

This is the only package that knows model classes. `kinds` is the table of heads, `heads` says what one model reads and
predicts and which positions count, `examples` makes inputs for it, `targets` selects the layers that a method touches,
and `sharding` handles weights that several processes share. To support a model family, change this package only.
"""

from hf_compress.models.heads import Head as Head
from hf_compress.models.heads import find_head as find_head
from hf_compress.models.heads import find_outputs as find_outputs
from hf_compress.models.kinds import HEAD_KINDS as HEAD_KINDS
from hf_compress.models.kinds import HeadKind as HeadKind
from hf_compress.models.targets import Target as Target
from hf_compress.models.targets import prunable as prunable
from hf_compress.models.targets import quantizable as quantizable

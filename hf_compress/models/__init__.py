"""What a Transformers model is made of: its head, its layers, its sharded weights.

This is the only package that knows model classes: `heads` finds what a model predicts and which positions count,
`targets` selects the layers that a method touches, `sharding` handles weights that several processes share.
To support a model family, change this package only.
"""

from hf_compress.models.heads import Head as Head
from hf_compress.models.heads import find_head as find_head
from hf_compress.models.targets import Target as Target
from hf_compress.models.targets import prunable as prunable
from hf_compress.models.targets import quantizable as quantizable

"""Gradual magnitude pruning: its options and its callback for any Trainer.

`schedules` says how sparsity grows over training and `criteria` which weights become zero; both are pure functions.
`callback` applies them during training.
"""

from hf_compress.prune.arguments import PruningArguments as PruningArguments
from hf_compress.prune.callback import PruningCallback as PruningCallback

"""Models with fewer layers, tokens, neurons or heads, cut from a larger one.

Before training `students` keeps some of the layers, `vocabulary` keeps the tokens that the training texts contain, and
`tokenizer` rewrites the tokenizer to match. After training `removal` takes out the neurons and heads that were pruned,
`uniform` says them in an ordinary configuration, and `depth` takes out the layers that were dropped.
"""

from hf_compress.cut.depth import Depth as Depth
from hf_compress.cut.depth import remove_layers as remove_layers
from hf_compress.cut.removal import Removal as Removal
from hf_compress.cut.removal import remove_groups as remove_groups
from hf_compress.cut.students import student_from as student_from
from hf_compress.cut.vocabulary import VocabularyArguments as VocabularyArguments
from hf_compress.cut.vocabulary import cut_vocabulary as cut_vocabulary

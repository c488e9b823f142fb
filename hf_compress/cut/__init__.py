"""Models with fewer layers or fewer tokens, cut from a larger one before training.

`students` keeps some of the layers, `vocabulary` keeps the tokens that the training texts contain, and `tokenizer`
rewrites the tokenizer to match.
"""

from hf_compress.cut.students import student_from as student_from
from hf_compress.cut.vocabulary import VocabularyArguments as VocabularyArguments
from hf_compress.cut.vocabulary import cut_vocabulary as cut_vocabulary

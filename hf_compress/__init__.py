"""Distillation, gradual pruning and quantization-aware training inside the Trainer, and files as small as they say.

Importing the package teaches `from_pretrained` and `pipeline` to load what `save_compressed` writes.
"""

from hf_compress.card import save_card as save_card
from hf_compress.checkpoint import save_compressed as save_compressed
from hf_compress.compression import compress as compress
from hf_compress.compression import finish as finish
from hf_compress.compression_config import CompressionConfig as CompressionConfig
from hf_compress.distillation import DistillationArguments as DistillationArguments
from hf_compress.distillation import DistillationMixin as DistillationMixin
from hf_compress.distillation import DistillationTrainer as DistillationTrainer
from hf_compress.distillation import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer
from hf_compress.flags import CompressionArguments as CompressionArguments
from hf_compress.flags import take_flags as take_flags
from hf_compress.formats import write_formats as write_formats
from hf_compress.hub import push as push
from hf_compress.onnx import export_onnx as export_onnx
from hf_compress.provenance import __version__ as __version__
from hf_compress.pruning import PruningArguments as PruningArguments
from hf_compress.pruning import PruningCallback as PruningCallback
from hf_compress.quantization import QuantizationArguments as QuantizationArguments
from hf_compress.quantization import QuantizationCallback as QuantizationCallback
from hf_compress.recipe import ARGUMENTS as ARGUMENTS
from hf_compress.recipe import Recipe as Recipe
from hf_compress.recipe import RecipeCallback as RecipeCallback
from hf_compress.report import DatasetFacts as DatasetFacts
from hf_compress.report import Report as Report
from hf_compress.report import measure as measure
from hf_compress.resume import last_complete_checkpoint as last_complete_checkpoint
from hf_compress.students import student_from as student_from
from hf_compress.vocabulary import VocabularyArguments as VocabularyArguments
from hf_compress.vocabulary import cut_vocabulary as cut_vocabulary

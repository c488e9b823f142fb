"""Distillation, gradual pruning and quantization-aware training inside the Trainer, and files as small as they say.

Importing the package teaches `from_pretrained` and `pipeline` to load what `save_compressed` writes.
"""

from hf_compress.checkpoint.config import CompressionConfig as CompressionConfig
from hf_compress.checkpoint.resume import last_complete_checkpoint as last_complete_checkpoint
from hf_compress.checkpoint.save import save_compressed as save_compressed
from hf_compress.cut.depth import remove_layers as remove_layers
from hf_compress.cut.removal import remove_groups as remove_groups
from hf_compress.cut.students import student_from as student_from
from hf_compress.cut.vocabulary import VocabularyArguments as VocabularyArguments
from hf_compress.cut.vocabulary import cut_vocabulary as cut_vocabulary
from hf_compress.distill import DistillationArguments as DistillationArguments
from hf_compress.distill import DistillationMixin as DistillationMixin
from hf_compress.distill import DistillationTrainer as DistillationTrainer
from hf_compress.distill import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer
from hf_compress.export.formats import write_formats as write_formats
from hf_compress.export.onnx_format import export_onnx as export_onnx
from hf_compress.goals import BudgetArguments as BudgetArguments
from hf_compress.goals import SpeedArguments as SpeedArguments
from hf_compress.hub.push import push as push
from hf_compress.launch.arguments import CompressionArguments as CompressionArguments
from hf_compress.launch.flags import take_flags as take_flags
from hf_compress.launch.run import compress as compress
from hf_compress.launch.run import finish as finish
from hf_compress.oneshot.quantizing import quantize_once as quantize_once
from hf_compress.prune.arguments import PruningArguments as PruningArguments
from hf_compress.prune.callback import PruningCallback as PruningCallback
from hf_compress.prune.dropping import LayerDroppingCallback as LayerDroppingCallback
from hf_compress.quantize.arguments import QuantizationArguments as QuantizationArguments
from hf_compress.quantize.callback import QuantizationCallback as QuantizationCallback
from hf_compress.recipe import ARGUMENTS as ARGUMENTS
from hf_compress.recipe import Recipe as Recipe
from hf_compress.recipe import RecipeCallback as RecipeCallback
from hf_compress.release import __version__ as __version__
from hf_compress.report.card import save_card as save_card
from hf_compress.report.gate import exit_status as exit_status
from hf_compress.report.measuring import measure as measure
from hf_compress.report.report import DatasetFacts as DatasetFacts
from hf_compress.report.report import Report as Report
from hf_compress.report.unseen import unseen_rows as unseen_rows

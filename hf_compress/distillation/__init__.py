"""Knowledge distillation: its options, and the Trainers that learn from a teacher."""

from hf_compress.distillation.arguments import DistillationArguments as DistillationArguments
from hf_compress.distillation.trainer import DistillationMixin as DistillationMixin
from hf_compress.distillation.trainer import DistillationTrainer as DistillationTrainer
from hf_compress.distillation.trainer import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer

"""Knowledge distillation: its options, the Trainers that learn from a teacher, and the losses.

`trainer` mixes the distillation loss into any Trainer, `losses` is the registry of losses, and `teacher` loads a
teacher and checks that it fits the student. `cache` keeps a teacher's answers on disk.
"""

from hf_compress.distill.arguments import DistillationArguments as DistillationArguments
from hf_compress.distill.losses import LOSSES as LOSSES
from hf_compress.distill.losses import Features as Features
from hf_compress.distill.losses import Loss as Loss
from hf_compress.distill.trainer import DistillationMixin as DistillationMixin
from hf_compress.distill.trainer import DistillationTrainer as DistillationTrainer
from hf_compress.distill.trainer import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer

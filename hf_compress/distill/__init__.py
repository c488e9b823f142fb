"""Knowledge distillation: its options, the Trainers that learn from a teacher, and the losses.

`trainer` mixes the distillation loss into any Trainer, `sentence_trainer` into those of sentence-transformers.
`losses` is the registry of losses on logits, `embedding_losses` that of losses on embeddings, `layer_losses` that of
losses on layers. `teacher` loads a teacher and checks that it fits the student. `cache` keeps a teacher's answers on
disk.
"""

from hf_compress.distill.arguments import DistillationArguments as DistillationArguments
from hf_compress.distill.embedding_losses import EMBEDDING_LOSSES as EMBEDDING_LOSSES
from hf_compress.distill.embedding_losses import EmbeddingLoss as EmbeddingLoss
from hf_compress.distill.layer_losses import LAYER_LOSSES as LAYER_LOSSES
from hf_compress.distill.layer_losses import LayerLoss as LayerLoss
from hf_compress.distill.losses import LOSSES as LOSSES
from hf_compress.distill.losses import Loss as Loss
from hf_compress.distill.trainer import DistillationMixin as DistillationMixin
from hf_compress.distill.trainer import DistillationTrainer as DistillationTrainer
from hf_compress.distill.trainer import Seq2SeqDistillationTrainer as Seq2SeqDistillationTrainer

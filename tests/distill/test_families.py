"""Teachers of image and audio models: which fit, which are refused, and the answers that a cache keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_compress.cut import cut_vocabulary
from hf_compress.distill import DistillationArguments, DistillationTrainer
from hf_compress.distill.losses import kl
from hf_compress.models import find_head

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def vit(seed: int = 0, **changes: Any) -> PreTrainedModel:
    config = ViTConfig(**{**SIZES, "image_size": 8, "patch_size": 4, "num_labels": 3, **changes})
    torch.manual_seed(seed)
    return ViTForImageClassification(config)


def wav2vec2(seed: int = 0) -> PreTrainedModel:
    convolutions = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    torch.manual_seed(seed)
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SIZES, **convolutions, **positions, num_labels=3))


def trainer_of(student: Any, teacher: Any, folder: Path, data: Any = None, **options: Any) -> DistillationTrainer:
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=2, logging_steps=1, learning_rate=0.0
    )
    return DistillationTrainer(
        student, arguments, teacher=teacher, distillation=DistillationArguments(**options), train_dataset=data
    )


def rows_of(model: PreTrainedModel) -> Dataset:
    batch = find_head(model).example_batch(model, rows=8)
    columns = {name: value.tolist() for name, value in batch.items()}
    return Dataset.from_dict(columns | {"labels": [row % 3 for row in range(8)]}).with_format("torch")


@pytest.mark.parametrize("build", [vit, wav2vec2])
def test_an_image_or_audio_student_learns_from_a_teacher(build: Any, tmp_path: Path) -> None:
    student, teacher = (build(seed).eval() for seed in (0, 1))
    student.config.apply_spec_augment, data = False, rows_of(student)
    with torch.no_grad():
        teacher.classifier.weight.normal_(0, 1)
    # No dropout, no step: what is logged is the distance on these eight rows.
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    student.config.hidden_dropout = student.config.attention_dropout = student.config.layerdrop = 0.0
    trainer = trainer_of(student, teacher, tmp_path, data)
    trainer.train()
    inputs = {name: value for name, value in data[:].items() if name != "labels"}
    with torch.no_grad():
        ours, theirs = (model.eval()(**inputs).logits for model in (student, teacher))
    logged = trainer.state.log_history[0]["distill_loss"]
    assert logged == pytest.approx(kl(ours, theirs, 2.0).mean().item(), rel=1e-4)


@pytest.mark.parametrize("changes", [{"image_size": 12}, {"num_channels": 1}])
def test_a_teacher_of_other_images_is_refused(changes: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The teacher reads `pixel_values` of shape"):
        trainer_of(vit(), vit(1, **changes), tmp_path)


def test_a_teacher_of_another_sense_is_refused(tmp_path: Path, tiny_bert: Any) -> None:
    with pytest.raises(ValueError, match="The teacher does audio classification, the student image classification"):
        trainer_of(vit(), wav2vec2(), tmp_path)


def test_images_are_answered_from_the_cache_as_live(tmp_path: Path) -> None:
    runs = [
        trainer_of(vit(), vit(1), tmp_path, rows_of(vit()), distill_cache=cache) for cache in (None, str(tmp_path))
    ]
    for run in runs:
        run.train()
    live, cached = ([line["distill_loss"] for line in run.state.log_history if "loss" in line] for run in runs)
    assert len(live) == 2 and live == cached


def test_a_model_without_words_has_no_vocabulary_to_cut(tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="reads `pixel_values`"):
        cut_vocabulary(vit(), tiny_tokenizer, ["a film"])

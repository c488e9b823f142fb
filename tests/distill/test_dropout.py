"""`--distill_dropout`: the student's dropout while it learns from a teacher, and only then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BartConfig, DistilBertConfig, TrainerCallback

from hf_compress import DistillationArguments
from hf_compress.distill import DistillationTrainer
from hf_compress.models.stacks import dropouts
from tests.invariants.harness import KD, logged, make, same
from tests.tiny import NO_DROPOUT, bert

NOISY = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}


class Seen(TrainerCallback):
    """Notes the probabilities of dropout at every step."""

    def __init__(self) -> None:
        self.steps: list[set[float]] = []

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        """Note them."""
        self.steps.append({getattr(*place) for place in dropouts(kwargs["model"])})


def build(folder: Path, probability: float | None, sizes: dict[str, float], **more: Any) -> DistillationTrainer:
    """Build a run of a student with dropout, whose teacher has none."""
    chosen = DistillationArguments(distill_dropout=probability, distill_layer_loss=["hidden=1"])
    models = {"model": bert(**sizes), "teacher": bert(seed=1, **NO_DROPOUT)}
    return make(folder, (KD,), build={"distillation": chosen}, max_steps=4, **models, **more)


def test_without_dropout_training_is_that_of_a_model_without(tmp_path: Path) -> None:
    off, without = build(tmp_path / "a", 0.0, NOISY), build(tmp_path / "b", None, dict(NO_DROPOUT))
    for run in (off, without):
        run.train()
    assert same(list(off.model.parameters()), list(without.model.parameters()))
    assert logged(off, "hidden_loss") == logged(without, "hidden_loss")


def test_the_student_has_its_own_dropout_again_afterwards(tmp_path: Path) -> None:
    run, seen = build(tmp_path, 0.05, NOISY), Seen()
    run.add_callback(seen)
    run.train()
    assert seen.steps == [{0.05}] * 4
    assert {getattr(*place) for place in dropouts(run.model)} == {0.3, 0.2}
    assert run.model.config.hidden_dropout_prob == 0.3


def test_by_default_the_student_keeps_its_dropout(tmp_path: Path) -> None:
    run, seen = build(tmp_path, None, NOISY), Seen()
    run.add_callback(seen)
    run.train()
    assert seen.steps == [{0.3, 0.2}] * 4


@pytest.mark.parametrize(
    "config",
    [
        DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=1, hidden_dim=8, seq_classif_dropout=0.1),
        BartConfig(
            vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
            decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, attention_dropout=0.1,
            activation_dropout=0.1,
        ),
    ],
    ids=["distilbert", "bart"],
)  # fmt: skip
def test_no_dropout_is_left_where_models_keep_it_otherwise(config: Any) -> None:
    model = AutoModelForSequenceClassification.from_config(config).train()
    inputs = {"input_ids": torch.tensor([[3, 4, 5, 2]])}
    noisy = [model(**inputs).logits for _ in range(2)]
    for place in dropouts(model):
        setattr(*place, 0.0)
    quiet = [model(**inputs).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*quiet)
    assert not any(module.p for module in model.modules() if isinstance(module, nn.Dropout))


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_a_probability_outside_its_range_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=r"`--distill_dropout` must be a probability in \[0, 1\), got"):
        DistillationArguments(distill_teacher="self", distill_dropout=probability)

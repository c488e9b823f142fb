"""A teacher reads the student's batches as the student does, or an error or a warning names it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

from hf_compress.distill import DistillationArguments
from hf_compress.models.examples import longest_text
from tests.invariants.harness import KD, logged, make, rows
from tests.tiny import NO_DROPOUT, VOCABULARY, bert

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def taught(folder: Path, teacher: Any, tokenizer: Any, model: Any = None) -> Any:
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    plan = DistillationArguments(distill_teacher=str(folder / "teacher"))
    build = {"distillation": plan, "processing_class": tokenizer}
    return make(folder / "run", model=model or bert(**NO_DROPOUT), build=build, max_steps=2)


@pytest.mark.parametrize("padded", [VOCABULARY + 3, VOCABULARY + 7])
def test_padded_embeddings_of_one_tokenizer_are_accepted(padded: int, tiny_tokenizer: Any, tmp_path: Path) -> None:
    plain, student = bert(seed=1, **NO_DROPOUT), bert(**NO_DROPOUT)
    student.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    losses = []
    for size in (VOCABULARY + 5, padded):
        teacher = bert(seed=1, **NO_DROPOUT)
        teacher.resize_token_embeddings(size, mean_resizing=False)
        run = taught(tmp_path, teacher, tiny_tokenizer, model=bert(**NO_DROPOUT))
        run.train()
        losses.append(logged(run, "loss", "distill_loss"))
    assert losses[0] == losses[1]
    assert plain.config.vocab_size == VOCABULARY


def test_a_padded_language_model_is_cut_but_never_enlarged(tiny_tokenizer: Any, tmp_path: Path) -> None:
    def masked(size: int) -> BertForMaskedLM:
        return BertForMaskedLM(bert(vocab_size=size).config)

    run = taught(tmp_path, masked(VOCABULARY + 7), tiny_tokenizer, masked(VOCABULARY))
    assert run.teacher.config.vocab_size == VOCABULARY
    with pytest.raises(ValueError, match=rf"`resize_token_embeddings\({VOCABULARY}\)` on the student"):
        taught(tmp_path, masked(VOCABULARY), tiny_tokenizer, masked(VOCABULARY + 7))


def test_the_longest_text_of_a_model_is_known() -> None:
    sizes = {"vocab_size": 40, "max_position_embeddings": 32}
    assert longest_text(bert(max_position_embeddings=32)) == 32
    assert longest_text(RobertaModel(RobertaConfig(**SIZES, **sizes, pad_token_id=1))) == 30
    opt = {"ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
    opt["num_attention_heads"] = 2
    assert longest_text(OPTModel(OPTConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, **opt))) == 32
    assert longest_text(T5Model(T5Config(vocab_size=40, d_model=16, d_ff=16, num_layers=1, num_heads=2))) is None


def test_rows_longer_than_the_teachers_positions_are_refused(tmp_path: Path, caplog: Any) -> None:
    run = make(tmp_path, (KD,), teacher=bert(seed=1, max_position_embeddings=6))
    assert "The teacher (BertForSequenceClassification) reads at most 6 tokens, the student" in caplog.text
    with pytest.raises(ValueError, match=r"The teacher \(BertForSequenceClassification\) reads at most 6 tokens"):
        run.train()


def test_another_padding_token_of_a_pooling_teacher_is_refused(tmp_path: Path) -> None:
    def gpt2(padding: int | None) -> Any:
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, pad_token_id=padding)
        return GPT2ForSequenceClassification(config)

    with pytest.raises(ValueError, match="The teacher's `config.pad_token_id` is 3, the student's 0"):
        make(tmp_path, (KD,), model=gpt2(0), teacher=gpt2(3))
    run = make(tmp_path, (KD,), model=gpt2(0), teacher=gpt2(0), data=rows(16), max_steps=1)
    assert torch.tensor(run.train().training_loss).isfinite()

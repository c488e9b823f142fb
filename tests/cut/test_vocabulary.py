"""A model cut to the words of some texts reads these as before, is trained and saved like any other, and says so."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hf_compress import (
    DistillationArguments,
    QuantizationArguments,
    Recipe,
    VocabularyArguments,
    cut_vocabulary,
    finish,
)
from hf_compress import compress as compress_trainer
from hf_compress.cut.vocabulary import VocabularyFacts
from hf_compress.distill.teacher import load_teacher
from hf_compress.export.onnx_format import PATH
from hf_compress.models.heads import find_head
from hf_compress.report.card import render
from tests.conftest import BAD, GOOD, PLAIN

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "scale_embedding": True,
}
SEQUENCE = AutoModelForSequenceClassification


def texts(number: int, adjectives: list[str], seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join([*draw.choices(PLAIN, k=4), draw.choice(adjectives)]) for _ in range(number)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that has a token for every word of the tests; its special tokens come last."""
    built = Tokenizer(models.WordPiece(unk_token="<unk>"))
    built.normalizer, built.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    built.train_from_iterator(texts(500, GOOD + BAD), trainer)
    built.add_special_tokens(SPECIAL)
    ends = [(name, built.token_to_id(name)) for name in ("<s>", "</s>")]
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=built, model_max_length=32, cls_token="<s>", sep_token="</s>", **names
    )


def special(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer) + 3,  # Padded, as some models' are.
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def build(config: Any, auto_class: Any = SEQUENCE) -> PreTrainedModel:
    set_seed(0)
    return auto_class.from_config(config).eval()


def bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = BertConfig(**special(tokenizer), **SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return build(config)


def logits(model: PreTrainedModel, tokenizer: Any, rows: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer(rows, padding=True, return_tensors="pt", return_token_type_ids=False)).logits


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart"])
def test_texts_are_read_as_before_and_others_in_more_pieces(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = special(tokenizer)
    configs: dict[str, Any] = {
        "bert": lambda: BertConfig(**ids, **SIZES),
        "gpt2": lambda: GPT2Config(**ids, n_embd=32, n_layer=1, n_head=2),
        "t5": lambda: T5Config(**ids, **T5, decoder_start_token_id=ids["pad_token_id"]),
        "bart": lambda: BartConfig(**ids, **BART, decoder_start_token_id=ids["eos_token_id"]),
    }
    model = build(configs[name]())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = texts(40, GOOD)
    cut, smaller = cut_vocabulary(model, tokenizer, rows)
    assert torch.equal(logits(cut, smaller, rows), logits(model, tokenizer, rows))
    assert len(smaller) == cut.config.vocab_size == cut.get_input_embeddings().num_embeddings < len(tokenizer) - 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "left as it was"
    assert len(tokenizer) == model.config.vocab_size - 3
    for field in ("pad_token_id", "eos_token_id", "bos_token_id"):
        assert smaller.convert_ids_to_tokens(getattr(cut.config, field)) == tokenizer.convert_ids_to_tokens(ids[field])
    assert "clumsy" in tokenizer.get_vocab() and "clumsy" not in smaller.get_vocab()
    pieces = smaller.tokenize("clumsy")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "clumsy" and len(pieces) > 1
    assert VocabularyFacts.of(cut.config) == VocabularyFacts(len(smaller), model.config.vocab_size)
    again = cut_vocabulary(cut, smaller, rows[:1])[0]
    assert VocabularyFacts.of(again.config).whole == model.config.vocab_size


def test_tied_names_of_the_embeddings_stay_tied(tokenizer: PreTrainedTokenizerFast) -> None:
    config = T5Config(**special(tokenizer), **T5, decoder_start_token_id=tokenizer.pad_token_id)
    cut, _ = cut_vocabulary(build(config), tokenizer, texts(5, GOOD))
    inner = cut.transformer
    assert inner.encoder.embed_tokens.weight is inner.decoder.embed_tokens.weight is inner.shared.weight


def test_positions_counted_from_padding_stay_right(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """RoBERTa numbers positions from its padding token's number on: here that moves, and the answer would change."""
    model = build(RobertaConfig(**special(tokenizer), **SIZES, max_position_embeddings=512))
    with pytest.raises(ValueError, match="would change the logits of RobertaForSequenceClassification"):
        cut_vocabulary(model, tokenizer, texts(5, GOOD))


def test_a_multiple_choice_model_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(BertConfig(**special(tokenizer), **SIZES), AutoModelForMultipleChoice)
    cut, smaller = cut_vocabulary(model, tokenizer, texts(5, GOOD))
    assert cut.config.vocab_size == len(smaller)


def test_the_cut_tokenizer_and_model_are_saved_and_loaded(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = texts(20, GOOD)
    cut, smaller = cut_vocabulary(bert(tokenizer), tokenizer, rows)
    cut.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    model, loaded = SEQUENCE.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == smaller.get_vocab()
    assert torch.equal(logits(model, loaded, rows), logits(cut, smaller, rows))
    assert loaded(rows[0], rows[1])["input_ids"] == smaller(rows[0], rows[1])["input_ids"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("language model", "cannot cut a GPT2LMHeadModel, which does causal language modelling"),
        ("whole words", "the tokenizer's model is WordLevel"),
        ("no model", "can only cut a Transformers model; got a Linear"),
        ("other tokenizer", "the embeddings of BertForSequenceClassification have 10 rows"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    case: str, said: str, tokenizer: PreTrainedTokenizerFast, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model: Any = bert(tokenizer)
    if case == "language model":
        model = build(GPT2Config(**special(tokenizer), n_embd=32, n_layer=1, n_head=2), AutoModelForCausalLM)
    elif case == "whole words":
        tokenizer = tiny_tokenizer
    elif case == "no model":
        model = torch.nn.Linear(2, 2)
    elif case == "other tokenizer":
        model = build(BertConfig(vocab_size=10, **SIZES))
    with pytest.raises(ValueError, match=said):
        cut_vocabulary(model, tokenizer, texts(5, GOOD))


def rows(tokenizer: Any, adjectives: list[str], number: int = 32) -> Dataset:
    sentences = texts(number, adjectives)
    labels = [int(text.split()[-1] in GOOD[:3] + BAD[:3]) for text in sentences]
    encoded = tokenizer(sentences, padding="max_length", max_length=12)
    return Dataset.from_dict({**encoded, "labels": labels})


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings = {"max_steps": 12, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "save_strategy": "no"}
    return TrainingArguments(str(folder), **settings | {"report_to": "none", "disable_tqdm": True} | changes)


def test_training_goes_as_it_would_with_the_whole_vocabulary(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = bert(tokenizer)
    losses = []
    cut = cut_vocabulary(whole, tokenizer, texts(32, GOOD))
    for model, words in ((whole, tokenizer), cut):
        trainer = Trainer(model, arguments(tmp_path, logging_steps=1), train_dataset=rows(words, GOOD))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    # The norm of the gradients, by which they are clipped, is a sum over fewer zeros.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(set(losses[0])) > 6


@pytest.mark.parametrize("formats", [[], pytest.param(["onnx"], marks=pytest.mark.slow)])
def test_a_cut_run_is_compressed_reloaded_and_described(
    formats: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    model, smaller = cut_vocabulary(bert(tokenizer), tokenizer, texts(32, GOOD))
    trainer = Trainer(
        model,
        arguments(tmp_path),
        train_dataset=rows(smaller, GOOD),
        eval_dataset=rows(smaller, BAD),
        processing_class=smaller,
    )
    recipe = Recipe(
        DistillationArguments("self"),
        quantization=QuantizationArguments(quant_scheme="int8"),
        vocabulary=VocabularyArguments(True),
    )
    compress_trainer(trainer, recipe)
    trainer.train()
    report = finish(trainer, main_metric="loss", formats=formats)
    assert report.recipe.name == "vocab+kd+int8"
    assert report.parity == 0
    assert (tmp_path / "compressed" / PATH).is_file() == bool(formats)
    assert report.dense is None, "a dense model with all its words cannot read these rows"
    assert report.vocabulary == VocabularyFacts(len(smaller), len(tokenizer) + 3)
    embeddings = report.size.parts["embeddings"]
    assert embeddings.dense_bytes >= 4 * 32 * (len(tokenizer) + 3)
    card = render(report)
    assert f"keep {len(smaller):,} of the {len(tokenizer) + 3:,} tokens" in card
    assert "cut down to the tokens of its training texts, distilled from a teacher" in card
    assert "all its tokens" in card
    assert "Words outside the training texts" in card
    classify = pipeline("text-classification", str(tmp_path / "compressed"))
    assert classify("the film was clumsy")[0]["score"] > 0
    stored = json.loads((tmp_path / "compressed" / "config.json").read_text())
    assert stored["uncut_vocab_size"] == len(tokenizer) + 3
    plain = Recipe.load(tmp_path / "compressed" / "recipe.json")
    assert plain.vocabulary.enabled


def test_a_trainer_whose_rows_are_tokenized_already_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = Trainer(bert(tokenizer), arguments(tmp_path), train_dataset=rows(tokenizer, GOOD))
    with pytest.raises(ValueError, match=r"are tokenized already. Let the script call `model, tokenizer = "):
        compress_trainer(trainer, Recipe(vocabulary=VocabularyArguments(True)))


def test_a_teacher_with_all_tokens_is_cut_like_its_student(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    teacher, sentences = bert(tokenizer), texts(32, GOOD)
    with torch.no_grad():
        teacher.classifier.weight.mul_(3)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    student, smaller = cut_vocabulary(bert(tokenizer), tokenizer, sentences)
    loaded = load_teacher(str(tmp_path / "teacher"), find_head(student), smaller)
    assert torch.equal(logits(loaded, smaller, sentences), logits(teacher, tokenizer, sentences))
    trainer = Trainer(student, arguments(tmp_path), train_dataset=rows(smaller, GOOD), processing_class=smaller)
    compress_trainer(trainer, Recipe(DistillationArguments(str(tmp_path / "teacher"))))
    trainer.train()
    assert trainer.teacher.config.vocab_size == len(smaller)


def test_a_teacher_that_reads_other_numbers_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    student, smaller = cut_vocabulary(bert(tokenizer), tokenizer, texts(32, GOOD))
    bert(tokenizer).save_pretrained(tmp_path / "teacher")  # No tokenizer beside it.
    trainer = Trainer(student, arguments(tmp_path), train_dataset=rows(smaller, GOOD), processing_class=smaller)
    with pytest.raises(ValueError, match="cut the teacher with `hf_compress.cut_vocabulary` and the same texts"):
        compress_trainer(trainer, Recipe(DistillationArguments(str(tmp_path / "teacher"))))

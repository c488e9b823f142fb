"""The callbacks work in Trainers of other libraries and of users."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from hf_compress import PruningArguments, PruningCallback, Recipe, compress, save_compressed
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable, transformer
from hf_compress.prune import CRITERIA
from tests.invariants.harness import PRUNE, QUANT, SETTINGS, make, recipe, rows
from tests.tiny import NO_DROPOUT, bert

BOTH = (PRUNE, QUANT)


def check(model: PreTrainedModel, auto_class: Any, inputs: dict[str, torch.Tensor], folder: Path) -> None:
    """Check that the model has its sparsity and that the reloaded file computes the same bits."""
    save_compressed(model.eval(), folder, recipe(BOTH))
    reloaded = auto_class.from_pretrained(folder, attn_implementation=model.config._attn_implementation)
    assert compressed_layers(model)
    with torch.no_grad():
        ours, theirs = model(**inputs), reloaded(**inputs)
    assert torch.equal(ours[0], theirs[0])
    for target in prunable(model):
        assert int((target.weight == 0).sum()) == round(0.6 * target.weight.numel()), target.name


class Weighted(Trainer):
    """A user's Trainer with its own loss."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"], weight=torch.tensor([1.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("trainer_class", [Trainer, Weighted])
def test_a_plain_trainer_and_a_users_own(trainer_class: type[Trainer], tmp_path: Path) -> None:
    run = make(tmp_path, BOTH, model=bert(**NO_DROPOUT), trainer_class=trainer_class)
    run.train()
    inputs = {name: value[None] for name, value in rows(1)[0].items() if name != "labels"}
    check(run.model, AutoModelForSequenceClassification, inputs, tmp_path / "compressed")


def test_a_seq2seq_trainer_that_generates(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"].clone()} for row in rows(32)]
    run = Seq2SeqTrainer(
        T5ForConditionalGeneration(config),
        Seq2SeqTrainingArguments(
            str(tmp_path), predict_with_generate=True, generation_max_length=6, **SETTINGS | {"max_steps": 12}
        ),
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=recipe(BOTH).callbacks(),
    )
    run.train()
    assert run.predict(data[:8]).predictions.shape[0] == 8
    inputs = {name: data[0][name][None] for name in ("input_ids", "labels")}
    check(run.model, AutoModelForSeq2SeqLM, inputs, tmp_path / "compressed")


# --- sentence-transformers -------------------------------------------------------------------------------------------


@pytest.fixture
def embedder(tmp_path: Path, tiny_tokenizer: Any) -> Any:
    library = pytest.importorskip("sentence_transformers")
    BertModel(bert(**NO_DROPOUT).config).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer.save_pretrained(tmp_path / "encoder")
    return library.SentenceTransformer(str(tmp_path / "encoder"), device="cpu")


@pytest.fixture
def pairs(tiny_sentences: Dataset) -> Dataset:
    words = tiny_sentences["sentence"]
    return Dataset.from_dict({"anchor": words[:32], "positive": words[32:]})


def embedding_trainer(
    model: Any, pairs: Dataset, folder: Path, plan: Recipe | None = None, **settings: Any
) -> Trainer:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(str(folder), **SETTINGS | settings),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=(plan or recipe(BOTH)).callbacks(),
    )


def test_the_trainer_of_sentence_transformers(embedder: Any, pairs: Dataset, tmp_path: Path) -> None:
    run = embedding_trainer(embedder, pairs, tmp_path / "run")
    run.train()
    model = transformer(embedder)
    assert isinstance(model, BertModel)
    inputs = {name: value[None] for name, value in rows(1)[0].items() if name != "labels"}
    check(model, AutoModel, {name: value % 29 for name, value in inputs.items()}, tmp_path / "compressed")


@pytest.mark.filterwarnings("ignore:.*corrects the weights")
@pytest.mark.parametrize("criterion", [name for name, one in CRITERIA.items() if one.has_state])
def test_sentence_transformers_prunes_by_every_criterion(
    criterion: str, embedder: Any, pairs: Dataset, tmp_path: Path
) -> None:
    plan = Recipe(pruning=PruningArguments(prune_sparsity=0.6, prune_criterion=criterion, prune_every=2))
    embedding_trainer(embedder, pairs, tmp_path / "run", plan).train()
    targets = prunable(transformer(embedder))
    assert all(int((one.weight == 0).sum()) == round(0.6 * one.weight.numel()) for one in targets)


def test_sentence_transformers_warns_that_resuming_loses_ranges(embedder: Any, pairs: Dataset, tmp_path: Path) -> None:
    """It builds a plain model from the checkpoint and copies its weights, so all must be there."""
    run = embedding_trainer(embedder, pairs, tmp_path / "run", save_strategy="steps", save_steps=6)
    run.train()
    with pytest.raises(RuntimeError, match=r"Missing key.*input_range"):
        run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))


# --- SetFit ----------------------------------------------------------------------------------------------------------


def test_the_trainer_of_setfit(embedder: Any, tiny_sentences: Dataset, tmp_path: Path) -> None:
    """It passes callbacks a model that is not a module, and its own class of arguments."""
    setfit = pytest.importorskip("setfit")
    from sklearn.linear_model import LogisticRegression

    model = setfit.SetFitModel(model_body=embedder, model_head=LogisticRegression())
    settings = {
        "max_steps": 12,
        "batch_size": 8,
        "report_to": "none",
        "save_strategy": "no",
        "show_progress_bar": False,
    }
    run = setfit.Trainer(
        model,
        setfit.TrainingArguments(str(tmp_path / "run"), **settings),
        train_dataset=tiny_sentences.select(range(16)).rename_column("sentence", "text"),
        callbacks=recipe(BOTH).callbacks(),
    )
    run.train()
    inputs = {name: value[None] % 29 for name, value in rows(1)[0].items() if name != "labels"}
    check(transformer(embedder), AutoModel, inputs, tmp_path / "compressed")
    assert len(model.predict(["the film was bright"])) == 1


@pytest.mark.parametrize("ours", [True, False], ids=["compress", "callbacks"])
def test_setfit_keeps_ranges_of_the_best_model_or_refuses(
    ours: bool, embedder: Any, tiny_sentences: Dataset, tmp_path: Path
) -> None:
    """Its trainer has one of sentence-transformers inside, which `compress` takes."""
    setfit = pytest.importorskip("setfit")
    from sklearn.linear_model import LogisticRegression

    settings = {"max_steps": 12, "batch_size": 8, "report_to": "none", "show_progress_bar": False}
    best = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    plan, rows = recipe((QUANT,)), tiny_sentences.rename_column("sentence", "text")
    run = setfit.Trainer(
        setfit.SetFitModel(model_body=embedder, model_head=LogisticRegression()),
        setfit.TrainingArguments(str(tmp_path / "run"), load_best_model_at_end=True, **settings, **best),
        train_dataset=rows.select(range(16)),
        eval_dataset=rows.select(range(16, 32)),
        callbacks=[] if ours else plan.callbacks(),
    )
    if not ours:
        with pytest.raises(ValueError, match=r"for SetFit: `compress\(trainer.st_trainer, recipe\)`"):
            run.train()
        return
    compress(run.st_trainer, plan)
    run.train()
    layers = compressed_layers(transformer(embedder)).values()
    assert layers and all(layer.ready for layer in layers)
    assert run.st_trainer.state.best_model_checkpoint is not None
    saved = tmp_path / "compressed"
    save_compressed(transformer(embedder), saved, plan)
    assert len(run.model.predict(["the film was bright"])) == 1


# --- TRL -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL 1.16 sets it.
def test_the_supervised_trainer_of_trl(tiny_tokenizer: Any, tiny_sentences: Dataset, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    config = GPT2Config(vocab_size=29, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
    run = trl.SFTTrainer(
        model=GPT2LMHeadModel(config),
        args=trl.SFTConfig(str(tmp_path), max_length=16, eos_token="[SEP]", bf16=False, **SETTINGS),
        train_dataset=tiny_sentences.rename_column("sentence", "text").remove_columns("label"),
        processing_class=tiny_tokenizer,
        callbacks=recipe(BOTH).callbacks(),
    )
    run.train()
    check(run.model, AutoModelForCausalLM, {"input_ids": torch.arange(5, 15)[None]}, tmp_path / "compressed")


# --- models that cannot be compressed --------------------------------------------------------------------------------


class TwoModels(nn.Module):
    """Two Transformers models side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = bert(), bert()

    def forward(self, **inputs: Any) -> Any:
        return self.one(**inputs)


@pytest.mark.parametrize(
    ("model", "said"), [(TwoModels, "TwoModels holds one, other"), (nn.Linear, "Linear holds no Transformers model")]
)
def test_a_module_that_is_not_around_one_model_is_refused(model: Any, said: str, tmp_path: Path) -> None:
    built = model(2, 2) if model is nn.Linear else model()
    with pytest.raises(ValueError, match=said):
        transformer(built)
    with pytest.raises(ValueError, match=said):
        make(tmp_path, (QUANT,), model=built, trainer_class=Trainer)
    run = Trainer(built, make(tmp_path).args, train_dataset=rows(), callbacks=[PruningCallback(recipe(BOTH).pruning)])
    with pytest.raises(ValueError, match=said):
        run.train()

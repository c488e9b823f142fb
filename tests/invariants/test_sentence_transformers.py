"""The trainers of sentence-transformers compress as Transformers' own does, and leave folders that it loads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, Trainer

from hf_compress import Recipe, compress, finish
from hf_compress.goals import BudgetArguments
from hf_compress.layers.turning import compressed_layers
from hf_compress.models.targets import prunable, transformer
from tests.invariants.harness import PRUNE, QUANT, logged, recipe, same

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.cross_encoder import losses as pair_losses  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402
from sentence_transformers.sparse_encoder import losses as sparse_losses  # noqa: E402

from tests.sentence_bench import Bench, answers  # noqa: E402

BOTH = recipe((PRUNE, QUANT))


def check(bench: Bench, run: Trainer) -> None:
    """Finish the run, and check that its own class loads the folder, bit for bit."""
    finish(run)
    folder = Path(run.args.output_dir, "compressed")
    found = type(run.model)(str(folder), device="cpu")
    assert compressed_layers(found)
    assert torch.equal(answers(bench, run.model), answers(bench, found))


def _splade(model: Any) -> Any:
    own = sparse_losses.SparseMultipleNegativesRankingLoss(model)
    return sparse_losses.SpladeLoss(model, own, document_regularizer_weight=1e-3, query_regularizer_weight=1e-3)


@pytest.mark.parametrize("kind", ["SentenceTransformer", "CrossEncoder", "SparseEncoder"])
def test_each_kind_trains_and_its_class_loads_the_result(kind: str, bench: Bench) -> None:
    if kind == "SentenceTransformer":
        run = bench.trainer("run")
    elif kind == "CrossEncoder":
        model = library.CrossEncoder(
            bench.folder_of("pair", BertForSequenceClassification, num_labels=1), device="cpu", max_length=9
        )
        run = bench.trainer("run", model, pair_losses.BinaryCrossEntropyLoss, train_dataset=bench.scored)
    else:
        model = library.SparseEncoder(bench.folder_of("sparse", BertForMaskedLM), device="cpu")
        run = bench.trainer("run", model, _splade)
    compress(run, BOTH).train()
    for target in prunable(transformer(run.model)):
        assert int((target.weight == 0).sum()) == round(0.6 * target.weight.numel()), target.name
    check(bench, run)
    reloaded = type(run.model)(str(bench.folder / "run" / "compressed"), device="cpu")
    assert reloaded.max_seq_length == run.model.max_seq_length


def test_a_resumed_run_keeps_the_ranges_and_every_bit(bench: Bench) -> None:
    """With several datasets, prompts, accumulation, and the best model at the end."""

    def run(name: str) -> Trainer:
        data = DatasetDict({"pairs": bench.pairs, "scored": bench.scored})
        trainer = bench.trainer(
            name,
            loss=lambda model: {
                "pairs": losses.MultipleNegativesRankingLoss(model),
                "scored": losses.CoSENTLoss(model),
            },
            train_dataset=data,
            evaluator=EmbeddingSimilarityEvaluator(*bench.texts, bench.scored["score"][:], name="dev"),
            prompts={"pairs": {"anchor": "film "}, "scored": "song "},
            gradient_accumulation_steps=2,
            save_strategy="steps",
            eval_strategy="steps",
            save_steps=3,
            eval_steps=3,
            load_best_model_at_end=True,
            metric_for_best_model="dev_spearman_cosine",
        )
        return compress(trainer, BOTH)

    whole = run("whole")
    whole.train()
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=str(bench.folder / "whole" / "checkpoint-6"))
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    ranges = [layer.input_range for layer in compressed_layers(transformer(whole.model)).values() if layer.has_range]
    assert ranges and all(bool(bounds.isfinite().all()) for bounds in ranges)
    # The best model is the one that was saved, not the last.
    best = whole.state.best_model_checkpoint
    assert best is not None
    scores = [line for line in whole.state.log_history if "eval_dev_spearman_cosine" in line]
    assert whole.state.best_metric in [line["eval_dev_spearman_cosine"] for line in scores]
    assert whole.evaluate()["eval_dev_spearman_cosine"] == whole.state.best_metric
    check(bench, whole)


CACHED = {"mini_batch_size": 3}


@pytest.mark.parametrize(
    ("often", "once"),
    [
        (lambda m: losses.CachedMultipleNegativesRankingLoss(m, **CACHED), losses.MultipleNegativesRankingLoss),
        (
            lambda m: losses.MatryoshkaLoss(m, losses.CachedMultipleNegativesRankingLoss(m, **CACHED), [16, 8]),
            lambda m: losses.MatryoshkaLoss(m, losses.MultipleNegativesRankingLoss(m), [16, 8]),
        ),
    ],
    ids=["cached", "matryoshka"],
)
def test_losses_that_call_the_model_often_train_the_same(often: Any, once: Any, bench: Bench) -> None:
    """The cached losses compute in parts, without gradients first: the ranges and the rounding must not notice."""
    found = []
    for name, loss in (("once", once), ("often", often)):
        run = compress(bench.trainer(name, loss=loss), BOTH)
        run.train()
        found.append(torch.tensor(logged(run, "loss", "quant_range_mean", "quant_range_max", "sparsity")))
    check(bench, run)
    assert torch.allclose(*found, rtol=1e-3)


def test_a_budget_holds_for_pairs_of_texts(bench: Bench) -> None:
    model = library.CrossEncoder(bench.folder_of("pair", BertForSequenceClassification, num_labels=1), device="cpu")
    run = bench.trainer("run", model, pair_losses.BinaryCrossEntropyLoss, train_dataset=bench.scored)
    plan = replace(recipe((QUANT,)), budget=BudgetArguments(compress_budget_mb=0.03))
    compress(run, plan).train()
    check(bench, run)
    assert (bench.folder / "run" / "compressed" / "model.safetensors").stat().st_size <= 30_000


def test_an_adapter_is_refused_before_training(bench: Bench) -> None:
    model = bench.embedder()
    model.add_adapter(LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query", "value"]))
    with pytest.raises(ValueError, match=r"with an adapter \(`add_adapter`\) cannot be compressed"):
        compress(bench.trainer("run", model), BOTH)


def test_a_model_inside_a_router_is_refused(bench: Bench) -> None:
    from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding

    parts = list(library.SentenceTransformer(bench.folder_of("plain", BertModel), device="cpu"))
    static = StaticEmbedding(bench.tokenizer.backend_tokenizer, embedding_dim=32)
    router = Router.for_query_document([static], parts)
    model = library.SentenceTransformer(modules=[router], device="cpu")
    run = bench.trainer("run", model, router_mapping={"anchor": "query", "positive": "document"})
    with pytest.raises(ValueError, match=r"must be in the first module of a SentenceTransformer; .*Routers"):
        compress(run, Recipe())

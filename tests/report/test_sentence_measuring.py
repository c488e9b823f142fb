"""Report and card of models of sentence-transformers, from their own evaluators."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import BertForSequenceClassification, BertModel

from hf_compress import Recipe, Report, compress, finish
from hf_compress.distill import DistillationArguments
from hf_compress.report.agreement import TRUE, check_folder
from hf_compress.report.card import is_current
from hf_compress.report.predictions import read_predictions
from hf_compress.report.snippets import FOLDER, snippets
from tests.invariants.harness import PRUNE, QUANT, recipe

library = pytest.importorskip("sentence_transformers")
from sentence_transformers.backend.utils import backend_should_export  # noqa: E402
from sentence_transformers.cross_encoder import losses as pair_losses  # noqa: E402
from sentence_transformers.cross_encoder.evaluation import CrossEncoderClassificationEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator  # noqa: E402

from tests.sentence_bench import Bench  # noqa: E402

BOTH = recipe((PRUNE, QUANT))


def head_of(card: Path) -> dict[str, Any]:
    return yaml.safe_load(card.read_text("utf-8").split("---")[1])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: Any, tiny_tokenizer: Any, tiny_sentences: Any) -> tuple[Any, Report, Path, Any]:
    """An embedder that starts from a trained one, with its report and its graph."""
    bench = Bench(tmp_path_factory.mktemp("embedder"), tiny_tokenizer, tiny_sentences["sentence"][:])
    folder = bench.folder_of("one", BertModel, num_hidden_layers=1)
    library.SentenceTransformer(folder, device="cpu").save_pretrained(str(bench.folder / "start"))
    evaluator = EmbeddingSimilarityEvaluator(*bench.texts, list(range(32)), name="dev")
    model = library.SentenceTransformer(str(bench.folder / "start"), device="cpu")
    run = bench.trainer("run", model, evaluator=evaluator)
    teacher = DistillationArguments(distill_teacher="self", distill_loss="cosine", distill_alpha=0.5)
    compress(run, Recipe(teacher, BOTH.pruning, BOTH.quantization)).train()
    report = finish(run, formats=["onnx"])
    assert report is not None
    return run, report, bench.folder / "run" / "compressed", bench


def test_scores_are_those_of_the_evaluator(embedded: tuple[Any, Report, Path, Any]) -> None:
    run, report, folder, bench = embedded
    by_hand = {
        name: run.evaluator(library.SentenceTransformer(str(path), device="cpu"))
        for name, path in (("dense", bench.folder / "start"), ("compressed", folder))
    }
    assert report.main_metric == "dev_spearman_cosine"
    assert (report.dense, report.teacher, report.compressed) == (
        by_hand["dense"],
        by_hand["dense"],
        by_hand["compressed"],
    )
    assert report.parity == 0 and report.parity_rows == 64
    graph = report.formats["onnx"]
    assert graph.parity < 1e-2
    assert graph.scores[report.main_metric] == pytest.approx(report.compressed[report.main_metric], abs=0.05)
    # The rows are kept, so that the difference has a paired interval.
    assert report.comparison.keys() == report.compressed.keys()
    columns = read_predictions(folder)
    assert np.corrcoef(columns["label"], columns["compressed"])[0, 1] == pytest.approx(
        report.compressed["dev_pearson_cosine"], abs=1e-5
    )


def test_the_card_is_for_sentence_transformers(embedded: tuple[Any, Report, Path, Any]) -> None:
    _, report, folder, _ = embedded
    head, card = head_of(folder / "README.md"), (folder / "README.md").read_text("utf-8")
    assert head["library_name"] == "sentence-transformers" and head["pipeline_tag"] == "sentence-similarity"
    assert {"sentence-transformers", "sentence-similarity", "feature-extraction"} <= {*head["tags"]}
    assert "0.5 x the cosine distance (1 - cosine) of the embeddings" in card
    assert is_current(folder) and all(check.verdict == TRUE for check in check_folder(folder, report))
    printed, titles = {}, {snippet.title: snippet.code for snippet in snippets(report)}
    for title in ("With sentence-transformers", "With sentence-transformers alone", "With ONNX Runtime"):
        with redirect_stdout(io.StringIO()) as out:
            exec(titles[title].replace(FOLDER, str(folder)), {})
        printed[title] = out.getvalue()
    assert printed["With sentence-transformers"] == printed["With sentence-transformers alone"]
    assert printed["With ONNX Runtime"].startswith("(1, 7, 32)")
    # The backend itself needs optimum, which is not installed; it would find the graph.
    assert 'graph = {"file_name": "onnx/model_quantized.onnx"}' in card
    found = backend_should_export(
        folder, True, {"file_name": "onnx/model_quantized.onnx"}, "model.onnx", "*.onnx", "ONNX"
    )
    assert found == (False, {"file_name": "model_quantized.onnx", "subfolder": "onnx"})


def test_a_reranker_of_classes_has_intervals(bench: Any) -> None:
    folder = bench.folder_of("pair", BertForSequenceClassification, num_labels=3)
    model = library.CrossEncoder(folder, device="cpu", num_labels=3)
    data = bench.pairs.add_column("label", [number % 3 for number in range(32)])
    pairs = [list(pair) for pair in zip(*bench.texts, strict=True)]
    run = bench.trainer(
        "run",
        model,
        pair_losses.CrossEntropyLoss,
        train_dataset=data,
        evaluator=CrossEncoderClassificationEvaluator(pairs, data["label"][:], name="nli"),
    )
    compress(run, BOTH).train()
    report = finish(run, max_drop=100.0)
    assert report is not None and report.verdict == "ACCEPT"
    assert (report.main_metric, report.dataset.eval_rows) == ("nli_f1_macro", 32)
    assert report.comparison.keys() == report.compressed.keys() == {"nli_f1_macro", "nli_f1_micro", "nli_f1_weighted"}
    head = head_of(bench.folder / "run" / "compressed" / "README.md")
    assert head["pipeline_tag"] == "text-ranking" and "reranker" in head["tags"]


def test_a_control_is_compared_row_by_row(embedded: tuple[Any, Report, Path, Any]) -> None:
    """A training without any method, on the same rows, gives the paired difference that the gate's reader needs."""
    run, _, folder, bench = embedded

    def trained(name: str, plan: Recipe, **more: Any) -> Report:
        model = library.SentenceTransformer(str(bench.folder / "start"), device="cpu")
        trainer = compress(bench.trainer(name, model, evaluator=run.evaluator), plan, **more)
        trainer.train()
        report = finish(trainer)
        assert report is not None
        return report

    control = trained("control", Recipe())
    compared = trained("compared", BOTH, control=bench.folder / "control")
    main = compared.main_metric
    assert compared.control is not None and compared.control.scores == control.compressed
    difference = compared.control.comparison[main]
    assert difference.value == pytest.approx(compared.compressed[main] - control.compressed[main])
    assert difference.low <= difference.value <= difference.high and difference.low < difference.high
    columns = read_predictions(bench.folder / "compared" / "compressed")
    assert np.array_equal(columns["control"], read_predictions(bench.folder / "control" / "compressed")["compressed"])
    with pytest.raises(ValueError, match=r"must be a training without any method; the model in"):
        compress(bench.trainer("again", evaluator=run.evaluator), BOTH, control=folder)
    few = EmbeddingSimilarityEvaluator(*(texts[:8] for texts in bench.texts), list(range(8)), name="dev")
    with pytest.raises(ValueError, match=r"evaluation rows of this run, which are 8; .* was measured on 32"):
        compress(bench.trainer("fewer", evaluator=few), BOTH, control=bench.folder / "control")


def test_rows_of_other_kinds_are_refused_before_training(bench: Any) -> None:
    with pytest.raises(ValueError, match="has evaluators instead"):
        compress(bench.trainer("run"), BOTH, extra_eval_dataset=bench.pairs)
